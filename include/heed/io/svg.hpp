#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <ios>
#include <locale>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace heed {

/// Red, green and blue, 0 to 255.
using Color = std::array<std::uint8_t, 3>;

/// Colours at even steps of a range, lowest value first, interpolated between.
using ColorMap = std::vector<Color>;

/// Paper white through green to dark blue. Lightness (Oklab) falls by equal steps, so equal
/// differences of weights look equal, in print and in grey too.
inline ColorMap paper_colors() {
  return {{250, 252, 238}, {206, 230, 188}, {145, 210, 162}, {65, 187, 155}, {2, 156, 153},
          {1, 124, 142},   {0, 93, 127},    {6, 62, 112},    {26, 34, 74}};
}

/// Dark violet to yellow: ten steps of "viridis" (S. van der Walt, N. Smith, CC0).
inline ColorMap viridis_colors() {
  return {{68, 1, 84},    {72, 40, 120},  {62, 74, 137},  {49, 104, 142}, {38, 130, 142},
          {31, 158, 137}, {53, 183, 121}, {109, 205, 89}, {180, 222, 44}, {253, 231, 37}};
}

namespace detail {

/// The parts in one string. (g++ 12 warns, wrongly, of overlapping copies in "text" + std::string.)
inline std::string joined(std::initializer_list<std::string_view> parts) {
  std::string whole;
  for (std::string_view part : parts) whole += part;
  return whole;
}

/// The colour at a position from 0 to 1 of the map.
inline Color color_at(const ColorMap& map, double position) {
  const double place = std::clamp(position, 0.0, 1.0) * static_cast<double>(map.size() - 1);
  const auto lower = static_cast<std::size_t>(place);
  const std::size_t upper = std::min(lower + 1, map.size() - 1);
  const double t = place - static_cast<double>(lower);
  Color result{};
  for (std::size_t c = 0; c < 3; ++c) {
    const double channel = (1 - t) * map[lower][c] + t * map[upper][c];
    result[c] = static_cast<std::uint8_t>(std::lround(channel));
  }
  return result;
}

inline std::string hex(const Color& color) {
  std::string result = "#";
  for (const unsigned channel : color) {
    result += {"0123456789abcdef"[channel / 16], "0123456789abcdef"[channel % 16]};
  }
  return result;
}

/// Numbers in it never take the decimal comma of the user's locale.
class ClassicStream : public std::ostringstream {
 public:
  ClassicStream() { imbue(std::locale::classic()); }
};

inline std::string number(double x, int precision) {
  ClassicStream out;
  out.precision(precision);
  out << x;
  return out.str();
}

inline std::string fixed_number(double x, int decimals) {
  ClassicStream out;
  out << std::fixed;
  out.precision(decimals);
  out << x;
  return out.str();
}

/// Markup as entities; control characters, which XML 1.0 cannot hold, as spaces.
inline std::string xml_escape(const std::string& s) {
  std::string result;
  for (const char c : s) {
    if (c == '&') {
      result += "&amp;";
    } else if (c == '<') {
      result += "&lt;";
    } else if (c == '>') {
      result += "&gt;";
    } else if (c == '"') {
      result += "&quot;";
    } else {
      result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return result;
}

/// Estimate in pixels: 0.6 em a letter suits a wide sans-serif face.
inline double text_width(const std::string& s, double font_size) {
  const auto starts_letter = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; };
  return 0.6 * font_size * static_cast<double>(std::count_if(s.begin(), s.end(), starts_letter));
}

/// The first of 1, 2, 5, 10, 20, 50, ... times `unit` that is at least `least`.
inline double nice_step(double least, double unit) {
  double step = unit;
  for (int i = 0; step < least; ++i) step *= i % 3 == 1 ? 2.5 : 2;
  return step;
}

/// The elements of a picture. Lengths are pixels, y points down; a style is a list of attributes.
class SvgStream : public ClassicStream {
 public:
  void begin(double width, double height, const std::string& title) {
    *this << "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"" << width
          << "\" height=\"" << height << "\" viewBox=\"0 0 " << width << ' ' << height
          << "\" font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" fill=\"#24292f\">\n"
          << "<title>" << xml_escape(title) << "</title>\n";
    rect(0, 0, width, height, "fill=\"#ffffff\"");
  }

  void end() { *this << "</svg>\n"; }

  void rect(double x, double y, double width, double height, const std::string& style) {
    *this << "<rect x=\"" << x << "\" y=\"" << y << "\" width=\"" << width << "\" height=\""
          << height << "\" " << style << "/>\n";
  }

  void text(double x, double y, double font_size, const std::string& s, const std::string& style) {
    if (s.empty()) return;
    *this << "<text x=\"" << x << "\" y=\"" << y << "\" font-size=\"" << font_size << "\" " << style
          << '>' << xml_escape(s) << "</text>\n";
  }

  /// Text that starts, ends or is centred at (x, y) and runs in the direction of `degrees`.
  void turned_text(double x, double y, int degrees, double font_size, const std::string& s,
                   const std::string& style) {
    *this << "<g transform=\"translate(" << x << ' ' << y << ") rotate(" << degrees << ")\">";
    text(0, 0, font_size, s, style);
    *this << "</g>\n";
  }
};

}  // namespace detail
}  // namespace heed
