#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <map>
#include <optional>
#include <ostream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/io/replace_file.hpp"
#include "heed/io/svg.hpp"

namespace heed {

/// What heatmap_svg draws and how. Text is UTF-8.
struct HeatmapOptions {
  std::string title{};
  std::string x_label = "key";
  std::string y_label = "query";
  std::vector<std::string> row_names{};     ///< one for each row; empty: indices
  std::vector<std::string> column_names{};  ///< one for each column; empty: indices
  std::vector<std::string> panel_names{};   ///< heads innermost; empty: "batch b, head h"
  Index panels_per_row = 0;                 ///< 0: the heads of a batch, or nearly a square
  ColorMap colors = paper_colors();         ///< at least one colour
  std::optional<double> low{};              ///< unset: the smaller of 0 and the smallest value
  std::optional<double> high{};             ///< unset: the largest value
  double cell_size = 0;                     ///< pixels; 0: by the number of cells
  Index max_cells = 256;  ///< a longer axis is averaged in blocks, to keep the file small
  std::optional<bool> show_values{};  ///< numbers in the cells; unset: where they fit
};

namespace detail {

/// One cell for each block of row_block x column_block weights (smaller at the end of an axis).
struct HeatmapCells {
  Index batches, heads, rows, columns;
  Index row_block, column_block;
  std::vector<double> means{};  ///< (panel, cell row, cell column)
  bool has_nan = false;
};

template <class Scalar>
HeatmapCells heatmap_cells(const View<Scalar, 4>& x, Index max_cells) {
  const auto block = [&](Index n) { return n == 0 ? 1 : 1 + (n - 1) / max_cells; };
  const auto [batches, heads, rows, columns] = x.shape;
  HeatmapCells cells{batches, heads, rows, columns, block(rows), block(columns)};
  for (Index panel = 0; panel < batches * heads; ++panel) {
    for (Index row = 0; row < rows; row += cells.row_block) {
      for (Index column = 0; column < columns; column += cells.column_block) {
        const Index row_end = std::min(row + cells.row_block, rows);
        const Index column_end = std::min(column + cells.column_block, columns);
        double sum = 0;
        for (Index i = row; i < row_end; ++i) {
          for (Index j = column; j < column_end; ++j) {
            sum += static_cast<double>(x(panel / heads, panel % heads, i, j));
          }
        }
        cells.means.push_back(sum / static_cast<double>((row_end - row) * (column_end - column)));
        cells.has_nan |= std::isnan(cells.means.back());
      }
    }
  }
  return cells;
}

/// Values beyond it count as infinite: the length of a range must not overflow.
inline constexpr double kHeatmapLimit = 1e300;

/// The values that the first and the last colour stand for.
inline std::pair<double, double> heatmap_range(const HeatmapCells& cells,
                                               const HeatmapOptions& options) {
  double low = 0, high = -kHeatmapLimit;
  for (const double value : cells.means) {
    if (!(std::abs(value) <= kHeatmapLimit)) continue;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  low = options.low.value_or(low);
  high = options.high.value_or(high);
  if (high - low >= 1 / kHeatmapLimit) return {low, high};
  // No finite value, all values alike, or all of them beyond the end that was given.
  const double length = std::max(1.0, std::abs(options.high ? high : low));
  return options.high ? std::pair(high - length, high) : std::pair(low, low + length);
}

inline void check_heatmap(const HeatmapOptions& options, const std::array<Index, 4>& shape) {
  const auto check_names = [](const char* axis, const std::vector<std::string>& names,
                              Index count) {
    const auto given = static_cast<Index>(names.size());
    if (given != 0 && given != count) {
      fail("heatmap_svg", given, " ", axis, "_names for ", count, " ", axis, "s");
    }
  };
  check_names("row", options.row_names, shape[2]);
  check_names("column", options.column_names, shape[3]);
  check_names("panel", options.panel_names, shape[0] * shape[1]);
  if (options.panels_per_row < 0) {
    fail("heatmap_svg", "panels_per_row is ", options.panels_per_row, ", below 0");
  }
  if (options.max_cells < 1) fail("heatmap_svg", "max_cells is ", options.max_cells, ", below 1");
  if (options.colors.empty()) fail("heatmap_svg", "colors is empty");
  if (!(options.cell_size == 0 || (options.cell_size >= 0.01 && options.cell_size <= 1000))) {
    fail("heatmap_svg", "cell_size is ", options.cell_size, ", neither 0 nor 0.01 to 1000 pixels");
  }
  for (const auto& end : {options.low, options.high}) {
    if (end && !(std::abs(*end) <= kHeatmapLimit)) {
      fail("heatmap_svg", "the range ends at ", *end);
    }
  }
  if (options.low && options.high && !(*options.high - *options.low >= 1 / kHeatmapLimit)) {
    fail("heatmap_svg", "low is ", *options.low, ", not below high, ", *options.high);
  }
}

/// Given names, or batch and head where there is more than one.
inline std::vector<std::string> heatmap_panel_names(const HeatmapCells& cells,
                                                    const HeatmapOptions& options) {
  if (!options.panel_names.empty()) return options.panel_names;
  std::vector<std::string> names;
  for (Index b = 0; b < cells.batches; ++b) {
    for (Index h = 0; h < cells.heads; ++h) {
      std::string name = cells.batches > 1 ? joined({"batch ", std::to_string(b)}) : "";
      if (cells.heads > 1) name += (name.empty() ? "head " : ", head ") + std::to_string(h);
      names.push_back(name);
    }
  }
  return names;
}

/// Lays the panels out, then writes them. Lengths are pixels.
class HeatmapPainter {
 public:
  HeatmapPainter(const HeatmapCells& cells, const HeatmapOptions& options)
      : cells_(cells),
        options_(options),
        panels_(cells.batches * cells.heads),
        names_(heatmap_panel_names(cells, options)) {
    std::tie(low_, high_) = heatmap_range(cells, options);
    arrange_panels();
    arrange_margins();
  }

  std::string paint() {
    const double body_end = top_ + std::max(body_height_ + ticks_height_ + caption_, bar_height_);
    const double title_end = kMargin + text_width(options_.title, kTitleSize);
    const double width = std::ceil(std::max(bar_x_ + kBarWidth + kBarText, title_end) + kMargin);
    const double height = std::ceil(body_end + kMargin);
    out_.begin(width, height, options_.title.empty() ? "attention weights" : options_.title);
    out_.text(kMargin, kMargin + kTitleSize, kTitleSize, options_.title, "font-weight=\"bold\"");
    for (Index panel = 0; panel < panels_; ++panel) paint_panel(panel);
    if (panels_ == 0) paint_frame(left_, top_);
    out_.text(left_ + body_width_ / 2, top_ + body_height_ + ticks_height_ + caption_ - 2,
              kLabelSize, options_.x_label, kCentered);
    out_.turned_text(kMargin + kFontSize, top_ + body_height_ / 2, -90, kLabelSize,
                     options_.y_label, kCentered);
    paint_bar();
    out_.end();
    return out_.str();
  }

 private:
  static constexpr double kFontSize = 11, kLabelSize = 13, kTitleSize = 16, kLine = 15,
                          kMargin = 16, kGap = 6;
  static constexpr double kLargestCell = 40, kSmallestPanel = 72, kPanelGap = 24;
  static constexpr double kDrop = 0.36 * kFontSize;  // from the middle of a letter to its foot
  static constexpr double kLeastGrid = 6, kLeastWithValue = 32;  // the smallest cell that has one
  static constexpr double kBarWidth = 14, kBarText = 54;
  static constexpr const char* kCentered = "text-anchor=\"middle\"";
  static constexpr const char* kFrame = "fill=\"none\" stroke=\"#808080\"";
  static constexpr Color kNanColor{224, 33, 138};  // far from every colour of the maps above

  // A panel alone is 400 pixels wide, several share the page. No side is flatter than 1 : 4, unless
  // its cells are as large as looks good.
  void arrange_panels() {
    const Index in_square = static_cast<Index>(std::ceil(std::sqrt(static_cast<double>(panels_))));
    const bool batch_a_row = cells_.batches > 1 && cells_.heads > 1 && cells_.heads <= 8;
    per_row_ = options_.panels_per_row > 0 ? options_.panels_per_row
               : batch_a_row               ? cells_.heads
               : panels_ <= 4              ? panels_
                                           : in_square;
    per_row_ = std::clamp<Index>(per_row_, 1, std::max<Index>(panels_, 1));

    const double side = per_row_ == 1 ? 400 : per_row_ <= 3 ? 280 : 200;
    const auto rows = static_cast<double>(std::max<Index>(cells_.rows, 1));
    const auto columns = static_cast<double>(std::max<Index>(cells_.columns, 1));
    const auto pitch = [&](double count) {
      if (options_.cell_size > 0) return options_.cell_size;
      return std::min(kLargestCell, std::max(side / std::max(rows, columns), side / 4 / count));
    };
    pitch_x_ = pitch(columns);
    pitch_y_ = pitch(rows);
    const bool empty = cells_.means.empty();
    panel_width_ = empty ? kSmallestPanel : pitch_x_ * columns;
    panel_height_ = empty ? kSmallestPanel : pitch_y_ * rows;
    pitch_x_ = panel_width_ / columns;
    pitch_y_ = panel_height_ / rows;

    const double widest_name = widest(names_);
    name_height_ = widest_name > 0 ? kLine + 4 : 0;
    step_x_ = std::max(panel_width_ + kPanelGap, 1.1 * widest_name + kGap);
    step_y_ = panel_height_ + name_height_ + kPanelGap;
    const Index panel_rows = std::max<Index>(1, (panels_ + per_row_ - 1) / per_row_);
    body_width_ = step_x_ * static_cast<double>(per_row_ - 1) + panel_width_;
    body_height_ = step_y_ * static_cast<double>(panel_rows - 1) + panel_height_;
  }

  void arrange_margins() {
    const double row_text = options_.row_names.empty()
                                ? text_width(std::to_string(cells_.rows), kFontSize)
                                : widest(options_.row_names);
    const double column_text = options_.column_names.empty()
                                   ? text_width(std::to_string(cells_.columns), kFontSize)
                                   : widest(options_.column_names);
    slanted_ = !options_.column_names.empty() && column_text + kGap > pitch_x_;
    const double slant = slanted_ ? std::sqrt(0.5) * column_text : 0;
    row_step_ = static_cast<Index>(nice_step(kLine / pitch_y_, 1));
    column_step_ =
        static_cast<Index>(nice_step((slanted_ ? kLine : column_text + kGap) / pitch_x_, 1));
    ticks_height_ = kGap + kFontSize + slant;
    caption_ = options_.x_label.empty() ? 0 : kLine + 6;

    const double row_label = options_.y_label.empty() ? 0 : kLine + 4;
    const double x_overhang = (text_width(options_.x_label, kLabelSize) - body_width_) / 2;
    const double y_overhang = (text_width(options_.y_label, kLabelSize) - body_height_) / 2;
    left_ = kMargin + std::max({row_label + row_text + kGap, slant - pitch_x_ / 2, x_overhang});
    top_ = kMargin + (options_.title.empty() ? 0 : kTitleSize + 14) +
           std::max(name_height_, y_overhang);
    bar_x_ = left_ + std::max(body_width_, body_width_ + x_overhang) + kPanelGap;
    bar_height_ = std::clamp(body_height_, kSmallestPanel, 240.0);
  }

  void paint_panel(Index panel) {
    const Index row = panel / per_row_, column = panel % per_row_;
    const double x = left_ + static_cast<double>(column) * step_x_;
    const double y = top_ + static_cast<double>(row) * step_y_;
    out_.text(x + panel_width_ / 2, y - 7, kFontSize, names_[static_cast<std::size_t>(panel)],
              std::string("font-weight=\"bold\" ") + kCentered);
    paint_cells(panel, x, y);
    paint_frame(x, y);
    if (column == 0) paint_row_ticks(x - kGap, y);
    if (panel + per_row_ >= panels_) paint_column_ticks(x, y + panel_height_ + kGap);
  }

  void paint_frame(double x, double y) {
    out_.rect(x, y, panel_width_, panel_height_, kFrame);
    if (!cells_.means.empty()) return;
    out_.text(x + panel_width_ / 2, y + panel_height_ / 2 + kDrop, kFontSize, "empty", kCentered);
  }

  void paint_row_ticks(double x, double y) {
    for (Index i = 0; i < cells_.rows; i += row_step_) {
      out_.text(x, y + (static_cast<double>(i) + 0.5) * pitch_y_ + kDrop, kFontSize,
                tick(options_.row_names, i), "text-anchor=\"end\"");
    }
  }

  void paint_column_ticks(double x, double y) {
    for (Index j = 0; j < cells_.columns; j += column_step_) {
      const double center = x + (static_cast<double>(j) + 0.5) * pitch_x_;
      const std::string name = tick(options_.column_names, j);
      if (slanted_) {
        out_.turned_text(center + kDrop, y + kDrop, -45, kFontSize, name, "text-anchor=\"end\"");
      } else {
        out_.text(center, y + 2 * kDrop, kFontSize, name, kCentered);
      }
    }
  }

  void paint_cells(Index panel, double x, double y) {
    const Index cell_rows = (cells_.rows + cells_.row_block - 1) / cells_.row_block;
    const Index cell_columns = (cells_.columns + cells_.column_block - 1) / cells_.column_block;
    const double width = pitch_x_ * static_cast<double>(cells_.column_block);
    const double height = pitch_y_ * static_cast<double>(cells_.row_block);
    const auto mean = [&](Index r, Index c) {
      return cells_.means[static_cast<std::size_t>((panel * cell_rows + r) * cell_columns + c)];
    };

    // One path for each colour, in units of one weight; like neighbours in a row are one rectangle.
    std::map<int, std::string> paths;
    for (Index r = 0; r < cell_rows; ++r) {
      const Index row = r * cells_.row_block;
      const std::string start = joined({" ", std::to_string(row), "h"});
      const std::string tall = std::to_string(std::min(cells_.row_block, cells_.rows - row));
      for (Index c = 0, end = 0; c < cell_columns; c = end) {
        const int level = level_of(mean(r, c));
        while (end < cell_columns && level_of(mean(r, end)) == level) ++end;
        const Index column = c * cells_.column_block;
        const std::string wide =
            std::to_string(std::min(end * cells_.column_block, cells_.columns) - column);
        paths[level] +=
            joined({"M", std::to_string(column), start, wide, "v", tall, "h-", wide, "z"});
      }
    }
    out_ << "<g shape-rendering=\"crispEdges\" transform=\"translate(" << x << ' ' << y
         << ") scale(" << pitch_x_ << ' ' << pitch_y_ << ")\">\n";
    for (const auto& [level, path] : paths) {
      out_ << "<path " << (level < 0 ? fill(kNanColor) : fill(color_of(level))) << " d=\"" << path
           << "\"/>\n";
    }
    out_ << "</g>\n";

    if (!cells_.means.empty() && std::min(width, height) >= kLeastGrid) {
      out_ << "<path stroke=\"#808080\" stroke-opacity=\"0.25\" d=\"";
      for (Index r = 0; r < cell_rows; ++r) {
        out_ << 'M' << x << ' ' << y + static_cast<double>(r) * height << 'h' << panel_width_;
      }
      for (Index c = 0; c < cell_columns; ++c) {
        out_ << 'M' << x + static_cast<double>(c) * width << ' ' << y << 'v' << panel_height_;
      }
      out_ << "\"/>\n";
    }

    if (!options_.show_values.value_or(width >= kLeastWithValue && height >= kLine)) return;
    for (Index r = 0; r < cell_rows; ++r) {
      for (Index c = 0; c < cell_columns; ++c) {
        const double value = mean(r, c);
        const Color color = std::isnan(value) ? kNanColor : color_of(level_of(value));
        // Brightness as the eye weighs red, green and blue (ITU-R BT.601).
        const double brightness = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2];
        const Color ink = brightness < 140 ? Color{255, 255, 255} : Color{0, 0, 0};
        out_.text(x + (static_cast<double>(c) + 0.5) * width,
                  y + (static_cast<double>(r) + 0.5) * height + kDrop, kFontSize,
                  value != 0 && std::abs(value) < 10 ? fixed_number(value, 2) : number(value, 3),
                  fill(ink) + " " + kCentered);
      }
    }
  }

  void paint_bar() {
    const double height = bar_height_ - (cells_.has_nan ? kBarWidth + kLine : 0);
    out_ << "<g shape-rendering=\"crispEdges\">\n";
    constexpr int slices = 64;
    for (int slice = 0; slice < slices; ++slice) {
      // Each slice reaches down to the end of the bar, so that no seam shows between two.
      const double skipped = height * slice / slices;
      out_.rect(bar_x_, top_ + skipped, kBarWidth, height - skipped,
                fill(color_at(options_.colors, 1 - (slice + 0.5) / slices)));
    }
    out_ << "</g>\n";
    out_.rect(bar_x_, top_, kBarWidth, height, kFrame);

    const double text_x = bar_x_ + kBarWidth + kGap;
    const double least_step = (high_ - low_) * std::max(1.0 / 6, 2 * kLine / height);
    const double step = nice_step(least_step, std::pow(10, std::floor(std::log10(least_step))));
    // A ten-thousandth of a step forgives an end that rounding puts just off its tick.
    const double first = std::ceil(low_ / step - 1e-4), last = high_ / step + 1e-4;
    for (int i = 0; i <= 6 && first + i <= last; ++i) {
      const double value = (first + i) * step + 0.0;  // no "-0"
      const double y = top_ + height * std::clamp((high_ - value) / (high_ - low_), 0.0, 1.0);
      out_ << "<path stroke=\"#808080\" d=\"M" << bar_x_ + kBarWidth << ' ' << y << "h3\"/>\n";
      out_.text(text_x, y + kDrop, kFontSize, number(value, 4), "");
    }
    if (cells_.has_nan) {
      const double y = top_ + bar_height_ - kBarWidth;
      out_.rect(bar_x_, y, kBarWidth, kBarWidth, fill(kNanColor));
      out_.text(text_x, y + kBarWidth / 2 + kDrop, kFontSize, "NaN", "");
    }
  }

  static std::string fill(const Color& color) { return joined({"fill=\"", hex(color), "\""}); }

  static std::string tick(const std::vector<std::string>& names, Index i) {
    return names.empty() ? std::to_string(i) : names[static_cast<std::size_t>(i)];
  }

  static double widest(const std::vector<std::string>& names) {
    double width = 0;
    for (const auto& name : names) width = std::max(width, text_width(name, kFontSize));
    return width;
  }

  /// -1 for NaN, otherwise 0 to 255; what lies outside the range takes the colour of its end.
  int level_of(double value) const {
    if (std::isnan(value)) return -1;
    return static_cast<int>(
        std::lround(255 * (std::clamp(value, low_, high_) - low_) / (high_ - low_)));
  }

  Color color_of(int level) const { return color_at(options_.colors, level / 255.0); }

  const HeatmapCells& cells_;
  const HeatmapOptions& options_;
  Index panels_, per_row_ = 1, row_step_ = 1, column_step_ = 1;
  std::vector<std::string> names_;
  double low_ = 0, high_ = 1, pitch_x_ = 0, pitch_y_ = 0, panel_width_ = 0, panel_height_ = 0;
  double name_height_ = 0, step_x_ = 0, step_y_ = 0, body_width_ = 0, body_height_ = 0;
  double ticks_height_ = 0, caption_ = 0, left_ = 0, top_ = 0, bar_x_ = 0, bar_height_ = 0;
  bool slanted_ = false;
  SvgStream out_;
};

}  // namespace detail

/// SVG picture of attention weights, of any tensor of rank 2 (rows, columns), 3 (batch, rows,
/// columns) or 4 (batch, heads, rows, columns) whose elements convert to double: one panel for each
/// batch and head, all on one colour scale with a bar beside them. NaN has a colour of its own;
/// infinities take the colour of their end. Axes longer than options.max_cells show means of blocks
/// of weights, and so does the scale. Empty weights give empty frames.
/// Throws std::invalid_argument where names do not fit the shape or an option is out of its range.
template <class Weights>
std::string heatmap_svg(const Weights& weights, const HeatmapOptions& options = {}) {
  const auto elements = detail::rank4(weights);
  detail::check_heatmap(options, elements.shape);
  return detail::HeatmapPainter(detail::heatmap_cells(elements, options.max_cells), options)
      .paint();
}

/// Writes a picture to a file: whole or not at all, since it replaces `path` only when finished.
/// Throws std::runtime_error, naming the path, if that fails or something other than a file is
/// there.
inline void write_svg(const std::filesystem::path& path, const std::string& svg) {
  detail::replace_file("write_svg", path, [&](std::ostream& out) { out << svg; });
}

}  // namespace heed
