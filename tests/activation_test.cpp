#include "heed/kernel/activation.hpp"

#include "support.hpp"

/// The activations and their slopes against their formulas in long double, on vectors and on plain
/// numbers.
namespace heed::detail {
namespace {

using Long = long double;
constexpr Long half_root = 0.70710678118654752440084436210485L,
               bell_height = 0.39894228040143267793994605993438L,
               twice_root = 1.5957691216057307117597842397375L;

Long exact_gelu(Long x) { return x * std::erfc(-half_root * x) / 2; }
Long exact_gelu_slope(Long x) {
  return std::erfc(-half_root * x) / 2 + x * bell_height * std::exp(-x * x / 2);
}
Long exact_silu(Long x) { return x / (1 + std::exp(-x)); }
Long exact_silu_slope(Long x) {
  const Long s = 1 / (1 + std::exp(-x)), rest = 1 / (1 + std::exp(x));
  return s * (1 + x * rest);
}
Long exact_tanh(Long x) { return x / (1 + std::exp(-twice_root * (x + 0.044715L * x * x * x))); }
Long exact_tanh_slope(Long x) {
  const Long z = twice_root * (x + 0.044715L * x * x * x);
  return (1 + x * twice_root * (1 + 3 * 0.044715L * x * x) / (1 + std::exp(z))) /
         (1 + std::exp(-z));
}

/// The largest errors of f over [low, high]: in units in the last place of the result, and against
/// the larger of 1 and the result.
struct Errors {
  double ulps = 0, absolute = 0;
};
template <class Scalar, class F, class Exact>
Errors errors(F f, Exact exact, double low, double high) {
  using L = Lanes<Scalar>;
  const test::Reference points = test::random({1, 1, 40, 512}, 3);
  Errors worst;
  for (Index n = 0; n < points.size(); n += L::size) {
    Scalar x[length(L::size)], y[length(L::size)];
    for (Index l = 0; l < L::size; ++l) {
      x[l] = static_cast<Scalar>(low + (high - low) * (points.data()[n + l] + 1) / 2);
    }
    f(L::load(x)).store(y);
    for (Index l = 0; l < L::size; ++l) {
      const Long truth = exact(static_cast<Long>(x[l]));
      const auto nearest = static_cast<Scalar>(std::abs(truth));
      const auto next = std::nextafter(nearest, std::numeric_limits<Scalar>::infinity());
      const auto error = static_cast<double>(std::abs(static_cast<Long>(y[l]) - truth));
      const double ulps = error / static_cast<double>(next - nearest),
                   absolute = error / std::max(1., static_cast<double>(nearest));
      if (!(ulps <= worst.ulps)) worst.ulps = ulps;
      if (!(absolute <= worst.absolute)) worst.absolute = absolute;
    }
  }
  return worst;
}

const auto gelu = [](auto x) { return Gelu::value(x); };
const auto silu = [](auto x) { return Silu::value(x); };
const auto gelu_tanh = [](auto x) { return GeluTanh::value(x); };

template <class Scalar>
class ActivationOn : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(ActivationOn, Scalars, );

/// Where the tails leave the normal numbers: x Phi(x) and x / (1 + e^-x).
template <class Scalar>
constexpr double lowest_gelu = std::is_same_v<Scalar, float> ? -12.9 : -37.4;
template <class Scalar>
constexpr double lowest_silu = std::is_same_v<Scalar, float> ? -87 : -708;

// Without a fused multiply-add every step of a polynomial rounds twice, and exponents by as many
// units as they have.
TYPED_TEST(ActivationOn, GeluIsRelativelyAccurateOnBothSides) {
  constexpr double more = fused_multiply_add ? 1 : 2,
                   tail = fused_multiply_add
                              ? 0
                              : 1.5 * lowest_gelu<TypeParam> * lowest_gelu<TypeParam>;
  EXPECT_LE((errors<TypeParam>(gelu, exact_gelu, -1e-3, 1e-3).ulps), 7 * more);
  EXPECT_LE((errors<TypeParam>(gelu, exact_gelu, 0, 6).ulps), 5 * more);
  EXPECT_LE((errors<TypeParam>(gelu, exact_gelu, 6, 1e6).ulps), 1);
  EXPECT_LE((errors<TypeParam>(gelu, exact_gelu, -4, 0).ulps), 8 * more + 16 * (more - 1));
  EXPECT_LE((errors<TypeParam>(gelu, exact_gelu, lowest_gelu<TypeParam>, -4).ulps), 14 + tail);
}

TYPED_TEST(ActivationOn, SiluIsRelativelyAccurateOnBothSides) {
  const double tail = fused_multiply_add ? 0 : -lowest_silu<TypeParam>;
  EXPECT_LE((errors<TypeParam>(silu, exact_silu, -20, 20).ulps), 4 + (fused_multiply_add ? 0 : 20));
  EXPECT_LE((errors<TypeParam>(silu, exact_silu, lowest_silu<TypeParam>, 0).ulps), 4 + tail);
  EXPECT_LE((errors<TypeParam>(silu, exact_silu, 20, 1e6).ulps), 1);
}

// The exponent, 2 sqrt(2 / pi) (x + c x^3), is a rounded number: of up to 15 for |x| up to 4.5.
TYPED_TEST(ActivationOn, GeluTanhIsAsAccurateAsItsExponent) {
  EXPECT_LE((errors<TypeParam>(gelu_tanh, exact_tanh, -1, 1).ulps), fused_multiply_add ? 5 : 9);
  EXPECT_LE((errors<TypeParam>(gelu_tanh, exact_tanh, 0, 10).ulps), 4);
  EXPECT_LE((errors<TypeParam>(gelu_tanh, exact_tanh, -4.5, 0).ulps), 45);
}

// A slope passes through 0, where its error can only be absolute.
TYPED_TEST(ActivationOn, SlopesAreAbsolutelyAccurate) {
  const double bound = (fused_multiply_add ? 6 : 10) *
                       static_cast<double>(std::numeric_limits<TypeParam>::epsilon());
  const auto expect = [bound](auto f, auto exact) {
    EXPECT_LE((errors<TypeParam>(f, exact, -3, 3).absolute), bound);
    EXPECT_LE((errors<TypeParam>(f, exact, -100, 100).absolute), bound);
  };
  expect([](auto x) { return Gelu::slope(x); }, exact_gelu_slope);
  expect([](auto x) { return Silu::slope(x); }, exact_silu_slope);
  expect([](auto x) { return GeluTanh::slope(x); }, exact_tanh_slope);
}

TYPED_TEST(ActivationOn, TheEdges) {
  const auto infinite = std::numeric_limits<TypeParam>::infinity(),
             most = std::numeric_limits<TypeParam>::max(),
             not_a_number = std::numeric_limits<TypeParam>::quiet_NaN();
  const auto expect = [&](auto function, const char* name) {
    SCOPED_TRACE(name);
    using Function = decltype(function);
    const auto value = [](TypeParam x) {
      TypeParam lanes[length(Lanes<TypeParam>::size)];
      Function::value(Lanes<TypeParam>(x)).store(lanes);
      EXPECT_TRUE(lanes[0] == Function::value(x) || std::isnan(x));  // of a plain number
      return lanes[0];
    };
    const auto slope = [](TypeParam x) {
      TypeParam lanes[length(Lanes<TypeParam>::size)];
      Function::slope(Lanes<TypeParam>(x)).store(lanes);
      EXPECT_TRUE(lanes[0] == Function::slope(x) || std::isnan(x));
      return lanes[0];
    };
    EXPECT_EQ(value(0), 0);
    for (const TypeParam far : {infinite, most, TypeParam(1e5)}) {
      EXPECT_EQ(value(far), far);
      EXPECT_EQ(value(-far), 0);
      EXPECT_EQ(slope(far), 1);
      EXPECT_EQ(slope(-far), 0);
    }
    EXPECT_TRUE(std::isnan(value(not_a_number)));
  };
  expect(Relu(), "relu");
  expect(Gelu(), "gelu");
  expect(GeluTanh(), "gelu_tanh");
  expect(Silu(), "silu");
}

// Of numbers that have no vectors, long doubles here.
TEST(Activations, OfPlainNumbers) {
  for (const Long x : {-5.L, -1.L, -.1L, 0.L, .3L, 2.L, 8.L}) {
    const auto expect = [x](Long result, Long exact) {
      EXPECT_TRUE(std::abs(result - exact) <= 1e-15L) << static_cast<double>(x);
    };
    expect(Gelu::value(x), exact_gelu(x));
    expect(Gelu::slope(x), exact_gelu_slope(x));
    expect(Silu::value(x), exact_silu(x));
    expect(Silu::slope(x), exact_silu_slope(x));
    expect(GeluTanh::value(x), exact_tanh(x));
    expect(GeluTanh::slope(x), exact_tanh_slope(x));
    expect(Relu::value(x), std::max(x, 0.L));
    expect(Relu::slope(x), x > 0 ? 1 : 0);
  }
}

// Rows of every length around a vector: nothing is written behind them.
template <class Number, class Scalar>
void expect_rows() {
  using S = Scalar;
  constexpr Index size = 2 * test::simd_lanes + 3;
  for (Index count = 0; count < size; ++count) {
    for (const bool gated : {false, true}) {
      std::vector<S> up, gate, hidden(static_cast<std::size_t>(size), test::rounded<S>(7));
      std::vector<Number> bias;
      for (Index i = 0; i < size; ++i) {
        up.push_back(test::rounded<S>(.25 * static_cast<double>(i) - 4));
        gate.push_back(test::rounded<S>(1 - .125 * static_cast<double>(i)));
        bias.push_back(static_cast<Number>(i % 3));
      }
      auto x = up, z = gate;
      activate_row<Number>(Silu(), x.data(), gated ? z.data() : nullptr, bias.data(), bias.data(),
                           hidden.data(), count);
      auto grad = hidden, grad_gate = hidden;
      std::fill(grad.begin(), grad.end(), test::rounded<S>(2));
      activate_backward_row<Number>(Silu(), x.data(), gated ? z.data() : nullptr, grad.data(),
                                    grad_gate.data(), count);
      for (Index i = 0; i < size; ++i) {
        const auto at = static_cast<std::size_t>(i);
        const bool inside = i < count;
        const double y = test::number(up[at]) + (inside ? static_cast<double>(i % 3) : 0),
                     g = test::number(gate[at]) +
                         (inside && gated ? static_cast<double>(i % 3) : 0);
        const auto f = [](double t) { return static_cast<double>(exact_silu(t)); };
        const auto df = [](double t) { return static_cast<double>(exact_silu_slope(t)); };
        const auto expect = [&](const S& result, double wanted, const char* what) {
          const double bound = 2 * test::epsilon<S>() * (1 + std::abs(wanted));
          EXPECT_TRUE(std::abs(test::number(result) - wanted) <= bound)
              << what << " " << i << " of " << count << (gated ? " gated: " : ": ")
              << test::number(result) << " and not " << wanted;
        };
        expect(x[at], y, "up");
        expect(z[at], g, "gate");
        expect(hidden[at], inside ? (gated ? f(g) * y : f(y)) : 7, "hidden");
        expect(grad[at], inside ? 2 * (gated ? f(g) : df(y)) : 2, "grad");
        if (gated) expect(grad_gate[at], inside ? 2 * y * df(g) : test::number(hidden[at]), "gate");
      }
    }
  }
}

TEST(ActivateRow, OfEveryLength) {
  expect_rows<float, float>();
  expect_rows<double, double>();
  expect_rows<float, Eigen::half>();
}

TEST(ActivateRow, NothingReachesWhatNothingDependsOn) {
  std::vector<float> up(20, static_cast<float>(test::nan)), grad(20, 0);
  activate_backward_row<float>(Gelu(), up.data(), static_cast<const float*>(nullptr), grad.data(),
                               static_cast<float*>(nullptr), 20);
  for (const float g : grad) EXPECT_EQ(g, 0);
}

TEST(Activations, AnUnknownOneIsRefused) {
  EXPECT_TRUE(test::refuses([] { with_activation("Mlp", static_cast<Activation>(9), [](auto) {}); },
                            {"heed::Mlp", "9"}));
}

}  // namespace
}  // namespace heed::detail
