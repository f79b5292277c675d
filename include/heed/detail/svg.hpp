#pragma once

#include <algorithm>
#include <ios>
#include <locale>
#include <sstream>
#include <string>

namespace heed::detail {

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

}  // namespace heed::detail
