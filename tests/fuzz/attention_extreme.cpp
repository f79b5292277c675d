#include "fuzz/attention.hpp"
#include "heed/score.hpp"

namespace heed::fuzz {
namespace {

/// What becomes of a number beyond the largest float.
Real as_float(Real x) {
  return std::abs(x) > static_cast<Real>(std::numeric_limits<float>::max())
             ? std::copysign(oracle::infinity, x)
             : x;
}

/// The dot product whose terms and sum overflow as those of float do.
oracle::SimilarityFunction overflowing_dot(Index dim, Real scale) {
  return [dim, scale, exact = oracle::dot_product(dim, scale)](const Real* q, const Real* k,
                                                               oracle::Similarity& out) {
    exact(q, k, out);
    Real sum = 0;
    for (Index c = 0; c < dim; ++c) sum += as_float(scale * q[c] * k[c]);
    out.value = as_float(sum);
  };
}

void scale_by(Numbers& x, double factor) {
  for (Real& n : x.data) {
    n = static_cast<Real>(static_cast<float>(n * static_cast<Real>(factor)));
  }
}

/// Infinities strewn over a few rows.
void strew(Draw& draw, Numbers& x) {
  if (x.data.empty()) return;
  for (Index n = draw.integer(1, 4); n-- > 0;) {
    x.data[draw.word() % x.data.size()] = draw.chance(50) ? oracle::infinity : -oracle::infinity;
  }
}

}  // namespace

/// What is visible and huge, tiny, infinite or alike. Factors are such that every product of two
/// of them overflows by far, or none does: in between it is the order of the sums that says which.
/// Those that overflow have one sign, for a fused multiply-add does not overflow before it adds.
void attend_extreme(Draw& draw) {
  const Sizes s = draw_sizes(draw, true, 100000);
  Case<float> c(draw, s);
  const auto mask = draw_mask<1>(draw, positions_of(s));
  const std::initializer_list<double> factors = {1, 1, 1e25, 1e-25, 1e-40, 1e5, -1e25};
  const bool far = draw.chance(50);
  double of_query = 1, of_key = 1, of_value = 1;
  if (far) {
    scale_by(c.attention.query, of_query = draw.one_of(factors));
    scale_by(c.attention.key, of_key = draw.one_of(factors));
  } else {
    scale_by(c.attention.value, of_value = draw.one_of({1e25, 1e-40, 1e37, 1e-25}));
  }
  if (draw.chance(30)) c.equal_rows(draw);
  const bool overflows = std::abs(of_query * of_key) > 1e40;
  if (overflows) {
    for (Numbers* x : {&c.attention.query, &c.attention.key}) {
      for (Real& n : x->data) n = std::abs(n);
    }
    if (draw.chance(50)) scale_by(c.attention.query, -1);
  } else if (draw.chance(25)) {
    strew(draw, draw.chance(50) ? c.attention.query : c.attention.key);
  }
  // A weight that underflows makes NaN of an infinite value; no weight does where scores are near.
  if (!far && draw.chance(25)) strew(draw, c.attention.value);
  c.attention.similarity = overflowing_dot(s.key_dim, Real(.125));
  c.attention.allowed = mask.allowed;
  c.place(draw);
  about() += ", factors " + std::to_string(of_query) + " and " + std::to_string(of_key);
  const auto forward = check_forward(draw, c, dot_product(.125), mask.mask);
  // Sums of values of 1e37 times gradients overflow.
  if (!far && of_value < 1e30 && draw.chance(50))
    check_backward(draw, c, dot_product(.125), mask.mask, forward);
}

}  // namespace heed::fuzz
