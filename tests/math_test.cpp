#include "heed/simd/math.hpp"

#include "support.hpp"

namespace heed::test {
namespace {

template <class Scalar>
class MathOn : public ::testing::Test {
 protected:
  using L = detail::Lanes<Scalar>;

  template <class F>
  static Scalar one(F f, Scalar x) {
    std::array<Scalar, static_cast<std::size_t>(L::size)> lanes;
    f(L(x)).store(lanes.data());
    return lanes[0];
  }

  /// The largest error of f against exact, a function of long double, in units in the last place
  /// of the result, over points of [low, high] that lie as the random numbers fall.
  template <class F, class Exact>
  static double worst_ulps(F f, Exact exact, double low, double high) {
    const Reference points = random({1, 1, 200, 500}, 3);
    double worst = 0;
    for (Index n = 0; n < points.size(); ++n) {
      const auto x = static_cast<Scalar>(low + (high - low) * (points.data()[n] + 1) / 2);
      const long double truth = exact(static_cast<long double>(x));
      const auto nearest = static_cast<Scalar>(std::abs(truth));
      const long double ulp = static_cast<long double>(std::nextafter(
                                  nearest, std::numeric_limits<Scalar>::infinity())) -
                              static_cast<long double>(nearest);
      const long double error = std::abs(static_cast<long double>(one(f, x)) - truth) / ulp;
      if (!(error <= worst)) worst = static_cast<double>(error);
    }
    return worst;
  }
};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(MathOn, Scalars, );

const auto exp2_of = [](auto x) { return exp2_nonpositive(x); };
const auto exp_nonpositive_of = [](auto x) { return exp_nonpositive(x); };
const auto exp_of = [](auto x) { return exp(x); };
const auto tanh_of = [](auto x) { return tanh(x); };

// Without a fused multiply-add the polynomial rounds twice a step.
#ifdef EIGEN_VECTORIZE_FMA
constexpr double exp2_ulps = 1;
#else
constexpr double exp2_ulps = 1.5;
#endif

TYPED_TEST(MathOn, Exp2OfWhatIsNotPositive) {
  const auto exact = [](long double x) { return std::exp2(x); };
  const double lowest = std::numeric_limits<TypeParam>::min_exponent;
  EXPECT_LE(TestFixture::worst_ulps(exp2_of, exact, -1, 0), exp2_ulps);
  EXPECT_LE(TestFixture::worst_ulps(exp2_of, exact, -20, 0), exp2_ulps);
  EXPECT_LE(TestFixture::worst_ulps(exp2_of, exact, lowest + 1, 0), exp2_ulps);
}

TYPED_TEST(MathOn, Exp2AtTheEdges) {
  const auto infinite = std::numeric_limits<TypeParam>::infinity();
  const auto f = [](TypeParam x) { return TestFixture::one(exp2_of, x); };
  EXPECT_EQ(f(0), 1);
  EXPECT_EQ(f(-1), TypeParam(.5));
  EXPECT_EQ(f(-20), static_cast<TypeParam>(0x1p-20));
  EXPECT_EQ(f(-infinite), 0);
  EXPECT_EQ(f(std::numeric_limits<TypeParam>::lowest()), 0);
  EXPECT_EQ(f(std::numeric_limits<TypeParam>::min_exponent - 60), 0);
  EXPECT_TRUE(std::isnan(f(std::numeric_limits<TypeParam>::quiet_NaN())));
}

TYPED_TEST(MathOn, ExpOfWhatIsNotPositive) {
  const auto exact = [](long double x) { return std::exp(x); };
  const double lowest = std::numeric_limits<TypeParam>::min_exponent * std::log(2.);
  // Without a fused multiply-add x log2(e) is rounded, as log2(e) is: by half a unit of its size.
  const auto ulps = [](double reach) {
    return detail::fused_multiply_add ? 1.2 : exp2_ulps + .75 * reach;
  };
  EXPECT_LE(TestFixture::worst_ulps(exp_nonpositive_of, exact, -1, 0), ulps(1));
  EXPECT_LE(TestFixture::worst_ulps(exp_nonpositive_of, exact, -20, 0), ulps(20));
  EXPECT_LE(TestFixture::worst_ulps(exp_nonpositive_of, exact, lowest + 1, 0), ulps(-lowest));
  const auto infinite = std::numeric_limits<TypeParam>::infinity();
  const auto f = [](TypeParam x) { return TestFixture::one(exp_nonpositive_of, x); };
  EXPECT_EQ(f(0), 1);
  EXPECT_EQ(f(-infinite), 0);
  EXPECT_EQ(f(std::numeric_limits<TypeParam>::lowest()), 0);
  EXPECT_EQ(f(static_cast<TypeParam>(lowest - 2)), 0);
  EXPECT_TRUE(std::isnan(f(std::numeric_limits<TypeParam>::quiet_NaN())));
}

TYPED_TEST(MathOn, ExponentAndMantissa) {
  using Vector = typename TestFixture::L;
  const auto parts = [](TypeParam x) {
    const detail::Exponent<TypeParam> split((Vector(x)));
    return std::pair(TestFixture::one([&](Vector) { return split.exponent; }, x),
                     TestFixture::one([&](Vector) { return split.mantissa; }, x));
  };
  // 6 = 2^3 * 3/4, 5 = 2^2 * 5/4, 3/8 = 2^-1 * 3/4: nearest to 1 by a factor.
  const std::pair<TypeParam, TypeParam> six(3, .75), five(2, 1.25), small(-1, .75), one(0, 1);
  EXPECT_EQ(parts(6), six);
  EXPECT_EQ(parts(5), five);
  EXPECT_EQ(parts(TypeParam(.375)), small);
  EXPECT_EQ(parts(1), one);
  for (TypeParam x = std::numeric_limits<TypeParam>::min();
       x < std::numeric_limits<TypeParam>::max() / 3; x *= TypeParam(2.7)) {
    const auto [exponent, mantissa] = parts(x);
    EXPECT_EQ(std::ldexp(mantissa, static_cast<int>(exponent)), x);
    EXPECT_TRUE(mantissa > TypeParam(.7071) && mantissa < TypeParam(1.4143)) << x;
  }
}

TYPED_TEST(MathOn, Exp) {
  const auto exact = [](long double x) { return std::exp(x); };
  const double highest = std::log(static_cast<double>(std::numeric_limits<TypeParam>::max()));
  EXPECT_LE(TestFixture::worst_ulps(exp_of, exact, -1, 1), 2);
  EXPECT_LE(TestFixture::worst_ulps(exp_of, exact, -highest + 3, highest), 2);
  const auto infinite = std::numeric_limits<TypeParam>::infinity();
  const auto f = [](TypeParam x) { return TestFixture::one(exp_of, x); };
  EXPECT_EQ(f(0), 1);
  EXPECT_EQ(f(infinite), infinite);
  EXPECT_EQ(f(static_cast<TypeParam>(highest + 1)), infinite);
  EXPECT_EQ(f(-infinite), 0);
  EXPECT_EQ(f(static_cast<TypeParam>(-2 * highest)), 0);
  EXPECT_TRUE(std::isnan(f(std::numeric_limits<TypeParam>::quiet_NaN())));
}

TYPED_TEST(MathOn, Tanh) {
  const auto exact = [](long double x) { return std::tanh(x); };
  for (const double reach : {1e-20, 1e-4, .1, 1., 4., 30.}) {
    EXPECT_LE(TestFixture::worst_ulps(tanh_of, exact, -reach, reach), 5) << reach;
  }
  const auto infinite = std::numeric_limits<TypeParam>::infinity();
  const auto f = [](TypeParam x) { return TestFixture::one(tanh_of, x); };
  EXPECT_EQ(f(0), 0);
  EXPECT_EQ(f(infinite), 1);
  EXPECT_EQ(f(-infinite), -1);
  EXPECT_EQ(f(static_cast<TypeParam>(1e30)), 1);
  EXPECT_EQ(f(static_cast<TypeParam>(-1e30)), -1);
  EXPECT_TRUE(std::isnan(f(std::numeric_limits<TypeParam>::quiet_NaN())));
}

TEST(MathOfFloats, NoTanhIsAboveOne) {
  // All floats up to past where it rounds to 1.
  using L = detail::Lanes<float>;
  L most(0);
  for (float x = 4; x < 9.1F; x = std::nextafter(x, 10.F)) most = max(most, tanh(L(x)));
  EXPECT_EQ(largest_lane(most), 1);
}

}  // namespace
}  // namespace heed::test
