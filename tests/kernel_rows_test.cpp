#include "heed/kernel/pack.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/kernel/softmax_row.hpp"
#include "support.hpp"

/// Rows where they lie or copied, and the softmax of one, around the lengths of registers.
namespace heed::detail {
namespace {

using L = Lanes<float>;
constexpr Index n = L::size;
constexpr float inf = std::numeric_limits<float>::infinity();
const float not_a_number = std::numeric_limits<float>::quiet_NaN();

constexpr std::size_t at(Index i) { return static_cast<std::size_t>(i); }

/// 0, 1, 2, ... as any number type that holds them.
template <class T>
std::vector<T> counting(Index count) {
  std::vector<T> result;
  for (Index i = 0; i < count; ++i) result.push_back(T(static_cast<float>(i)));
  return result;
}

TEST(Rows, OfAnEmptyTensorAreNowhereButNotRead) {
  const Slab<const float> empty{nullptr, 5, 1};
  EXPECT_EQ(empty.at(0, 0), nullptr);
  EXPECT_EQ(rows_of<float>(empty, 0, 0, 5, true, nullptr).data, nullptr);
  float panel[at(n)];
  pack_lanes(empty, 0, 0, 0, n, panel);
  pack_features<Panels<float>>(empty, 0, 0, 5, 1, panel);
}

TEST(Rows, InPlaceOrCopied) {
  // Element (r, c) of rows of n + 3 is r (n + 3) + c; turned, of columns of 4, it is r + 4 c.
  const Index width = n + 3;
  const auto numbers = counting<float>(4 * width);
  std::vector<float> buffer(at(2 * width));
  const Slab<const float> straight{numbers.data(), width, 1}, turned{numbers.data(), 1, 4};
  const auto in_place = rows_of(straight, 1, 2, width, true, buffer.data());
  EXPECT_EQ(in_place.data, numbers.data() + width);
  for (const bool strided : {false, true}) {
    const auto copy = rows_of(strided ? turned : straight, 1, 2, width, false, buffer.data());
    EXPECT_EQ(copy.data, buffer.data());
    for (Index r = 0; r < 2; ++r) {
      for (Index c = 0; c < width; ++c) {
        EXPECT_EQ(copy[r][c], static_cast<float>(strided ? 1 + r + 4 * c : (1 + r) * width + c));
      }
    }
  }
  const auto halves = counting<Eigen::half>(2 * width);
  const auto widened =
      rows_of(Slab<const Eigen::half>{halves.data(), width, 1}, 0, 2, width, true, buffer.data());
  for (Index c = 0; c < 2 * width; ++c) EXPECT_EQ(widened.data[c], static_cast<float>(c));
}

TEST(Rows, FiniteInEveryPlace) {
  for (const Index width : {Index(0), Index(1), n - 1, n, 2 * n + 1}) {
    auto row = counting<float>(2 * width);
    if (width > 0) row[0] = 3e38F;
    const Rows<float> rows{row.data(), width};
    EXPECT_TRUE(all_finite(rows, 2, width));
    for (Index c = 0; c < width; ++c) {
      for (const float bad : {inf, -inf, not_a_number}) {
        row[at(width + c)] = bad;
        EXPECT_FALSE(all_finite(rows, 2, width)) << c << " of " << width;
        EXPECT_TRUE(all_finite(rows, 1, width));
        row[at(width + c)] = 0;
      }
    }
  }
}

TEST(Rows, Dot) {
  // sum over c < w of c c = (w - 1) w (2 w - 1) / 6.
  for (const Index width : {Index(1), n - 1, n, 2 * n + 3}) {
    const auto x = counting<float>(width);
    const auto y = counting<Eigen::bfloat16>(width);
    std::vector<float> apart(at(3 * width));
    for (Index c = 0; c < width; ++c) apart[at(3 * c)] = static_cast<float>(c);
    const auto expected = static_cast<float>((width - 1) * width * (2 * width - 1) / 6);
    const Slab<const float> a{x.data(), width, 1}, b{apart.data(), 1, 3};
    const Slab<const Eigen::bfloat16> narrow{y.data(), width, 1};
    EXPECT_EQ(row_dot<float>(a, a, 0, width), expected);
    EXPECT_EQ(row_dot<float>(a, b, 0, width), expected);
    EXPECT_EQ(row_dot<float>(a, narrow, 0, width), expected);
  }
}

// Scores of 0, -1 and -2 digits in turn, and a constant: e^-ln2 = 1/2. With c and f constants,
// softmax is 4/7, 2/7, 1/7 of a third of the row each, wherever the scores lie.
TEST(SoftmaxRow, WhereverTheScoresLie) {
  const Index count = 3 * (3 * n + 1);
  const double ln2 = std::log(2.);
  for (const double offset : {0., -700., 1000., 1023.5, -1500., 3e6}) {
    std::vector<float> scores, row(at(count));
    for (Index j = 0; j < count; ++j) {
      scores.push_back(static_cast<float>(offset - static_cast<double>(j % 3) * ln2));
    }
    softmax_row(scores.data(), row.data(), row.data(), count);
    double total = 0;
    for (const float s : scores) {
      total += std::exp(static_cast<double>(s) - static_cast<double>(scores[0]));
    }
    for (Index j = 0; j < count; ++j) {
      const double exact =
          std::exp(static_cast<double>(scores[at(j)]) - static_cast<double>(scores[0])) / total;
      EXPECT_NEAR(static_cast<double>(row[at(j)]), exact, 3e-7 * exact) << offset << ' ' << j;
      if (offset == 0) {
        EXPECT_NEAR(exact, (j % 3 == 0 ? 4. : j % 3 == 1 ? 2. : 1.) * 3 / 7 / double(count), 1e-7);
      }
    }
  }
}

TEST(SoftmaxRow, Extremes) {
  const auto softmax = [](std::vector<float> x) {
    softmax_row(x.data(), x.data(), x.data(), static_cast<Index>(x.size()));
    return x;
  };
  // Two of the largest share, what is far below has nothing.
  for (const float far : {-inf, -3e38F, -1000.F, -120.F}) {
    std::vector<float> x(at(5 * n + 2), far), expected(x.size(), 0);
    x[1] = x.back() = 7;
    expected[1] = expected.back() = .5F;
    if (far == -120.F) {
      EXPECT_EQ(softmax(x)[1], .5F);  // the others are below the smallest normal number
    } else {
      EXPECT_EQ(softmax(x), expected) << far;
    }
  }
  for (const float x : softmax(std::vector<float>(at(4 * n + 1), -inf))) EXPECT_EQ(x, 0);
  for (const float all : {3e38F, -3e38F, 1024.F, -1e-40F}) {
    for (const float x : softmax(std::vector<float>(at(4 * n), all))) {
      EXPECT_EQ(x, 1 / static_cast<float>(4 * n)) << all;
    }
  }
  std::vector<float> bad(at(4 * n + 3), 1);
  bad[at(n)] = not_a_number;
  for (const float x : softmax(bad)) EXPECT_TRUE(std::isnan(x));
}

TEST(SoftmaxRow, Backwards) {
  // p (g - sum p g), where p = 0 nothing, whatever g is.
  for (const Index count : {Index(1), n, 2 * n + 1, 5 * n}) {
    std::vector<float> p(at(count), 1 / static_cast<float>(count)), g = counting<float>(count),
                                                                    d(at(count));
    p[at(count / 2)] = 0;
    g[at(count / 2)] = not_a_number;
    double sum = 0;
    for (Index j = 0; j < count; ++j) {
      if (j != count / 2) sum += static_cast<double>(p[at(j)]) * static_cast<double>(g[at(j)]);
    }
    softmax_backward_row(p.data(), g.data(), d.data(), count);
    for (Index j = 0; j < count; ++j) {
      const double exact =
          j == count / 2 ? 0
                         : static_cast<double>(p[at(j)]) * (static_cast<double>(g[at(j)]) - sum);
      EXPECT_TRUE(std::abs(static_cast<double>(d[at(j)]) - exact) <= 2e-6) << j << " of " << count;
    }
  }
}

}  // namespace
}  // namespace heed::detail
