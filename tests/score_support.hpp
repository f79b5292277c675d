#pragma once

#include "heed/attention.hpp"
#include "heed/score.hpp"
#include "support.hpp"

namespace heed::test {

struct Sizes {
  Index batch = 1, heads = 1, key_heads = 1, queries = 1, keys = 1, dim = 1, key_dim = 0, width = 1;
};

inline std::string text(const Sizes& s) {
  return text(Shape{s.batch, s.heads, s.queries, s.dim}) +
         text(Shape{s.batch, s.key_heads, s.keys, s.key_dim != 0 ? s.key_dim : s.dim}) +
         text(Shape{s.batch, s.key_heads, s.keys, s.width});
}

/// Every awkward length once for queries, keys and widths, never in step.
inline std::vector<Sizes> sweep() {
  std::vector<Sizes> result;
  const std::array<Index, 6> dims = {1, 3, simd_lanes, simd_lanes + 1, 25, 64},
                             widths = {2, 1, simd_lanes - 1, panel_lanes, simd_lanes + 1, 49};
  for (std::size_t n = 0; n < awkward.size(); ++n) {
    result.push_back({.batch = 1 + static_cast<Index>(n % 3 == 1),
                      .heads = 2,
                      .key_heads = 2 - static_cast<Index>(n % 2),
                      .queries = awkward[n],
                      .keys = awkward[(5 * n + 7) % awkward.size()],
                      .dim = dims[n % dims.size()],
                      .width = widths[(n + n / 6) % widths.size()]});
  }
  return result;
}

struct Inputs {
  Reference query, key, value;

  explicit Inputs(const Sizes& s, double scale = 1)
      : query(random({s.batch, s.heads, s.queries, s.dim}, 1, scale)),
        key(random({s.batch, s.key_heads, s.keys, s.key_dim != 0 ? s.key_dim : s.dim}, 2, scale)),
        value(random({s.batch, s.key_heads, s.keys, s.width}, 3)) {}

  template <class Scalar>
  Inputs rounded_to() const {
    Inputs result = *this;
    result.query = rounded<Scalar>(query);
    result.key = rounded<Scalar>(key);
    result.value = rounded<Scalar>(value);
    return result;
  }
};

/// All three forms of the forward call give what the formula gives.
template <class Scalar, class Score, class Mask, class Formula, class Allowed>
void expect_score(const Inputs& inputs, const Score& score, const Mask& mask,
                  const Formula& formula, const Allowed& allowed, double magnitude = 0) {
  const Inputs in = inputs.rounded_to<Scalar>();
  SCOPED_TRACE("query, key, value: " + text(Shape(in.query.dimensions())) +
               text(Shape(in.key.dimensions())) + text(Shape(in.value.dimensions())));
  const auto q = make<Scalar, 4>(in.query), k = make<Scalar, 4>(in.key),
             v = make<Scalar, 4>(in.value);
  const Expected<Scalar> expected(
      in.query, in.key, in.value, formula, allowed, [](auto...) { return 1.0; }, magnitude);
  const auto pass = attention_forward(q, k, v, score, mask);
  EXPECT_TRUE(expected.accepts(pass.output)) << "attention_forward";
  EXPECT_TRUE(expected.accepts_log_sum_exp(pass.log_sum_exp)) << "log_sum_exp";
  EXPECT_TRUE(same(reference(attention(q, k, v, score, mask)), reference(pass.output)));
  const auto [output, weights] = attention_with_weights(q, k, v, score, mask);
  EXPECT_TRUE(expected.accepts(output)) << "attention_with_weights";
  EXPECT_TRUE(expected.accepts_weights(weights)) << "weights";
}

template <class Scalar, class Score, class Formula>
void expect_score(const Inputs& inputs, const Score& score, const Formula& formula,
                  double magnitude = 0) {
  expect_score<Scalar>(inputs, score, no_mask(), formula, everything(), magnitude);
}

template <class Real>
Real squared_distance(const Pair<Real>& p) {
  Real sum = 0;
  for (std::size_t d = 0; d < p.query.size(); ++d) {
    sum += (p.query[d] - p.key[d]) * (p.query[d] - p.key[d]);
  }
  return sum;
}

template <class P>
using RealOf = typename std::remove_cvref_t<P>::Real;

/// q^T M k, of a matrix that outlives it.
template <class Scalar>
auto bilinear_form(const Matrix<Scalar>& m) {
  return [&m](const auto& p) {
    using Real = RealOf<decltype(p)>;
    Real sum = 0;
    const Scalar* row = m.data();
    for (const Real q : p.query) {
      Real product = 0;
      for (const Real k : p.key) product += static_cast<Real>(*row++) * k;
      sum += q * product;
    }
    return sum;
  };
}

/// A vector that Scalar stores exactly as double does.
template <class Scalar>
Vector<Scalar> vector_of(Index size, std::uint64_t seed, double scale = 1) {
  const Reference values = random({1, 1, size, 1}, seed, scale);
  Vector<Scalar> result(size);
  for (Index n = 0; n < size; ++n) result(n) = rounded<Scalar>(values(0, 0, n, 0));
  return result;
}

}  // namespace heed::test
