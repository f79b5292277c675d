#pragma once

#include "heed/linear.hpp"
#include "score_support.hpp"

namespace heed::test {

/// x W^T + b over the last axis, in double.
template <class Scalar>
Reference projected(const Linear<Scalar>& layer, const Reference& x) {
  const Shape shape = x.dimensions();
  EXPECT_EQ(layer.weight.cols(), shape[3]);
  return generate({shape[0], shape[1], shape[2], layer.weight.rows()},
                  [&](Index b, Index h, Index i, Index o) {
                    double sum = layer.bias.size() > 0 ? number(layer.bias(o)) : 0;
                    for (Index d = 0; d < shape[3]; ++d)
                      sum += number(layer.weight(o, d)) * x(b, h, i, d);
                    return sum;
                  });
}

/// (batch, 1, seq, heads * dim) as (batch, heads, seq, dim).
inline Reference split(const Reference& x, Index heads) {
  const Index dim = x.dimension(3) / heads;
  return generate({x.dimension(0), heads, x.dimension(2), dim},
                  [&](Index b, Index h, Index i, Index d) { return x(b, 0, i, h * dim + d); });
}

inline Reference merged(const Reference& x) {
  const Index dim = x.dimension(3);
  return generate({x.dimension(0), 1, x.dimension(2), x.dimension(1) * dim},
                  [&](Index b, Index, Index i, Index c) { return x(b, c / dim, i, c % dim); });
}

/// Xavier's uniform distribution (Glorot and Bengio, 2010): within sqrt(6 / (in + out)), mean 0,
/// variance 2 / (in + out).
template <class Scalar>
void expect_xavier(const Matrix<Scalar>& weight) {
  const double limit = std::sqrt(6 / static_cast<double>(weight.rows() + weight.cols()));
  const Matrix<double> w = weight.template cast<double>();
  const auto size = static_cast<double>(w.size());
  EXPECT_LE(w.cwiseAbs().maxCoeff(), limit * (1 + 1e-6));
  EXPECT_GE(w.cwiseAbs().maxCoeff(), limit * (1 - 20 / size));
  // Five standard deviations of a mean of uniform numbers and of their squares.
  EXPECT_LE(std::abs(w.mean()), 5 * limit / std::sqrt(3 * size));
  EXPECT_NEAR(w.squaredNorm() / size, limit * limit / 3,
              5 * limit * limit * std::sqrt(4 / (45 * size)));
}

}  // namespace heed::test
