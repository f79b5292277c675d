#pragma once

#include <cmath>
#include <cstdint>
#include <random>

#include "heed/core/view.hpp"
#include "heed/module/linear.hpp"

namespace heed::detail {

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

}  // namespace heed::detail
