#include "heed/simd/dual.hpp"
#include "heed/simd/math.hpp"
#include "support.hpp"

namespace heed::test {
namespace {

using detail::Dual;
using detail::Lanes;
using D = Dual<double, 1>;

/// f runs on a number, on a dual and on duals of lanes; the slope is the central difference.
template <class F>
void expect_derivative(const F& f, std::initializer_list<double> points) {
  for (double x : points) {
    const D y = f(D::variable(x, 0));
    constexpr double step = 1e-6;
    const double expected = (f(x + step) - f(x - step)) / (2 * step);
    EXPECT_NEAR(y.value, f(x), 1e-15 * std::abs(y.value));
    EXPECT_NEAR(y.slopes[0], expected, 1e-8 * (1 + std::abs(expected))) << "at " << x;

    using L = Lanes<double>;
    using LaneDual = Dual<L, 1>;
    const LaneDual lanes = f(LaneDual::variable(L(x), 0));
    double values[L::size], slopes[L::size];
    lanes.value.store(values);
    lanes.slopes[0].store(slopes);
    for (Index lane = 0; lane < L::size; ++lane) {
      EXPECT_NEAR(values[lane], y.value, 1e-14 * (1 + std::abs(y.value)));
      EXPECT_NEAR(slopes[lane], y.slopes[0], 1e-14 * (1 + std::abs(y.slopes[0])));
    }
  }
}

TEST(Dual, Arithmetic) {
  expect_derivative([](auto x) { return x * x * 3 - 2 / x + (x - 1) / (x * x + 2) - x / 4; },
                    {-2., .3, 5.});
  expect_derivative([](auto x) { return -x + 7 - (+x) * 2.5f + (1 - x) * (1 - x); }, {-2., .3});
  expect_derivative(
      [](auto x) {
        auto y = x;
        y += x;
        y *= 3;
        y -= 1;
        y /= x;
        return y;
      },
      {-2., .3});
}

TEST(Dual, Functions) {
  expect_derivative(
      [](auto x) {
        using std::exp;
        return exp(x * 2);
      },
      {-3., 0., 1.});
  expect_derivative(
      [](auto x) {
        using std::log;
        return log(x * x);
      },
      {-3., .1, 1.});
  expect_derivative(
      [](auto x) {
        using std::log1p;
        return log1p(x);
      },
      {-.5, 0., 3.});
  expect_derivative(
      [](auto x) {
        using std::tanh;
        return tanh(x);
      },
      {-3., 0., .4});
  expect_derivative(
      [](auto x) {
        using std::sin, std::cos;
        return sin(x) * cos(2 * x);
      },
      {-3., 0., .4});
  expect_derivative(
      [](auto x) {
        using std::erf;
        return erf(x);
      },
      {-1., 0., .4});
  expect_derivative(
      [](auto x) {
        using std::sqrt;
        return sqrt(x);
      },
      {.1, 4.});
  expect_derivative(
      [](auto x) {
        using std::abs;
        return abs(x) * x;
      },
      {-3., .4});
  expect_derivative(
      [](auto x) {
        using std::floor;
        return x * floor(x);
      },
      {-3.4, .4});
  expect_derivative(
      [](auto x) {
        using std::pow;
        return pow(x, 3) + pow(x, .5) + pow(x, 0);
      },
      {.4, 2.});
}

TEST(Dual, ChoicesFollowTheValue) {
  expect_derivative(
      [](auto x) {
        using std::max, std::min;
        return max(x, decltype(x)(.5)) * 2 + min(x * x, decltype(x)(2));
      },
      {-3., .4, .6, 1.5});
  expect_derivative([](auto x) { return select(x > 1, x * x, 2 * x); }, {-3., 1.5});
  expect_derivative([](auto x) { return select(x <= 1, decltype(x)(4), x); }, {-3., 1.5});
  const D x = D::variable(2, 0);
  EXPECT_EQ(select(x < 3, 1, x * x).slopes[0], 0);
  EXPECT_EQ(select(x >= 3, 1, x * x).slopes[0], 4);
  EXPECT_EQ(max(x, 1).slopes[0], 1);
  EXPECT_EQ(max(x, 5).slopes[0], 0);
  EXPECT_TRUE(x == 2 && x != 3 && x > 1 && !(x > 2));
}

// f(x, y) = x y^2 + x: (y^2 + 1, 2 x y) at (3, 5).
TEST(Dual, TwoVariables) {
  using D2 = Dual<double, 2>;
  const D2 x = D2::variable(3, 0), y = D2::variable(5, 1), f = x * y * y + x;
  EXPECT_EQ(f.value, 78);
  EXPECT_EQ(f.slopes[0], 26);
  EXPECT_EQ(f.slopes[1], 30);
}

// At a kink or a tip the derivative is taken as 0, and never NaN.
TEST(Dual, NoNaNWhereThereIsNoDerivative) {
  const D zero = D::variable(0, 0);
  EXPECT_EQ(abs(zero).slopes[0], 0);
  EXPECT_EQ(sqrt(zero).slopes[0], 0);
  EXPECT_EQ(pow(zero, 0).slopes[0], 0);
}

}  // namespace
}  // namespace heed::test
