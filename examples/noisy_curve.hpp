#pragma once

#include <algorithm>
#include <cmath>
#include <heed/tensor.hpp>

#include "random.hpp"

/// Something to fit: y = 2 sin x + x^0.8 on [0, 5).
struct NoisyCurve {
  heed::Matrix<float> x_train, y_train;  // at random, in order, with noise of deviation 0.5
  heed::Matrix<float> x_test, y_test;    // evenly spaced, without noise
};

inline NoisyCurve noisy_curve(heed::Index points) {
  Random random(1964);
  const auto truth = [](float x) { return 2 * std::sin(x) + std::pow(x, 0.8f); };
  heed::Matrix<float> x(points, 1), y(points, 1), x_test(points, 1);
  for (float& at : x.reshaped()) at = static_cast<float>(5 * random.uniform());
  std::sort(x.data(), x.data() + points);
  for (heed::Index i = 0; i < points; ++i) {
    y(i) = truth(x(i)) + static_cast<float>(0.5 * random.normal());
    x_test(i) = static_cast<float>(i) * 5 / static_cast<float>(points);
  }
  return {x, y, x_test, x_test.unaryExpr(truth)};
}
