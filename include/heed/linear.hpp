#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <type_traits>

#include "heed/detail/check.hpp"
#include "heed/matmul.hpp"
#include "heed/tensor.hpp"

namespace heed {

/// y = x W^T + b over the last axis.
template <class Scalar>
struct Linear {
  Matrix<Scalar> weight;  ///< (out, in)
  Vector<Scalar> bias;    ///< (out), or empty: none

  Index in_features() const { return weight.cols(); }
  Index out_features() const { return weight.rows(); }

  /// x (..., in) of rank 2 to 4 -> (..., out), of the storage order of x. std::invalid_argument
  /// where the widths do not fit.
  template <class X>
  auto operator()(const X& x) const {
    static_assert(detail::rank_of<X> >= 2 && detail::rank_of<X> <= 4,
                  "heed: Linear takes a tensor of rank 2 to 4");
    auto shape = view(x).shape;
    shape.back() = out_features();
    check(view(x).shape);
    auto result = detail::make_result<Scalar, X>(shape);
    into(result, x);
    return result;
  }

  /// Writes y into out, of the shape (..., out), on the threads of the pool.
  template <class Out, class X>
  void into(Out&& out, const X& x, Eigen::ThreadPoolInterface* pool = nullptr) const {
    check(view(x).shape);
    auto expected = view(x).shape;
    expected.back() = out_features();
    if (view(out).shape != expected) {
      detail::fail("Linear", "the output has shape ", view(out).shape, ", but Linear gives ",
                   expected);
    }
    auto from = rows_together(detail::rank4(x));
    auto to = rows_together(detail::rank4(out));
    if (from.shape[2] != to.shape[2]) {
      from = detail::rank4(x);
      to = detail::rank4(out);
    }
    const View<const Scalar, 4> turned{
        weight.data(),
        {from.shape[0], from.shape[1], in_features(), out_features()},
        {0, 0, 1, in_features()}};
    detail::multiply(from, turned, to, pool);
    if (bias.size() == 0) return;
    for (Index b = 0; b < to.shape[0]; ++b) {
      for (Index h = 0; h < to.shape[1]; ++h) {
        for (Index i = 0; i < to.shape[2]; ++i) {
          Eigen::Map<Vector<Scalar>, 0, Eigen::InnerStride<>>(
              &to(b, h, i, 0), out_features(), Eigen::InnerStride<>(to.strides[3])) += bias;
        }
      }
    }
  }

 private:
  template <std::size_t Rank>
  void check(const std::array<Index, Rank>& shape) const {
    if (shape.back() != in_features()) {
      detail::fail("Linear", "x has ", shape.back(), " features (last axis) for ", in_features(),
                   " inputs; x is ", shape, ", the weight (", out_features(), ", ", in_features(),
                   ")");
    }
    if (bias.size() != 0 && bias.size() != out_features()) {
      detail::fail("Linear", "the bias has ", bias.size(), " entries for ", out_features(),
                   " outputs");
    }
  }

  /// All rows as one matrix, where they lie evenly, so that the weight is packed once for all.
  template <class Element>
  static View<Element, 4> rows_together(View<Element, 4> x) {
    for (const std::size_t axis : {1U, 0U}) {
      if (x.shape[axis] != 1 && x.strides[axis] != x.shape[2] * x.strides[2]) break;
      x.shape[2] *= x.shape[axis];
      x.shape[axis] = 1;
    }
    return x;
  }
};

namespace detail {

/// The source of initial weights: std::mt19937_64, whose sequence the standard fixes, and the top
/// 53 bits of each draw, so that one seed gives one set of weights everywhere.
class Initialiser {
 public:
  explicit Initialiser(std::uint64_t seed) : engine_(seed) {}

  /// Xavier (Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
  /// networks", 2010): uniform within +-sqrt(6 / (in + out)), row by row.
  template <class Scalar>
  void xavier(Index in, Index out, Scalar* to, Index count) {
    const double bound = in + out > 0 ? std::sqrt(6.0 / static_cast<double>(in + out)) : 0;
    for (Index i = 0; i < count; ++i) {
      const double unit = static_cast<double>(engine_() >> 11) * 0x1p-53;
      to[i] = static_cast<Scalar>(bound * (2 * unit - 1));
    }
  }

  /// A projection with Xavier weights and, if it has one, a bias of zeros.
  template <class Scalar>
  Linear<Scalar> linear(Index in, Index out, bool bias) {
    Linear<Scalar> result{Matrix<Scalar>(out, in), Vector<Scalar>(bias ? out : 0)};
    xavier(in, out, result.weight.data(), result.weight.size());
    for (Scalar& b : result.bias) b = static_cast<Scalar>(0.0);
    return result;
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace detail
}  // namespace heed
