#include "oracle.hpp"

#include <gtest/gtest.h>

#include <random>

// The oracle that the fuzz targets compare with, against sums done by hand and differences.

namespace oracle {
namespace {

bool always(Index, Index, Index, Index) { return true; }

/// One query, keys and values of one feature.
Attention small(std::vector<Real> keys, std::vector<Real> values) {
  Attention a;
  a.query = Numbers({1, 1, 1, 1}, 1);
  a.key = Numbers({1, 1, static_cast<Index>(keys.size()), 1});
  a.value = a.key;
  a.key.data = std::move(keys);
  a.value.data = std::move(values);
  a.similarity = dot_product(1, 1);
  a.allowed = always;
  return a;
}

// Scores 0 and ln 3: weights 1/4 and 3/4, of values 4 and 8.
TEST(Oracle, ByHand) {
  const auto a = small({0, std::log(Real(3))}, {4, 8});
  const auto f = Evaluation(a).forward();
  EXPECT_NEAR(static_cast<double>(f.output.data[0]), 7, 1e-15);
  EXPECT_NEAR(static_cast<double>(f.weights.data[1]), .75, 1e-15);
  EXPECT_NEAR(static_cast<double>(f.log_sum_exp.data[0]), std::log(4.0), 1e-15);
}

// A sink of ln 4 doubles the sum of e^0 + e^(ln 3): weights 1/8 and 3/8.
TEST(Oracle, ASinkTakesItsShare) {
  auto a = small({0, std::log(Real(3))}, {4, 8});
  a.sinks = {std::log(Real(4))};
  const auto f = Evaluation(a).forward();
  EXPECT_NEAR(static_cast<double>(f.output.data[0]), 3.5, 1e-15);
}

TEST(Oracle, NoKeysGiveNothingAndHiddenOnesAreNotRead) {
  const Real nan = std::numeric_limits<Real>::quiet_NaN();
  auto a = small({nan, 1}, {nan, 5});
  a.allowed = [](Index, Index, Index, Index j) { return j == 1; };
  EXPECT_EQ(Evaluation(a).forward().output.data[0], 5);
  a.allowed = [](Index, Index, Index, Index) { return false; };
  const auto f = Evaluation(a).forward();
  EXPECT_EQ(f.output.data[0], 0);
  EXPECT_EQ(f.log_sum_exp.data[0], -infinity);
  const auto g = Evaluation(a).backward(f, Numbers({1, 1, 1, 1}, 1));
  EXPECT_EQ(g.value.data[0], 0);
  EXPECT_EQ(g.query.data[0], 0);
}

/// The gradients of sum(output * grad) are its differences, to a few digits of long double.
void check_gradients(Attention a, Index query_dim, Index key_dim) {
  std::mt19937_64 engine(5);
  const auto draw = [&](const std::array<Index, 4>& shape) {
    Numbers x(shape);
    for (Real& n : x.data) n = static_cast<Real>(engine() % 2001) / 1000 - 1;
    return x;
  };
  a.query = draw({2, 4, 3, query_dim});
  a.key = draw({2, 2, 5, key_dim});
  a.value = draw({2, 2, 5, 2});
  a.allowed = [](Index b, Index, Index i, Index j) { return j <= i + 2 + b; };
  a.dropout = .3;
  a.seed = 7;
  const Numbers grad = draw({2, 4, 3, 2});
  const auto sum = [&] {
    const auto f = Evaluation(a).forward();
    Real total = 0;
    for (std::size_t n = 0; n < grad.data.size(); ++n) total += f.output.data[n] * grad.data[n];
    return total;
  };
  const auto g = Evaluation(a).backward(Evaluation(a).forward(), grad);
  const auto check = [&](const char* what, std::vector<Real>& x,
                         const std::vector<Real>& gradient) {
    for (std::size_t n = 0; n < x.size(); ++n) {
      const Real step = 1e-6L, here = x[n];
      x[n] = here + step;
      const Real ahead = sum();
      x[n] = here - step;
      const Real slope = (ahead - sum()) / (2 * step);
      x[n] = here;
      if (!(std::abs(slope - gradient[n]) <= 1e-9L)) {
        ADD_FAILURE() << what << ' ' << n << ": " << gradient[n] << " and not " << slope;
      }
    }
  };
  check("query", a.query.data, g.query.data);
  check("key", a.key.data, g.key.data);
  check("value", a.value.data, g.value.data);
  check("sink", a.sinks, g.sinks);
}

TEST(Oracle, GradientsAreDifferences) {
  Attention a;
  a.sinks = {0, 1, -1, .5L};
  a.modifiers = {softcap(2), alibi({.1L, .2L, .3L, .4L}),
                 bias([](Index b, Index h, Index i, Index j) {
                   return static_cast<Real>(b + h - i + j) / 10;
                 })};
  a.similarity = dot_product(3, .5L);
  check_gradients(a, 3, 3);
  a.parameters = 3;
  a.similarity = additive({1, -2, .5L});
  check_gradients(a, 3, 3);
  a.similarity = gaussian({1, -2, .5L});
  check_gradients(a, 3, 3);
  a.parameters = 6;
  a.similarity = bilinear({1, 2, 3, -1, -2, .5L}, 3, 2);
  check_gradients(a, 3, 2);
  a.parameters = 0;
  a.similarity = within(3, 20, true, 1e-18L);
  check_gradients(a, 3, 3);
}

}  // namespace
}  // namespace oracle
