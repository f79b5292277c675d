#include "heed/rotary.hpp"

#include <functional>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "allocation_support.hpp"
#include "support.hpp"

namespace heed::test {
namespace {

constexpr RotaryLayout half = RotaryLayout::half, interleaved = RotaryLayout::interleaved;
constexpr std::array<RotaryLayout, 2> layouts = {half, interleaved};

template <class Config>
concept NeedsNoLayout = requires { Config{.dim = 4, .base = 100}; };
static_assert(!std::is_default_constructible_v<RotaryConfig>);
static_assert(!NeedsNoLayout<RotaryConfig>);

// ---------------------------------------------------------------- by hand

// Base 100 and width 4: frequencies 1 and 100^(-2/4) = .1; angles 2 and .2 at position 2.
//   cos 2 = -.4161468365, sin 2 = .9092974268, cos .2 = .9800665778, sin .2 = .1986693308
TEST(Rotary, HalvesByHand) {
  Matrix<double> x(1, 4);
  x << 1, 2, 3, 4;
  const auto y = rotary(x, 2, {.base = 100, .layout = half});
  static_assert(std::is_same_v<decltype(y), const Matrix<double>>);
  EXPECT_NEAR(y(0, 0), -3.1440391170, 1e-9);  // 1 cos 2 - 3 sin 2
  EXPECT_NEAR(y(0, 1), 1.1654558325, 1e-9);   // 2 cos .2 - 4 sin .2
  EXPECT_NEAR(y(0, 2), -.3391430828, 1e-9);   // 3 cos 2 + 1 sin 2
  EXPECT_NEAR(y(0, 3), 4.3176049730, 1e-9);   // 4 cos .2 + 2 sin .2
}

TEST(Rotary, NeighboursByHand) {
  Matrix<double> x(1, 4);
  x << 1, 2, 3, 4;
  const auto y = rotary(x, 2, {.base = 100, .layout = interleaved});
  EXPECT_NEAR(y(0, 0), -2.2347416902, 1e-9);  // 1 cos 2 - 2 sin 2
  EXPECT_NEAR(y(0, 1), .0770037537, 1e-9);    // 2 cos 2 + 1 sin 2
  EXPECT_NEAR(y(0, 2), 2.1455224103, 1e-9);   // 3 cos .2 - 4 sin .2
  EXPECT_NEAR(y(0, 3), 4.5162743038, 1e-9);   // 4 cos .2 + 3 sin .2
}

// Width 2 of 3: the only frequency is 1, whatever the base. cos 1 = .5403023059, sin 1 =
// .8414709848; positions count from 0 and the third feature stays.
TEST(Rotary, PartOfTheWidthByHand) {
  Matrix<double> x(2, 3);
  x << 5, 6, 7, 1, 1, 9;
  for (const RotaryLayout layout : layouts) {
    const auto y = rotary(x, 0, {.dim = 2, .layout = layout});
    EXPECT_EQ(y.row(0), x.row(0));
    EXPECT_NEAR(y(1, 0), -.3011686789, 1e-9);  // .5403023059 - .8414709848
    EXPECT_NEAR(y(1, 1), 1.3817732907, 1e-9);  // .5403023059 + .8414709848
    EXPECT_EQ(y(1, 2), 9);
  }
}

/// Length and angle of each pair of (1, 0) at position p.
struct Turn {
  double length, angle;
};
std::vector<Turn> turns(const RotaryConfig& config, Index width, Index p = 1) {
  Matrix<double> x(1, width);
  x.setZero();
  const bool halves = config.layout == half;
  const Index pairs = width / 2;
  for (Index c = 0; c < pairs; ++c) x(0, halves ? c : 2 * c) = 1;
  const auto y = rotary(x, p, config);
  std::vector<Turn> result;
  for (Index c = 0; c < pairs; ++c) {
    const double a = y(0, halves ? c : 2 * c), b = y(0, halves ? c + pairs : 2 * c + 1);
    result.push_back({std::hypot(a, b), std::atan2(b, a)});
  }
  return result;
}

void expect_turns(const RotaryConfig& config, const std::vector<double>& angles, double length,
                  Index p = 1) {
  const auto found = turns(config, 2 * static_cast<Index>(angles.size()), p);
  for (std::size_t c = 0; c < angles.size(); ++c) {
    EXPECT_NEAR(found[c].angle, angles[c], 2e-9 * angles[c]) << "pair " << c;
    EXPECT_NEAR(found[c].length, length, 1e-9) << "pair " << c;
  }
}

// Base 10000 and width 8 throughout: frequencies 1, .1, .01, .001.
TEST(RotaryScaling, NoneByHand) {
  for (const RotaryLayout layout : layouts) {
    expect_turns({.layout = layout}, {1, .1, .01, .001}, 1);
    expect_turns({.layout = layout, .scaling = RotaryScaling::none()}, {1, .1, .01, .001}, 1);
  }
}

TEST(RotaryScaling, LinearByHand) {
  for (const RotaryLayout layout : layouts) {
    expect_turns({.layout = layout, .scaling = RotaryScaling::linear(4)},
                 {.25, .025, .0025, .00025}, 1);
  }
}

// Factor 8: the base becomes 10000 * 8^(8/6) = 160000, a fourth root of 1/20; the slowest pair is
// 8 times slower.
TEST(RotaryScaling, NtkByHand) {
  for (const RotaryLayout layout : layouts) {
    expect_turns({.layout = layout, .scaling = RotaryScaling::ntk(8)},
                 {1, 1 / 20., 1 / 400., 1 / 8000.}, 1);
  }
  // The one frequency of width 2 has no slower neighbour.
  expect_turns({.layout = half, .scaling = RotaryScaling::ntk(8)}, {1}, 1);
}

// Trained on 8: nothing changes up to position 7. At position 14 the length is 15 and the stretch
// 8 * 15/8 - 7 = 8. Positions below the largest of the call use its base as well.
TEST(RotaryScaling, DynamicNtkByHand) {
  const RotaryConfig config{.layout = half, .scaling = RotaryScaling::ntk(8, 8)};
  const auto at_seven = turns(config, 8, 7);
  EXPECT_NEAR(at_seven[1].angle, .7, 1e-12);
  EXPECT_NEAR(at_seven[3].angle, .007, 1e-12);
  const auto at_fourteen = turns(config, 8, 14);
  EXPECT_NEAR(at_fourteen[1].angle, 14 / 20., 1e-12);
  EXPECT_NEAR(at_fourteen[3].angle, 14 / 8000., 1e-12);
  Matrix<double> x = Matrix<double>::Zero(2, 8);
  x(0, 3) = 1;
  const auto y = rotary(x, std::vector<Index>{2, 14}, config);
  EXPECT_NEAR(std::atan2(y(0, 7), y(0, 3)), 2 / 8000., 1e-12);
}

// Trained on 4096: pair log10(4096 / (2 pi turns)) turns so often: 1.31 for 32, 2.81 for 1, so that
// the ramp leads from pair 1 to pair 3: 0, 0, 1/2, 1. With factor 4: 1, .1, .01 (.5 + .5/4) =
// .00625, .001/4. Attention factor .1 ln 4 + 1 = 1.1386294361.
TEST(RotaryScaling, YarnByHand) {
  for (const RotaryLayout layout : layouts) {
    const YarnConfig yarn{.factor = 4, .trained_length = 4096};
    expect_turns({.layout = layout, .scaling = RotaryScaling::yarn(yarn)}, {1, .1, .00625, .00025},
                 1.1386294361);
  }
  // Ends not rounded: low = log10(4096 / (64 pi)) = 1.3090302, high = log10(4096 / (2 pi)) =
  // 2.8141802; pair 2 stands at (2 - 1.3090302) / 1.5051500 = .4590704 of the ramp, and keeps
  // 1 - .4590704 * 3/4 = .6556972.
  const YarnConfig exact{
      .factor = 4, .trained_length = 4096, .attention_factor = 1.5, .whole_pairs = false};
  const auto found = turns({.layout = half, .scaling = RotaryScaling::yarn(exact)}, 8);
  EXPECT_NEAR(found[1].angle, .1, 1e-9);
  EXPECT_NEAR(found[2].angle, .006556972, 1e-8);
  EXPECT_NEAR(found[3].angle, .00025, 1e-9);
  EXPECT_NEAR(found[2].length, 1.5, 1e-12);
  // Betas 3 and 2.9: both ends fall between pairs 2 and 3 (2.337 and 2.352).
  const YarnConfig narrow{.factor = 4, .trained_length = 4096, .beta_fast = 3, .beta_slow = 2.9};
  expect_turns({.layout = half, .scaling = RotaryScaling::yarn(narrow)}, {1, .1, .01, .00025},
               1.1386294361);
}

// Where the ramp has no length, it is a step. Trained on 6: log10(6 / (2 pi)) = -.02 rounds up to
// 0, and so does the other end, from below: all pairs but pair 0 are slow. With 1 and 2 turns,
// log10(1 / (4 pi)) = -1.1 ends the ramp before it begins. Trained on 4e10, log10(4e10 / (64 pi)) =
// 8.3: all are fast.
TEST(RotaryScaling, YarnOfAllSlowOrAllFastByHand) {
  const auto with = [](const YarnConfig& yarn) {
    return RotaryConfig{.layout = half, .scaling = RotaryScaling::yarn(yarn)};
  };
  const double length = 1.1386294361;
  expect_turns(with({.factor = 4, .trained_length = 6}), {1, .025, .0025, .00025}, length);
  expect_turns(with({.factor = 4, .trained_length = 1, .beta_slow = 2}), {1, .025, .0025, .00025},
               length);
  expect_turns(with({.factor = 4, .trained_length = 40'000'000'000}), {1, .1, .01, .001}, length);
}

// Original length 1000, bands from 1 to 4 turns, factor 8. Turns 1000 / (2 pi) * (1, .1, .01, .001)
// = 159, 15.9, 1.5915494, .159: the first two stay, the last is divided, and the third keeps
// (1.5915494 - 1) / 3 = .1971831: .01 (.8028169 / 8 + .1971831) = .002975352.
TEST(RotaryScaling, Llama3ByHand) {
  for (const RotaryLayout layout : layouts) {
    const auto scaling = RotaryScaling::llama3(
        {.factor = 8, .low_freq_factor = 1, .high_freq_factor = 4, .original_length = 1000});
    const auto found = turns({.layout = layout, .scaling = scaling}, 8);
    EXPECT_NEAR(found[0].angle, 1, 1e-12);
    EXPECT_NEAR(found[1].angle, .1, 1e-12);
    EXPECT_NEAR(found[2].angle, .002975352, 1e-9);
    EXPECT_NEAR(found[3].angle, .000125, 1e-12);
    EXPECT_NEAR(found[2].length, 1, 1e-12);
  }
}

// Width 8 on two axes, base 100: pairs 0 and 1 turn by the row with frequencies 1 and .1 (those of
// width 4), pairs 2 and 3 by the column. Row 1, column 2: angles 1, .1, 2, .2.
TEST(Rotary, TwoAxesByHand) {
  Matrix<int> positions(1, 2);
  positions << 1, 2;
  const std::array<double, 4> angles = {1, .1, 2, .2};
  for (const RotaryLayout layout : layouts) {
    Matrix<double> x = Matrix<double>::Zero(1, 8);
    for (Index c = 0; c < 4; ++c) x(0, layout == half ? c : 2 * c) = 1;
    const auto y = rotary(x, positions, {.base = 100, .layout = layout, .axes = 2});
    for (Index c = 0; c < 4; ++c) {
      const double angle = angles[static_cast<std::size_t>(c)];
      EXPECT_NEAR(y(0, layout == half ? c : 2 * c), std::cos(angle), 1e-14);
      EXPECT_NEAR(y(0, layout == half ? c + 4 : 2 * c + 1), std::sin(angle), 1e-14);
    }
  }
}

// ---------------------------------------------------------------- against the definition

using Position = std::function<double(Index b, Index i, Index axis)>;

/// The definition in long double.
Reference expected(const Reference& x, const Position& position, Index dim, double base,
                   RotaryLayout layout, Index axes = 1, int direction = 1) {
  Reference result = x;
  const Index pairs = dim / 2, each = pairs / axes;
  for_each_index({x.dimension(0), x.dimension(1), x.dimension(2), pairs}, [&](Index b, Index h,
                                                                              Index i, Index c) {
    const long double exponent =
        -static_cast<long double>(c % std::max<Index>(each, 1)) / static_cast<long double>(each);
    const long double angle = direction * static_cast<long double>(position(b, i, c / each)) *
                              std::pow(static_cast<long double>(base), exponent);
    const long double cos = std::cos(angle), sin = std::sin(angle);
    const Index first = layout == half ? c : 2 * c, second = layout == half ? c + pairs : 2 * c + 1;
    const long double u = x(b, h, i, first), v = x(b, h, i, second);
    result(b, h, i, first) = static_cast<double>(u * cos - v * sin);
    result(b, h, i, second) = static_cast<double>(v * cos + u * sin);
  });
  return result;
}

/// Numbers up to 1: a sine and a cosine, two products and a sum, each rounded, and the result.
template <class Scalar>
double bound(double largest_position = 0) {
  using Real = std::conditional_t<std::is_same_v<Scalar, double>, double, float>;
  return 4 * epsilon<Real>() + 2 * largest_position * epsilon<double>() +
         (std::is_same_v<Real, Scalar> ? 0 : epsilon<Scalar>());
}

/// Positions far apart, near each other, equal, and negative.
Index scattered_position(Index b, Index i, Index axis) {
  return (i * 37 + b * 11 + axis * 5) % 101 - 30 + (i % 7 == 3 ? 3000 : 0);
}

template <class Scalar>
void expect_definition() {
  std::vector<Index> dims = {0, 2, 4, 6, 10};
  for (const Index n : {simd_lanes, 2 * simd_lanes, 4 * simd_lanes}) {
    for (const Index off : {-2, 0, 2, 6}) dims.push_back(n + off);
  }
  std::uint64_t seed = 1;
  for (const Index dim : dims) {
    for (const Index extra : {0, 1, 5}) {
      const Index width = dim + extra;
      if (dim == 0 && extra > 0) continue;  // dim 0 means all
      const Shape shape = {2, 3, 5 + static_cast<Index>(seed % 30), width};
      const auto x = rounded<Scalar>(random(shape, seed++));
      for (const RotaryLayout layout : layouts) {
        const RotaryConfig config{.dim = dim, .base = 500, .layout = layout};
        const auto counted = expected(
            x, [](Index, Index i, Index) { return static_cast<double>(i + 29); }, dim, 500, layout);
        EXPECT_TRUE(
            near(reference(rotary(make<Scalar, 4>(x), 29, config)), counted, bound<Scalar>(100)))
            << "width " << dim << " of " << width;
        EXPECT_TRUE(near(reference(rotary(make<Scalar, 4, Eigen::ColMajor>(x), 29U, config)),
                         counted, bound<Scalar>(100)));

        Eigen::Tensor<std::int32_t, 2, Eigen::ColMajor> positions(shape[0], shape[2]);
        for (Index b = 0; b < shape[0]; ++b) {
          for (Index i = 0; i < shape[2]; ++i) {
            positions(b, i) = static_cast<std::int32_t>(scattered_position(b, i, 0));
          }
        }
        const auto given = expected(
            x,
            [](Index b, Index i, Index) {
              return static_cast<double>(scattered_position(b, i, 0));
            },
            dim, 500, layout);
        EXPECT_TRUE(near(reference(rotary(make<Scalar, 4>(x), positions, config)), given,
                         bound<Scalar>(4000)));
        for (const auto& backwards : std::vector<std::vector<int>>{{}, {3}, {0, 2}}) {
          Scattered<Scalar> from(x, backwards), to(constant(shape, nan));
          const Index before = to.written();
          ASSERT_EQ(before, 0);
          rotary_into(to.view(), from.view(), positions, config);
          EXPECT_TRUE(near(reference(to.view()), given, bound<Scalar>(4000)));
          EXPECT_EQ(to.written(), x.size()) << "written outside";
        }
      }
    }
  }
}

TEST(Rotary, IsTheDefinition) {
  expect_definition<float>();
  expect_definition<double>();
  expect_definition<Eigen::half>();
  expect_definition<Eigen::bfloat16>();
}

TEST(Rotary, RanksTwoAndThreeAndPositionsOfEveryKind) {
  const auto x = random({3, 1, 4, 12}, 7);
  const std::vector<int> list = {5, 900, -3, 5};
  const auto given = expected(
      x, [&](Index, Index i, Index) { return list[static_cast<std::size_t>(i)]; }, 12, 10000, half);
  const RotaryConfig config{.layout = half};
  const auto t = make<double, 3>(x);
  const Eigen::Vector4i column(5, 900, -3, 5);
  const Eigen::RowVector4i row(5, 900, -3, 5);
  Tensor<std::int64_t, 1> tensor(4);
  for (Index i = 0; i < 4; ++i) tensor(i) = list[static_cast<std::size_t>(i)];
  Matrix<short> every(3, 4);
  every.rowwise() = row.cast<short>();
  const double limit = bound<double>(1000);
  EXPECT_TRUE(near(reference(rotary(t, list, config)), given, limit));
  EXPECT_TRUE(near(reference(rotary(t, std::array{5, 900, -3, 5}, config)), given, limit));
  EXPECT_TRUE(near(reference(rotary(t, column, config)), given, limit));
  EXPECT_TRUE(near(reference(rotary(t, row, config)), given, limit));
  EXPECT_TRUE(near(reference(rotary(t, column.head(4), config)), given, limit));
  EXPECT_TRUE(near(reference(rotary(t, tensor, config)), given, limit));
  EXPECT_TRUE(near(reference(rotary(t, every, config)), given, limit));
  EXPECT_TRUE(near(reference(rotary(t, view(every), config)), given, limit));

  const auto one = random({1, 1, 4, 12}, 8);
  const auto of_one = expected(
      one, [&](Index, Index i, Index) { return list[static_cast<std::size_t>(i)]; }, 12, 10000,
      half);
  EXPECT_TRUE(near(reference(rotary(make<double, 2>(one), list, config)), of_one, limit));
  Eigen::MatrixXd columns = make<double, 2, Eigen::ColMajor>(one);
  rotary_into(columns, columns, list, config);
  EXPECT_TRUE(near(reference(columns), of_one, limit));
}

TEST(Rotary, TwoAxesAreTheDefinition) {
  for (const Index dim : {4, 8, 20, 64}) {
    const Shape shape = {2, 2, 40, dim + 3};
    const auto x = random(shape, static_cast<std::uint64_t>(dim));
    Tensor<int, 3> positions(2, 40, 2);
    for (Index b = 0; b < 2; ++b) {
      for (Index i = 0; i < 40; ++i) {
        for (Index axis = 0; axis < 2; ++axis) {
          positions(b, i, axis) = static_cast<int>(scattered_position(b, i, axis));
        }
      }
    }
    Matrix<int> shared(40, 2);
    for (Index i = 0; i < 40; ++i)
      shared.row(i) << static_cast<int>(i / 8), static_cast<int>(i % 8);
    for (const RotaryLayout layout : layouts) {
      const RotaryConfig config{.dim = dim, .base = 100, .layout = layout, .axes = 2};
      EXPECT_TRUE(near(reference(rotary(make<double, 4>(x), positions, config)),
                       expected(
                           x,
                           [](Index b, Index i, Index axis) {
                             return static_cast<double>(scattered_position(b, i, axis));
                           },
                           dim, 100, layout, 2),
                       bound<double>(4000)));
      EXPECT_TRUE(near(reference(rotary(make<double, 4>(x), shared, config)),
                       expected(
                           x,
                           [](Index, Index i, Index axis) {
                             return static_cast<double>(axis == 0 ? i / 8 : i % 8);
                           },
                           dim, 100, layout, 2),
                       bound<double>(10)));
    }
  }
}

// Rounding to float is all that a cosine of float may be off by, and in double the angle's own
// rounding, 1 part in 2^53 of it for the frequency and for the product.
TEST(Rotary, IsAccurateAtPositionsUpToAMillion) {
  constexpr Index width = 128;
  for (const Index p : {1'000'000, 999'983, 524'287, 65'537, 31}) {
    for (const RotaryLayout layout : layouts) {
      Reference x = constant({1, 1, 1, width}, 0);
      for (Index c = 0; c < width / 2; ++c) x(0, 0, 0, layout == half ? c : 2 * c) = 1;
      const auto exact =
          expected(x, [p](auto...) { return static_cast<double>(p); }, width, 10000, layout);
      const double of_angle = static_cast<double>(p) * epsilon<double>();
      const RotaryConfig config{.layout = layout};
      EXPECT_TRUE(near(reference(rotary(make<float, 2>(x), p, config)), exact,
                       epsilon<float>() / 4 + 2 * of_angle));
      EXPECT_TRUE(near(reference(rotary(make<double, 2>(x), p, config)), exact,
                       4 * epsilon<double>() + 2 * of_angle));
    }
  }
}

// ---------------------------------------------------------------- identities

TEST(Rotary, ProductsDependOnDifferencesOfPositions) {
  const auto q = make<double, 2>(random({1, 1, 1, 24}, 1)),
             k = make<double, 2>(random({1, 1, 1, 24}, 2));
  for (const RotaryLayout layout : layouts) {
    const RotaryConfig config{.dim = 20, .layout = layout};
    const auto product = [&](Index i, Index j) {
      return rotary(q, i, config).row(0).dot(rotary(k, j, config).row(0));
    };
    const double near_zero = product(7, 3);
    EXPECT_NEAR(product(1007, 1003), near_zero, 1e-11);
    EXPECT_NEAR(product(4, 0), near_zero, 1e-13);
    EXPECT_NEAR(product(-96, -100), near_zero, 1e-12);
    EXPECT_GT(std::abs(product(3, 7) - near_zero), 1e-3);
  }
}

TEST(Rotary, LayoutsDifferByAPermutationOfFeatures) {
  constexpr Index dim = 38, pairs = dim / 2;
  const auto x = random({2, 2, 9, dim + 1}, 3);
  const auto apart = generate(x.dimensions(), [&](Index b, Index h, Index i, Index j) {
    return x(b, h, i, j == dim ? j : j < pairs ? 2 * j : 2 * (j - pairs) + 1);
  });
  const auto a = reference(rotary(make<float, 4>(x), 11, {.dim = dim, .layout = interleaved}));
  const auto b = reference(rotary(make<float, 4>(apart), 11, {.dim = dim, .layout = half}));
  const auto back = generate(x.dimensions(), [&](Index n, Index h, Index i, Index j) {
    return b(n, h, i, j == dim ? j : j % 2 ? j / 2 + pairs : j / 2);
  });
  EXPECT_TRUE(near(a, back, bound<float>()));
}

/// Every scaling, with amplitudes that are not 1 among them.
std::vector<RotaryConfig> configurations() {
  std::vector<RotaryConfig> result;
  for (const RotaryLayout layout : layouts) {
    for (const auto& scaling :
         {RotaryScaling::none(), RotaryScaling::linear(3), RotaryScaling::ntk(2),
          RotaryScaling::ntk(2, 10), RotaryScaling::yarn({.factor = 4, .trained_length = 20}),
          RotaryScaling::llama3({.factor = 8, .original_length = 30})}) {
      result.push_back({.dim = 12, .base = 50, .layout = layout, .scaling = scaling});
    }
  }
  return result;
}

// <R x, y> = <x, R^T y> for all x and y. R^T R is the square of the amplitude, of rotated features.
TEST(RotaryBackward, IsTheTranspose) {
  for (const RotaryConfig& config : configurations()) {
    const auto x = make<double, 4>(random({2, 2, 17, 15}, 4)),
               y = make<double, 4>(random({2, 2, 17, 15}, 5));
    const auto rotated = rotary(x, 40, config), back = rotary_backward(y, 40, config);
    double left = 0, right = 0;
    for (Index n = 0; n < x.size(); ++n) {
      left += rotated.data()[n] * y.data()[n];
      right += x.data()[n] * back.data()[n];
    }
    EXPECT_NEAR(left, right, 1e-12);
    const auto round = rotary_backward(rotated, 40, config);
    const double square = config.scaling.amplitude() * config.scaling.amplitude();
    const auto wanted = reference(x);
    EXPECT_TRUE(near(reference(round),
                     generate({2, 2, 17, 15},
                              [&](Index b, Index h, Index i, Index j) {
                                return wanted(b, h, i, j) * (j < 12 ? square : 1);
                              }),
                     1e-13));
    auto into = y;
    rotary_backward_into(into, into, 40, config);
    EXPECT_TRUE(same(reference(into), reference(back)));
  }
}

TEST(RotaryBackward, IsTheSlope) {
  for (const RotaryConfig& config : configurations()) {
    const auto g = make<double, 2>(random({1, 1, 3, 14}, 6));
    auto x = make<double, 2>(random({1, 1, 3, 14}, 7));
    const auto gradient = rotary_backward(g, std::vector<int>{3, 50, 7}, config);
    const auto loss = [&] {
      return rotary(x, std::vector<int>{3, 50, 7}, config).cwiseProduct(g).sum();
    };
    for (Index i = 0; i < 3; ++i) {
      for (Index j = 0; j < 14; ++j) {
        const double old = x(i, j);
        x(i, j) = old + .5;  // the loss is linear
        const double up = loss();
        x(i, j) = old - .5;
        const double down = loss();
        x(i, j) = old;
        EXPECT_NEAR(gradient(i, j), up - down, 1e-12);
      }
    }
  }
}

TEST(Rotary, ATokenByItselfIsTheTokenAmongOthers) {
  const auto x = random({1, 2, 150, 22}, 8);
  for (const RotaryLayout layout : layouts) {
    const RotaryConfig config{.layout = layout,
                              .scaling = RotaryScaling::yarn({.factor = 2, .trained_length = 64})};
    const auto all = reference(rotary(make<float, 4>(x), 1000, config));
    for (const Index i : {0, 1, 23, 24, 77, 149}) {
      EXPECT_TRUE(same(reference(rotary(make<float, 4>(rows(x, i, i + 1)), 1000 + i, config)),
                       rows(all, i, i + 1)));
    }
  }
}

TEST(Rotary, ThreadsChangeNothing) {
  Eigen::ThreadPool pool(3);
  const auto x = make<float, 4>(random({3, 2, 77, 22}, 9));
  Matrix<int> positions(3, 77);
  for (Index b = 0; b < 3; ++b) {
    for (Index i = 0; i < 77; ++i) positions(b, i) = static_cast<int>(scattered_position(b, i, 0));
  }
  for (const RotaryConfig& config : configurations()) {
    EXPECT_TRUE(same(reference(rotary(x, 5, config, &pool)), reference(rotary(x, 5, config))));
    EXPECT_TRUE(same(reference(rotary(x, positions, config, &pool)),
                     reference(rotary(x, positions, config))));
  }
}

// ---------------------------------------------------------------- where it is written

template <class Scalar>
void expect_in_place() {
  for (const Index width : {6, 17, 32, 70}) {
    const auto x = random({2, 3, 20, width}, 10);
    for (const RotaryLayout layout : layouts) {
      const RotaryConfig config{.dim = width / 2 * 2, .layout = layout};
      const auto apart = reference(rotary(make<Scalar, 4>(x), 3, config));
      auto own = make<Scalar, 4>(x);
      rotary_into(own, own, 3, config);
      EXPECT_TRUE(same(reference(own), apart));
      Scattered<Scalar> strided(x, {3});
      rotary_into(strided.view(), strided.view(), 3, config);
      EXPECT_TRUE(same(reference(strided.view()), apart));
      EXPECT_EQ(strided.written(), x.size());
    }
  }
}

TEST(Rotary, InPlaceIsNotInPlace) {
  expect_in_place<float>();
  expect_in_place<double>();
  expect_in_place<Eigen::half>();
  expect_in_place<Eigen::bfloat16>();
}

TEST(Rotary, TurnsTheHeadsOfOnePackedProjection) {
  auto packed = make<float, 3>(random({2, 1, 5, 24}, 11));
  const auto before = reference(packed);
  auto q = split_heads(packed, 6);
  q.shape[1] = 2;  // heads 0 and 1 of query, key and value, two each
  const auto wanted = reference(rotary(q, 9, {.layout = half}));
  rotary_into(q, q, 9, {.layout = half});
  EXPECT_TRUE(same(reference(q), wanted));
  const auto after = reference(packed);
  for_each_index({2, 1, 5, 24}, [&](Index b, Index, Index i, Index j) {
    if (j < 8) return;
    EXPECT_EQ(after(b, 0, i, j), before(b, 0, i, j));
  });
}

TEST(Rotary, EmptyInputsGiveEmptyResults) {
  for (const Shape& shape : {Shape{0, 2, 3, 4}, {2, 0, 3, 4}, {2, 2, 0, 4}, {2, 2, 3, 0}}) {
    const Tensor<float, 4> x(shape);
    EXPECT_EQ(rotary(x, 0, {.layout = half}).size(), 0);
    EXPECT_EQ(rotary_backward(x, 0, {.layout = interleaved}).size(), 0);
  }
}

TEST(Rotary, FeaturesBeyondAreCopiedAsTheyAre) {
  Matrix<float> x = Matrix<float>::Constant(3, 7, std::numeric_limits<float>::infinity());
  x.leftCols(4).setOnes();
  x(1, 6) = std::numeric_limits<float>::quiet_NaN();
  const auto y = rotary(x, 5, {.dim = 4, .layout = interleaved});
  EXPECT_TRUE(y.leftCols(4).allFinite());
  EXPECT_TRUE(std::isinf(y(0, 4)) && std::isinf(y(2, 6)));
  EXPECT_TRUE(std::isnan(y(1, 6)));
}

#ifdef HEED_TEST_COUNTS_ALLOCATIONS
template <class Scalar>
void expect_no_allocation() {
  const auto x = make<Scalar, 4>(random({2, 3, 50, 40}, 12));
  auto out = x;
  const std::vector<Index> positions(50, 7);
  for (const RotaryConfig& config : configurations()) {
    const auto call = [&] {
      rotary_into(out, x, 12, config);
      rotary_into(out, x, positions, config);
      rotary_into(out, out, 12, config);
      rotary_backward_into(out, x, 12, config);
    };
    call();
    EXPECT_EQ(allocations_of(call), 0);
  }
}

TEST(Rotary, ASecondCallAllocatesNothing) {
  expect_no_allocation<float>();
  expect_no_allocation<double>();
  expect_no_allocation<Eigen::half>();
}
#endif

// ---------------------------------------------------------------- what is refused

TEST(Rotary, RefusesConfigurationsThatDoNotFit) {
  const auto x = make<float, 4>(random({2, 3, 5, 6}, 13));
  const auto with = [&](const RotaryConfig& config) {
    return [&x, config] { rotary(x, 0, config); };
  };
  EXPECT_TRUE(refuses(with({.dim = 3, .layout = half}), {"heed::rotary: ", "3", "multiple of 2"}));
  EXPECT_TRUE(refuses(with({.dim = 8, .layout = half}), {"heed::rotary: ", "8", "last axis", "6"}));
  EXPECT_TRUE(refuses(with({.dim = -2, .layout = half}), {"heed::rotary: ", "negative", "-2"}));
  EXPECT_TRUE(refuses(with({.layout = half, .axes = 3}), {"heed::rotary: ", "axes", "3"}));
  EXPECT_TRUE(refuses(with({.layout = static_cast<RotaryLayout>(2)}), {"layout", "2"}));
  for (const double base : {nan, infinity, 0., -5., 1.}) {
    EXPECT_TRUE(refuses(with({.base = base, .layout = half}), {"heed::rotary: ", "base"})) << base;
  }
  const auto odd = make<float, 4>(random({2, 3, 5, 7}, 13));
  EXPECT_TRUE(refuses([&] { rotary(odd, 0, {.layout = half}); }, {"7", "multiple of 2"}));
  EXPECT_TRUE(
      refuses([&] { rotary_backward(odd, 0, {.layout = half}); }, {"heed::rotary_backward: "}));
  const Matrix<int> image = Matrix<int>::Zero(5, 2);
  EXPECT_TRUE(refuses([&] { rotary(x, image, {.layout = half, .axes = 2}); },
                      {"6", "multiple of 4", "2 axes"}));
}

TEST(Rotary, RefusesPositionsThatDoNotFitAndWritesNothing) {
  const auto x = make<float, 4>(random({2, 3, 5, 8}, 14));
  Tensor<float, 4> out(2, 3, 5, 8);
  out.setConstant(4);
  const RotaryConfig line{.layout = half}, image{.layout = half, .axes = 2};
  const auto at = [&](const auto& positions, const RotaryConfig& config) {
    return [&out, &x, positions, config] { rotary_into(out, x, positions, config); };
  };
  const std::string function = "heed::rotary_into: ";
  EXPECT_TRUE(refuses(at(std::vector<int>(4), line), {function, "4 in axis 0", "5"}));
  EXPECT_TRUE(refuses(at(std::vector<int>(6), line), {function, "6 in axis 0", "5"}));
  EXPECT_TRUE(refuses(at(Matrix<int>::Zero(3, 5).eval(), line), {function, "3 in axis 0", "2"}));
  EXPECT_TRUE(refuses(at(Matrix<int>::Zero(2, 4).eval(), line), {function, "4 in axis 1", "5"}));
  EXPECT_TRUE(refuses(at(Matrix<int>::Zero(1, 5).eval(), line), {function, "1 in axis 0", "2"}));
  EXPECT_TRUE(refuses(at(Matrix<int>::Zero(5, 3).eval(), image), {function, "3 in axis 1", "2"}));
  EXPECT_TRUE(refuses(at(0, image), {function, "first position", "2"}));
  EXPECT_TRUE(refuses(at(std::vector<int>(5), image), {function, "(5)", "(seq, 2)"}));
  Tensor<int, 3> both(2, 5, 2);
  both.setZero();
  EXPECT_TRUE(refuses(at(both, line), {function, "(2, 5, 2)", "(batch, seq)"}));
  EXPECT_TRUE(refuses(at(0, {.dim = 5, .layout = half}), {function, "5"}));
  EXPECT_TRUE(same(reference(out), constant({2, 3, 5, 8}, 4)));
}

TEST(Rotary, RefusesOutputsThatOverlap) {
  std::vector<float> memory(200, 1.F);
  const View<float, 2> x{memory.data(), {5, 8}, {8, 1}};
  const auto to = [&](View<float, 2> out) {
    return [&x, out] { rotary_into(out, x, 3, {.layout = half}); };
  };
  EXPECT_TRUE(refuses(to({memory.data() + 1, {5, 8}, {8, 1}}), {"shares elements"}));
  EXPECT_TRUE(refuses(to({memory.data(), {5, 8}, {16, 1}}), {"shares elements"}));
  EXPECT_TRUE(refuses(to({memory.data() + 100, {5, 8}, {0, 1}}), {"cannot be written"}));
  EXPECT_TRUE(refuses(to({memory.data() + 100, {4, 8}, {8, 1}}), {"(4, 8)", "(5, 8)"}));
  EXPECT_EQ(std::count(memory.begin(), memory.end(), 1.F), 200);
}

TEST(RotaryScaling, RefusesNumbersWithoutMeaning) {
  for (const double factor : {0., .5, -2., nan, infinity}) {
    EXPECT_TRUE(refuses([&] { RotaryScaling::linear(factor); }, {"linear", "factor"}));
    EXPECT_TRUE(refuses([&] { RotaryScaling::ntk(factor); }, {"ntk", "factor"}));
    EXPECT_TRUE(refuses([&] { RotaryScaling::ntk(factor, 8); }, {"ntk", "factor"}));
    EXPECT_TRUE(refuses([&] { RotaryScaling::yarn({.factor = factor, .trained_length = 8}); },
                        {"yarn", "factor"}));
    EXPECT_TRUE(refuses([&] { RotaryScaling::llama3({.factor = factor, .original_length = 8}); },
                        {"llama3", "factor"}));
  }
  EXPECT_TRUE(refuses([] { RotaryScaling::ntk(2, 0); }, {"ntk", "trained length", "0"}));
  EXPECT_TRUE(refuses([] { RotaryScaling::yarn({.factor = 2}); }, {"yarn", "trained length"}));
  EXPECT_TRUE(refuses([] { RotaryScaling::llama3({.factor = 2}); }, {"llama3", "original length"}));
  EXPECT_TRUE(refuses(
      [] {
        RotaryScaling::yarn({.factor = 2, .trained_length = 8, .beta_fast = 1, .beta_slow = 1});
      },
      {"yarn", "beta_slow < beta_fast"}));
  EXPECT_TRUE(refuses(
      [] { RotaryScaling::yarn({.factor = 2, .trained_length = 8, .attention_factor = nan}); },
      {"yarn", "attention factor"}));
  EXPECT_TRUE(refuses(
      [] { RotaryScaling::llama3({.factor = 2, .low_freq_factor = 4, .original_length = 8}); },
      {"llama3", "low_freq_factor < high_freq_factor"}));
}

}  // namespace
}  // namespace heed::test
