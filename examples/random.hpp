#pragma once

#include <cmath>
#include <random>
#include <heed/tensor.hpp>

/// Random numbers that are the same on every platform: the standard fixes std::mt19937 to the last
/// bit, but not its distributions.
class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}

  /// From [0, 1).
  double uniform() { return static_cast<double>(engine_()) / 4294967296.0; }

  /// From the standard normal distribution (Box and Muller, 1958).
  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(6.283185307179586 * uniform());
  }

  heed::Matrix<float> normal_matrix(heed::Index rows, heed::Index columns) {
    return heed::Matrix<float>::NullaryExpr(rows, columns,
                                            [&] { return static_cast<float>(normal()); });
  }

  heed::Tensor<float, 3> normal_tensor(heed::Index batch, heed::Index rows, heed::Index columns) {
    heed::Tensor<float, 3> result(batch, rows, columns);
    for (heed::Index i = 0; i < result.size(); ++i) result.data()[i] = static_cast<float>(normal());
    return result;
  }

 private:
  std::mt19937 engine_;
};
