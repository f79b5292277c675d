#include "heed/simd/lanes.hpp"

#include "heed/simd/select.hpp"
#include "support.hpp"

namespace heed::test {
namespace {

template <class Scalar>
class LanesOf : public ::testing::Test {
 protected:
  using L = detail::Lanes<Scalar>;
  static constexpr Index size = L::size;

  static std::array<Scalar, static_cast<std::size_t>(size)> lanes(L x) {
    std::array<Scalar, static_cast<std::size_t>(size)> result;
    x.store(result.data());
    return result;
  }
  /// Both give the same in every lane, for numbers of either sign, but for some units of rounding.
  template <class OnLanes, class OnNumbers>
  static void expect_lane_by_lane(OnLanes on_lanes, OnNumbers on_numbers, double units = 0) {
    const Reference a = random({1, 1, 20, size}, 1, 3), b = random({1, 1, 20, size}, 2, 3);
    for (Index row = 0; row < 20; ++row) {
      std::array<Scalar, static_cast<std::size_t>(size)> x, y;
      for (Index lane = 0; lane < size; ++lane) {
        x[static_cast<std::size_t>(lane)] = static_cast<Scalar>(a(0, 0, row, lane));
        y[static_cast<std::size_t>(lane)] = static_cast<Scalar>(b(0, 0, row, lane));
      }
      const auto result = lanes(on_lanes(L::load(x.data()), L::load(y.data())));
      for (std::size_t lane = 0; lane < result.size(); ++lane) {
        const auto expected = static_cast<double>(on_numbers(x[lane], y[lane]));
        EXPECT_TRUE(std::abs(static_cast<double>(result[lane]) - expected) <=
                    units * epsilon<Scalar>() * std::max(1., std::abs(expected)))
            << result[lane] << " and not " << expected << " of " << x[lane] << ", " << y[lane];
      }
    }
  }
};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(LanesOf, Scalars, );

// No product meets a sum here, which a compiler may round once or twice.
TYPED_TEST(LanesOf, Arithmetic) {
  const auto check = [](auto f) { TestFixture::expect_lane_by_lane(f, f); };
  check([](auto a, auto b) { return a + b; });
  check([](auto a, auto b) { return a - b; });
  check([](auto a, auto b) { return a * b; });
  check([](auto a, auto b) { return a / b; });
  check([](auto a, auto b) { return -a + 2 * b - 1; });
  check([](auto a, auto b) {
    a += b;
    a *= a;
    a /= b;
    a -= 3;
    return a;
  });
}

TYPED_TEST(LanesOf, FunctionsAsAUsersLambdaCallsThem) {
  const auto check = [](auto f) { TestFixture::expect_lane_by_lane(f, f, 8); };
  check([](auto a, auto) {
    using std::abs;
    return abs(a);
  });
  check([](auto a, auto) {
    using std::sqrt;
    return sqrt(a * a);
  });
  check([](auto a, auto b) {
    using std::max;
    using std::min;
    return max(a, b) - min(a, b);
  });
  check([](auto a, auto b) {
    using std::log;
    return log(a * a / (b * b));
  });
  check([](auto a, auto b) {
    using std::sin;
    using std::cos;
    return sin(a) * cos(b);
  });
  check([](auto a, auto) {
    using std::floor;
    return floor(a);
  });
  check([](auto a, auto b) { return select(a < b, a, b * 2); });
}

TYPED_TEST(LanesOf, ComparisonsAndMasks) {
  using Vector = typename TestFixture::L;
  const auto check = [](auto on_lanes, auto on_numbers) {
    TestFixture::expect_lane_by_lane(
        [=](Vector a, Vector b) { return select(on_lanes(a, b), Vector(1), Vector(0)); },
        [=](auto a, auto b) { return on_numbers(a, b) ? 1 : 0; });
  };
  const auto both = [&](auto f) { check(f, f); };
  both([](auto a, auto b) { return a < b; });
  both([](auto a, auto b) { return a <= b; });
  both([](auto a, auto b) { return a > b; });
  both([](auto a, auto b) { return a >= b; });
  both([](auto a, auto) { return a == a; });
  both([](auto a, auto b) { return a != b; });
  both([](auto a, auto b) { return a < b && b < 1; });
  both([](auto a, auto b) { return a < b || b < 1; });
  both([](auto a, auto b) { return !(a < b); });
}

// A hidden lane may hold anything: select must not compute with it.
TYPED_TEST(LanesOf, SelectIgnoresWhatItDoesNotTake) {
  using Vector = typename TestFixture::L;
  const auto quiet = std::numeric_limits<TypeParam>::quiet_NaN();
  for (const auto x : TestFixture::lanes(select(Vector(0) < Vector(1), Vector(5), Vector(quiet))))
    EXPECT_EQ(x, 5);
  for (const auto x : TestFixture::lanes(select(Vector(1) < Vector(0), Vector(quiet), Vector(5))))
    EXPECT_EQ(x, 5);
  for (const auto x : TestFixture::lanes(select(Vector(quiet) < Vector(1), Vector(1), Vector(5))))
    EXPECT_EQ(x, 5);
}

TYPED_TEST(LanesOf, LargerAndSmallerKeepTheirFirstBesideNaN) {
  using Vector = typename TestFixture::L;
  const Vector quiet(std::numeric_limits<TypeParam>::quiet_NaN());
  for (const auto x : TestFixture::lanes(max(Vector(5), quiet))) EXPECT_EQ(x, 5);
  for (const auto x : TestFixture::lanes(min(Vector(5), quiet))) EXPECT_EQ(x, 5);
  for (const auto x : TestFixture::lanes(max(quiet, Vector(5)))) EXPECT_TRUE(std::isnan(x));
  for (const auto x : TestFixture::lanes(min(quiet, Vector(5)))) EXPECT_TRUE(std::isnan(x));
  for (const auto x : TestFixture::lanes(max(Vector(4), Vector(5)))) EXPECT_EQ(x, 5);
  for (const auto x : TestFixture::lanes(min(Vector(4), Vector(5)))) EXPECT_EQ(x, 4);
}

TYPED_TEST(LanesOf, CountAndMultiplyAdd) {
  using Vector = typename TestFixture::L;
  const auto counted = TestFixture::lanes(Vector::counting(7));
  for (std::size_t lane = 0; lane < counted.size(); ++lane)
    EXPECT_EQ(counted[lane], 7 + static_cast<int>(lane));
  for (const auto x : TestFixture::lanes(fma(Vector(3), Vector(4), Vector(5)))) EXPECT_EQ(x, 17);
}

}  // namespace
}  // namespace heed::test
