#pragma once

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <locale>
#include <sstream>
#include <string>
#include <vector>
#include <heed/heatmap.hpp>

/// A small drawing board: shapes, grey images, and axes with curves and dots, written as SVG.
/// Lengths are pixels and y points down; colours are SVG colours.
namespace plot {

struct Point {
  double x, y;
};

/// One point for each row of two columns.
template <class X, class Y>
std::vector<Point> points(const X& x, const Y& y) {
  std::vector<Point> result;
  result.reserve(static_cast<std::size_t>(x.rows()));
  for (heed::Index i = 0; i < x.rows(); ++i) result.push_back({double(x(i, 0)), double(y(i, 0))});
  return result;
}

class Picture {
 public:
  Picture(double width, double height) {
    out_.imbue(std::locale::classic());
    out_ << "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" << width << "\" height=\""
         << height << "\" viewBox=\"0 0 " << width << ' ' << height
         << "\" font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" fill=\"#24292f\">\n";
    box({0, 0}, width, height, "#ffffff");
  }

  /// `style`: further SVG attributes.
  void box(Point corner, double width, double height, const std::string& fill,
           const std::string& style = "") {
    out_ << "<rect x=\"" << corner.x << "\" y=\"" << corner.y << "\" width=\"" << width
         << "\" height=\"" << height << "\" fill=\"" << fill << "\" " << style << "/>\n";
  }

  void dot(Point center, double radius, const std::string& fill) {
    out_ << "<circle cx=\"" << center.x << "\" cy=\"" << center.y << "\" r=\"" << radius
         << "\" fill=\"" << fill << "\" fill-opacity=\"0.65\"/>\n";
  }

  void curve(const std::vector<Point>& points, const std::string& color, double width = 1) {
    out_ << "<polyline fill=\"none\" stroke=\"" << color << "\" stroke-width=\"" << width
         << "\" stroke-linejoin=\"round\" points=\"";
    for (const Point& p : points) out_ << p.x << ',' << p.y << ' ';
    out_ << "\"/>\n";
  }

  /// `anchor`: what the point is of the text: start, middle or end. Plain text without markup.
  void text(Point p, const std::string& s, double size = 12, const std::string& anchor = "middle",
            const std::string& style = "") {
    out_ << "<text x=\"" << p.x << "\" y=\"" << p.y << "\" font-size=\"" << size
         << "\" text-anchor=\"" << anchor << "\" " << style << '>' << s << "</text>\n";
  }

  /// One square for each pixel of a matrix of grey levels, 0 (white) to 1 (black).
  template <class Pixels>
  void image(Point corner, double pixel, const Pixels& grey) {
    box(corner, pixel * double(grey.cols()), pixel * double(grey.rows()), "#ffffff",
        "stroke=\"#b0b0b0\"");
    out_ << "<g shape-rendering=\"crispEdges\">\n";
    for (heed::Index r = 0; r < grey.rows(); ++r) {
      for (heed::Index c = 0; c < grey.cols(); ++c) {
        const int level = static_cast<int>(std::lround(255 * (1 - double(grey(r, c)))));
        if (level == 255) continue;
        char fill[32];
        std::snprintf(fill, sizeof fill, "rgb(%d,%d,%d)", level, level, level);
        box({corner.x + double(c) * pixel, corner.y + double(r) * pixel}, pixel, pixel, fill);
      }
    }
    out_ << "</g>\n";
  }

  /// A picture at the address `uri`, smoothly scaled. With an `id`, again() repeats it.
  void photograph(Point corner, double width, double height, const std::string& uri,
                  const std::string& id = "") {
    out_ << "<image ";
    if (!id.empty()) out_ << "id=\"" << id << "\" ";
    out_ << "x=\"" << corner.x << "\" y=\"" << corner.y << "\" width=\"" << width << "\" height=\""
         << height << "\" preserveAspectRatio=\"none\" href=\"" << uri << "\"/>\n";
  }
  /// What has the `id`, moved.
  void again(Point by, const std::string& id) {
    out_ << "<use href=\"#" << id << "\" x=\"" << by.x << "\" y=\"" << by.y << "\"/>\n";
  }

  void save(const std::string& path) const { heed::write_svg(path, out_.str() + "</svg>\n"); }

 private:
  std::ostringstream out_;
};

/// Axes with a grid at multiples of `step`, or at its powers, on a part of a picture.
class Axes {
 public:
  enum Scale { linear, logarithmic };

  Axes(Picture& picture, Point corner, double width, double height, Point low, Point high,
       const std::string& title, Point step = {1, 1}, Scale scale = linear)
      : picture_(picture),
        corner_(corner),
        width_(width),
        height_(height),
        base_(scale == logarithmic ? step : Point{0, 0}),
        low_(on_axes(low)),
        high_(on_axes(high)) {
    const Point grid = scale == logarithmic ? Point{1, 1} : step;
    for (double i = std::ceil(low_.x / grid.x); i * grid.x <= high_.x + 1e-9; ++i) {
      const double x = i * grid.x;
      picture.curve({place({x, low_.y}), place({x, high_.y})}, "#e4e4e4");
      picture.text({place({x, 0}).x, corner.y + height + 15}, label(x, base_.x), 11);
    }
    for (double i = std::ceil(low_.y / grid.y); i * grid.y <= high_.y + 1e-9; ++i) {
      const double y = i * grid.y;
      picture.curve({place({low_.x, y}), place({high_.x, y})}, "#e4e4e4");
      picture.text({corner.x - 6, place({0, y}).y + 4}, label(y, base_.y), 11, "end");
    }
    picture.box(corner, width, height, "none", "stroke=\"#808080\"");
    picture.text({corner.x + width / 2, corner.y - 8}, title, 13, "middle", "font-weight=\"bold\"");
  }

  void curve(std::vector<Point> points, const std::string& color, double width) {
    for (Point& p : points) p = place(on_axes(p));
    picture_.curve(points, color, width);
  }

  void dots(const std::vector<Point>& points, const std::string& color) {
    for (const Point& p : points) picture_.dot(place(on_axes(p)), 3, color);
  }

 private:
  static std::string label(double x, double base) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", base > 0 ? std::pow(base, x) : x);
    return text;
  }

  /// Logarithms to the base, where there is one.
  Point on_axes(Point p) const {
    const auto along = [](double x, double base) {
      return base > 0 ? std::log(x) / std::log(base) : x;
    };
    return {along(p.x, base_.x), along(p.y, base_.y)};
  }

  /// Of a point on the axes.
  Point place(Point p) const {
    return {corner_.x + width_ * (p.x - low_.x) / (high_.x - low_.x),
            corner_.y + height_ * (high_.y - p.y) / (high_.y - low_.y)};
  }

  Picture& picture_;
  Point corner_;
  double width_, height_;
  Point base_, low_, high_;
};

}  // namespace plot
