#include "heed/heatmap.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <locale>
#include <map>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace heed::test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
const ColorMap kGrey{{0, 0, 0}, {255, 255, 255}};
const std::string kNanColor = "#e0218a";

HeatmapOptions grey(HeatmapOptions options = {}) {
  options.colors = kGrey;
  return options;
}

/// What stands between `before` and `after`, at every place.
std::vector<std::string> all_between(const std::string& s, const std::string& before,
                                     const std::string& after) {
  std::vector<std::string> result;
  for (std::size_t at = s.find(before); at != std::string::npos; at = s.find(before, at)) {
    at += before.size();
    result.push_back(s.substr(at, s.find(after, at) - at));
  }
  return result;
}

/// The colour of every (panel, row, column), read back from the picture; each drawn once.
using Cells = std::map<std::tuple<int, int, int>, std::string>;
Cells cells_of(const std::string& svg) {
  Cells cells;
  int panel = 0;
  for (const auto& group : all_between(svg, "crispEdges\" transform=", "</g>")) {
    for (const auto& path : all_between(group, "<path ", "/>")) {
      const std::string color = all_between(path, "fill=\"", "\"").at(0);
      std::istringstream d(all_between(path, " d=\"", "\"").at(0));
      char M, h, v, h2, minus, z;
      for (int x, y, width, height, back;
           d >> M >> x >> y >> h >> width >> v >> height >> h2 >> minus >> back >> z;) {
        EXPECT_EQ((std::string{M, h, v, h2, minus, z}), "Mhvh-z");
        EXPECT_EQ(back, width);
        for (int r = y; r < y + height; ++r) {
          for (int c = x; c < x + width; ++c) {
            EXPECT_TRUE(cells.emplace(std::tuple(panel, r, c), color).second) << "drawn twice";
          }
        }
      }
      EXPECT_TRUE(d.eof());
    }
    ++panel;
  }
  return cells;
}

std::vector<std::string> texts_of(const std::string& svg) {
  std::vector<std::string> result;
  for (const auto& element : all_between(svg, "<text", "</text>")) {
    result.push_back(element.substr(element.find('>') + 1));
  }
  return result;
}

bool has_text(const std::string& svg, const std::string& text) {
  const auto texts = texts_of(svg);
  return std::find(texts.begin(), texts.end(), text) != texts.end();
}

/// Whether tags nest, attributes have quotes, and no markup or control character stands in text.
bool is_well_formed(const std::string& xml) {
  std::vector<std::string> open;
  for (std::size_t at = 0; at < xml.size();) {
    if (xml[at] != '<') {
      if (xml[at] == '&') {
        const std::string entity = xml.substr(at, xml.find(';', at) - at + 1);
        if (entity != "&amp;" && entity != "&lt;" && entity != "&gt;" && entity != "&quot;")
          return false;
      }
      const auto byte = static_cast<unsigned char>(xml[at]);
      if (xml[at] == '>' || (byte < 0x20 && byte != '\n')) return false;
      ++at;
      continue;
    }
    const std::size_t end = xml.find('>', at);
    if (end == std::string::npos) return false;
    const std::string tag = xml.substr(at + 1, end - at - 1);
    if (tag.find('<') != std::string::npos) return false;
    if (tag[0] == '/') {
      if (open.empty() || open.back() != tag.substr(1)) return false;
      open.pop_back();
    } else {
      if (std::count(tag.begin(), tag.end(), '"') % 2 != 0) return false;
      if (tag.back() != '/') open.push_back(tag.substr(0, tag.find(' ')));
    }
    at = end + 1;
  }
  return open.empty();
}

template <class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(Heatmap, ColoursByHand) {
  const Matrix<double> weights{{0, 1}, {0.5, 0.2}};
  const std::string svg = heatmap_svg(weights, grey());
  // 0.5 and 0.2 of 255 are 127.5, rounded to 128 = 0x80, and 51 = 0x33.
  const Cells expected{{{0, 0, 0}, "#000000"},
                       {{0, 0, 1}, "#ffffff"},
                       {{0, 1, 0}, "#808080"},
                       {{0, 1, 1}, "#333333"}};
  EXPECT_EQ(cells_of(svg), expected);
  EXPECT_TRUE(is_well_formed(svg));
  EXPECT_EQ(svg.rfind("<svg xmlns=\"http://www.w3.org/2000/svg\"", 0), 0u);
  EXPECT_TRUE(has_text(svg, "key"));
  EXPECT_TRUE(has_text(svg, "query"));
  EXPECT_TRUE(has_text(svg, "0.20"));
}

TEST(Heatmap, ColoursAreInterpolatedBetweenThoseGiven) {
  const Matrix<double> weights{{0, 0.5, 0.75, 1}};
  HeatmapOptions options;
  options.colors = {{0, 0, 0}, {255, 0, 0}, {255, 255, 255}};
  // Levels are 255ths of the range: 128 / 255 and 191 / 255, just beside 0.5 and 0.75.
  const Cells cells = cells_of(heatmap_svg(weights, options));
  EXPECT_EQ(cells.at({0, 0, 0}), "#000000");
  EXPECT_EQ(cells.at({0, 0, 1}), "#ff0101");
  EXPECT_EQ(cells.at({0, 0, 2}), "#ff7f7f");
  EXPECT_EQ(cells.at({0, 0, 3}), "#ffffff");
  options.colors = {{1, 2, 3}};
  EXPECT_EQ(cells_of(heatmap_svg(weights, options)).at({0, 0, 2}), "#010203");
}

TEST(Heatmap, ColourMapsRunInOneDirection) {
  const auto brightness = [](const Color& c) { return 0.299 * c[0] + 0.587 * c[1] + 0.114 * c[2]; };
  const ColorMap paper = paper_colors(), viridis = viridis_colors();
  for (std::size_t i = 1; i < paper.size(); ++i)
    EXPECT_LT(brightness(paper[i]), brightness(paper[i - 1]));
  for (std::size_t i = 1; i < viridis.size(); ++i) {
    EXPECT_GT(brightness(viridis[i]), brightness(viridis[i - 1]));
  }
}

TEST(Heatmap, EveryStorageAndScalarGivesOnePicture) {
  const Matrix<double> weights{{0, 0.25, 1}, {0.5, 1, 0.75}};  // exact in half and bfloat16
  const std::string svg = heatmap_svg(weights);
  const Eigen::MatrixXf column_major = weights.cast<float>();
  EXPECT_EQ(heatmap_svg(column_major), svg);
  const Eigen::MatrixXd transpose = weights.transpose();
  EXPECT_EQ(heatmap_svg(transposed(transpose)), svg);
  Matrix<double> frame = Matrix<double>::Constant(5, 7, kNaN);
  frame.block(1, 2, 2, 3) = weights;
  EXPECT_EQ(heatmap_svg(frame.block(1, 2, 2, 3)), svg);
  const Matrix<Eigen::half> half = weights.cast<Eigen::half>();
  EXPECT_EQ(heatmap_svg(half), svg);
  const Matrix<Eigen::bfloat16> bfloat16 = weights.cast<Eigen::bfloat16>();
  EXPECT_EQ(heatmap_svg(bfloat16), svg);

  const Matrix<double> ones{{1, 0}, {0, 1}};
  Eigen::Tensor<bool, 2> allowed(2, 2);
  allowed.setValues({{true, false}, {false, true}});
  EXPECT_EQ(heatmap_svg(allowed), heatmap_svg(ones));
  EXPECT_EQ(heatmap_svg(Matrix<int>(ones.cast<int>())), heatmap_svg(ones));
}

TEST(Heatmap, OnePanelForEachBatchAndHead) {
  Eigen::Tensor<double, 4> column_major(2, 3, 2, 2);
  Tensor<double, 4> row_major(2, 3, 2, 2);
  for (Index b = 0; b < 2; ++b) {
    for (Index h = 0; h < 3; ++h) {
      for (Index i = 0; i < 4; ++i) {
        column_major(b, h, i / 2, i % 2) = static_cast<double>(12 * b + 4 * h + i) * 5 / 255;
        row_major(b, h, i / 2, i % 2) = column_major(b, h, i / 2, i % 2);
      }
    }
  }
  HeatmapOptions options = grey();
  options.low = 0;
  options.high = 1;
  const std::string svg = heatmap_svg(row_major, options);
  EXPECT_EQ(heatmap_svg(column_major, options), svg);
  const Cells cells = cells_of(svg);
  ASSERT_EQ(cells.size(), 24u);
  for (const auto& [at, color] : cells) {
    const auto [panel, r, c] = at;
    const int level = (4 * panel + 2 * r + c) * 5;
    char expected[8];
    std::snprintf(expected, sizeof expected, "#%02x%02x%02x", level, level, level);
    EXPECT_EQ(color, expected) << panel << ' ' << r << ' ' << c;
  }
  for (const char* name :
       {"batch 0, head 0", "batch 0, head 2", "batch 1, head 0", "batch 1, head 2"}) {
    EXPECT_TRUE(has_text(svg, name)) << name;
  }
  EXPECT_FALSE(has_text(svg, "batch 2, head 0"));

  const Tensor<double, 3> batches = row_major.chip<1>(0);
  EXPECT_TRUE(has_text(heatmap_svg(batches), "batch 1"));
  const Tensor<double, 4> heads =
      row_major.slice(std::array<Index, 4>{0, 0, 0, 0}, std::array<Index, 4>{1, 3, 2, 2});
  EXPECT_TRUE(has_text(heatmap_svg(heads), "head 2"));
  options.panel_names = {"a", "b", "c", "d", "e", "f"};
  EXPECT_TRUE(has_text(heatmap_svg(row_major, options), "f"));
}

TEST(Heatmap, PanelsLieInRowsAsAsked) {
  Tensor<float, 3> weights(6, 2, 2);
  weights.setConstant(1);
  const auto places = [&](Index per_row) {
    HeatmapOptions options;
    options.panels_per_row = per_row;
    std::map<std::string, int> across, down;
    for (const auto& place :
         all_between(heatmap_svg(weights, options), "crispEdges\" transform=\"translate(", ")")) {
      ++across[place.substr(0, place.find(' '))];
      ++down[place.substr(place.find(' '))];
    }
    return std::pair(across.size(), down.size());
  };
  EXPECT_EQ(places(1), std::pair(std::size_t{1}, std::size_t{6}));
  EXPECT_EQ(places(4), std::pair(std::size_t{4}, std::size_t{2}));
  EXPECT_EQ(places(6), std::pair(std::size_t{6}, std::size_t{1}));
  EXPECT_EQ(places(0), std::pair(std::size_t{3}, std::size_t{2}));
  EXPECT_EQ(places(99), std::pair(std::size_t{6}, std::size_t{1}));
}

TEST(Heatmap, LongAxesAreAveraged) {
  // Blocks of 2 rows x 3 columns; the last column block has one column only.
  Matrix<double> weights(4, 7);
  weights << 0, 0, 0, 1, 1, 1, 0.2,  //
      0, 0, 0, 1, 1, 1, 0.6,         //
      1, 0, 1, 0, 0, kNaN, 0,        //
      0, 1, 0, 0, 0, 0, 1;
  HeatmapOptions options = grey();
  options.max_cells = 3;
  options.row_names = {"a", "b", "c", "d"};
  const Cells cells = cells_of(heatmap_svg(weights, options));
  ASSERT_EQ(cells.size(), 28u);
  const std::string expected[2][3] = {{"#000000", "#ffffff", "#666666"},
                                      {"#808080", kNanColor, "#808080"}};
  for (int r = 0; r < 4; ++r) {
    for (int c = 0; c < 7; ++c)
      EXPECT_EQ(cells.at({0, r, c}), expected[r / 2][c / 3]) << r << ' ' << c;
  }
  const Matrix<double> ones = Matrix<double>::Ones(3, 3);
  options = {};
  options.max_cells = std::numeric_limits<Index>::max();
  EXPECT_EQ(heatmap_svg(ones, options), heatmap_svg(ones));
  const Matrix<float> big = Matrix<float>::Identity(3000, 3000);
  EXPECT_LT(heatmap_svg(big).size(), 100000u);
}

TEST(Heatmap, NaNIsMarkedAndInfinityTakesTheEnd) {
  const Matrix<double> weights{{kNaN, 1, kInfinity}, {0, -kInfinity, -1}};
  const std::string svg = heatmap_svg(weights, grey());
  const Cells cells = cells_of(svg);
  EXPECT_EQ(cells.at({0, 0, 0}), kNanColor);
  EXPECT_EQ(cells.at({0, 0, 1}), "#ffffff");
  EXPECT_EQ(cells.at({0, 0, 2}), "#ffffff");
  EXPECT_EQ(cells.at({0, 1, 0}), "#808080");
  EXPECT_EQ(cells.at({0, 1, 1}), "#000000");
  EXPECT_EQ(cells.at({0, 1, 2}), "#000000");
  EXPECT_TRUE(has_text(svg, "NaN"));
  EXPECT_FALSE(has_text(heatmap_svg(Matrix<double>(Matrix<double>::Ones(2, 2))), "NaN"));
}

TEST(Heatmap, RangeOfTheColours) {
  const Matrix<double> weights{{2, 4}};
  const auto colors = [&](std::optional<double> low, std::optional<double> high) {
    HeatmapOptions options = grey();
    options.low = low;
    options.high = high;
    const Cells cells = cells_of(heatmap_svg(weights, options));
    return cells.at({0, 0, 0}) + cells.at({0, 0, 1});
  };
  EXPECT_EQ(colors({}, {}), "#808080#ffffff");  // from 0
  EXPECT_EQ(colors(2, {}), "#000000#ffffff");
  EXPECT_EQ(colors({}, 20), "#1a1a1a#333333");
  EXPECT_EQ(colors(3, 3.5), "#000000#ffffff");
  EXPECT_EQ(colors(9, {}), "#000000#000000");   // everything below
  EXPECT_EQ(colors({}, -9), "#ffffff#ffffff");  // everything above
}

TEST(Heatmap, AnyValuesGiveAPicture) {
  for (const double value :
       {0.0, 1.0, -1.0, 5e-324, 1e-310, 1e308, -1e308, kNaN, kInfinity, -kInfinity, 1e17}) {
    for (const double other : {value, 0.0, -value, 1e-3}) {
      const Matrix<double> weights{{value, other}};
      const std::string svg = heatmap_svg(weights);
      EXPECT_TRUE(is_well_formed(svg)) << value << ' ' << other;
      EXPECT_EQ(cells_of(svg).size(), 2u) << value << ' ' << other;
    }
  }
  HeatmapOptions narrow;
  narrow.low = 1e17;
  narrow.high = 1e17 + 16;
  EXPECT_TRUE(is_well_formed(heatmap_svg(Matrix<double>{{1e17, 0}}, narrow)));
}

TEST(Heatmap, TicksOfTheBarAreRound) {
  const auto texts = [](double high) {
    HeatmapOptions options;
    options.high = high;
    options.show_values = false;
    options.x_label = options.y_label = "";
    auto all = texts_of(heatmap_svg(Matrix<double>(Matrix<double>::Zero(10, 10)), options));
    return std::vector<std::string>(all.begin() + 20, all.end());  // after ten rows and ten columns
  };
  EXPECT_EQ(texts(1), (std::vector<std::string>{"0", "0.2", "0.4", "0.6", "0.8", "1"}));
  EXPECT_EQ(texts(0.07), (std::vector<std::string>{"0", "0.02", "0.04", "0.06"}));
  EXPECT_EQ(texts(2500), (std::vector<std::string>{"0", "500", "1000", "1500", "2000", "2500"}));
}

TEST(Heatmap, NamesAreWrittenAndEscaped) {
  const Matrix<double> weights{{0, 1}, {1, 0}};
  HeatmapOptions options;
  options.title = "a < b & \"c\" > d";
  options.row_names = {"<pad>", "line\nbreak"};
  options.column_names = {"a rather long name", "Z\xc3\xbcrich"};
  const std::string svg = heatmap_svg(weights, options);
  EXPECT_TRUE(is_well_formed(svg));
  for (const char* text : {"a &lt; b &amp; &quot;c&quot; &gt; d", "&lt;pad&gt;", "line break",
                           "a rather long name", "Z\xc3\xbcrich"}) {
    EXPECT_TRUE(has_text(svg, text)) << text;
  }
}

TEST(Heatmap, TicksKeepTheirDistance) {
  const auto row_ticks = [](Index rows, const HeatmapOptions& options) {
    const Matrix<float> weights = Matrix<float>::Identity(rows, rows);
    std::vector<double> heights;
    for (const auto& element : all_between(heatmap_svg(weights, options), "<text", "</text>")) {
      if (element.find("text-anchor=\"end\"") == std::string::npos) continue;
      heights.push_back(std::stod(all_between(element, " y=\"", "\"").at(0)));
    }
    return heights;
  };
  for (const Index rows : {1, 2, 9, 10, 11, 40, 100, 256, 257, 1000}) {
    for (const double cell : {0.0, 1.0, 7.0}) {
      HeatmapOptions options;
      options.cell_size = cell;
      const auto heights = row_ticks(rows, options);
      ASSERT_FALSE(heights.empty());
      for (std::size_t i = 1; i < heights.size(); ++i) {
        EXPECT_GE(heights[i] - heights[i - 1], 14.9) << rows << ' ' << cell;
      }
    }
  }
  EXPECT_EQ(row_ticks(10, {}).size(), 10u);
}

TEST(Heatmap, ValuesWhereTheyFit) {
  const auto count = [](Index size, std::optional<bool> show) {
    HeatmapOptions options;
    options.show_values = show;
    const auto texts =
        texts_of(heatmap_svg(Matrix<double>(Matrix<double>::Constant(size, size, 0.125)), options));
    return std::count(texts.begin(), texts.end(), "0.12");
  };
  EXPECT_EQ(count(4, {}), 16);
  EXPECT_EQ(count(4, false), 0);
  EXPECT_EQ(count(30, {}), 0);
  EXPECT_EQ(count(30, true), 900);
}

TEST(Heatmap, EmptyWeightsAreLegal) {
  const std::string svgs[] = {
      heatmap_svg(Matrix<float>(3, 0)),          heatmap_svg(Matrix<float>(0, 3)),
      heatmap_svg(Matrix<float>(0, 0)),          heatmap_svg(Tensor<float, 3>(0, 2, 2)),
      heatmap_svg(Tensor<float, 4>(2, 0, 2, 2)), heatmap_svg(Tensor<float, 4>(2, 2, 0, 2))};
  for (const auto& svg : svgs) {
    EXPECT_TRUE(is_well_formed(svg));
    EXPECT_TRUE(has_text(svg, "empty"));
    EXPECT_TRUE(cells_of(svg).empty());
  }
}

TEST(Heatmap, BadOptionsAreRefusedWithTheirNumbers) {
  const Tensor<float, 3> weights = Tensor<float, 3>(2, 3, 4).setZero();
  const auto message = [&](auto&& change) {
    HeatmapOptions options;
    change(options);
    return message_of([&] { heatmap_svg(weights, options); });
  };
  EXPECT_EQ(message([](auto& o) { o.row_names = {"a", "b"}; }),
            "heed::heatmap_svg: 2 row_names for 3 rows");
  EXPECT_EQ(message([](auto& o) { o.column_names.resize(5); }),
            "heed::heatmap_svg: 5 column_names for 4 columns");
  EXPECT_EQ(message([](auto& o) { o.panel_names = {"a"}; }),
            "heed::heatmap_svg: 1 panel_names for 2 panels");
  EXPECT_EQ(message([](auto& o) { o.panels_per_row = -1; }),
            "heed::heatmap_svg: panels_per_row is -1, below 0");
  EXPECT_EQ(message([](auto& o) { o.max_cells = 0; }),
            "heed::heatmap_svg: max_cells is 0, below 1");
  EXPECT_EQ(message([](auto& o) { o.colors.clear(); }), "heed::heatmap_svg: colors is empty");
  for (const double size : {-1.0, kNaN, kInfinity, 1e-9}) {
    EXPECT_NE(message([&](auto& o) { o.cell_size = size; }).find("cell_size is"),
              std::string::npos);
  }
  for (const double end : {kNaN, kInfinity, -kInfinity}) {
    EXPECT_NE(message([&](auto& o) { o.low = end; }).find("range ends at"), std::string::npos);
    EXPECT_NE(message([&](auto& o) { o.high = end; }).find("range ends at"), std::string::npos);
  }
  EXPECT_NE(message([](auto& o) { o.low = o.high = 1; }).find("not below high"), std::string::npos);
}

TEST(Heatmap, TheUsersLocaleDoesNotMatter) {
  struct Comma : std::numpunct<char> {
    char do_decimal_point() const override { return ','; }
    std::string do_grouping() const override { return "\3"; }
    char do_thousands_sep() const override { return '.'; }
  };
  const Matrix<double> weights{{0.25, 1234.5}, {3, 7}};
  const std::string svg = heatmap_svg(weights);
  const std::locale before = std::locale::global(std::locale(std::locale::classic(), new Comma));
  const std::string again = heatmap_svg(weights);
  std::locale::global(before);
  EXPECT_EQ(again, svg);
}

class WriteSvg : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              ("heed_write_svg_" +
               std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()));
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  static std::string content(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  auto entries() const {
    return std::distance(std::filesystem::directory_iterator(folder_),
                         std::filesystem::directory_iterator());
  }
  std::string failure(const std::filesystem::path& path) const {
    try {
      write_svg(path, "<svg/>");
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "nothing was thrown";
  }

  std::filesystem::path folder_;
};

TEST_F(WriteSvg, WritesAndReplaces) {
  const auto path = folder_ / "a.svg";
  write_svg(path, "a longer first picture\n");
  EXPECT_EQ(content(path), "a longer first picture\n");
  write_svg(path.string(), "second");
  EXPECT_EQ(content(path), "second");
  EXPECT_EQ(entries(), 1);
}

TEST_F(WriteSvg, FailsWithThePathAndLeavesNothing) {
  const auto nowhere = folder_ / "missing" / "a.svg";
  EXPECT_NE(failure(nowhere).find(nowhere.string()), std::string::npos);
  EXPECT_EQ(entries(), 0);
  const auto directory = folder_ / "directory";
  std::filesystem::create_directory(directory);
  EXPECT_NE(failure(directory).find(directory.string()), std::string::npos);
  EXPECT_TRUE(std::filesystem::is_directory(directory));
  EXPECT_EQ(entries(), 1);
}

}  // namespace
}  // namespace heed::test
