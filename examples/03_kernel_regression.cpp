// Regression without parameters (Nadaraya and Watson, 1964): attention whose score is a kernel of
// the distance between a query and a training point.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <exception>
#include <iostream>
#include <string>
#include <vector>
#include <heed/heatmap.hpp>
#include <heed/heed.hpp>

#include "plot.hpp"
#include "random.hpp"

namespace {

constexpr heed::Index kPoints = 50;
using Matrix = heed::Matrix<float>;

float truth(float x) { return 2 * std::sin(x) + std::pow(x, 0.8f); }

std::vector<plot::Point> points(const Matrix& x, const Matrix& y) {
  std::vector<plot::Point> result;
  for (heed::Index i = 0; i < x.rows(); ++i) result.push_back({x(i, 0), y(i, 0)});
  return result;
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string pictures = argc > 1 ? argv[1] : ".";

  // Keys are the training inputs, values their noisy outputs, queries the inputs to predict at.
  Random random(1964);
  Matrix x_train(kPoints, 1), y_train(kPoints, 1), x_test(kPoints, 1);
  for (heed::Index i = 0; i < kPoints; ++i) x_train(i) = static_cast<float>(5 * random.uniform());
  std::sort(x_train.data(), x_train.data() + kPoints);
  for (heed::Index i = 0; i < kPoints; ++i) {
    y_train(i) = truth(x_train(i)) + static_cast<float>(0.5 * random.normal());
    x_test(i) = 0.1f * static_cast<float>(i);
  }
  const Matrix y_test = x_test.unaryExpr(&truth);

  const std::vector<std::string> names{"Gaussian", "boxcar", "triangular", "constant"};
  heed::Tensor<float, 3> all_weights(4, kPoints, kPoints);
  plot::Picture picture(860, 620);
  heed::Index kernels = 0;
  const auto fit = [&](const auto& score) {
    const auto [prediction, weights] =
        heed::attention_with_weights(x_test, x_train, y_train, score);
    const heed::Index k = kernels++;
    for (heed::Index i = 0; i < kPoints; ++i) {
      for (heed::Index j = 0; j < kPoints; ++j) all_weights(k, i, j) = weights(i, j);
    }
    const auto& name = names[static_cast<std::size_t>(k)];
    std::printf("%-10s mean squared error %.3f\n", name.c_str(),
                (prediction - y_test).squaredNorm() / static_cast<float>(kPoints));

    const plot::Point corner{40 + 420 * static_cast<double>(k % 2),
                             36 + 290 * static_cast<double>(k / 2)};
    plot::Axes axes(picture, corner, 380, 230, {0, -1.5}, {5, 5}, name);
    axes.dots(points(x_train, y_train), "#e08214");
    axes.curve(points(x_test, y_test), "#9a9a9a", 1.5);
    axes.curve(points(x_test, prediction), "#006a8e", 2.5);
  };
  fit(heed::gaussian(1));
  fit(heed::boxcar(1));
  fit(heed::triangular(1));
  fit(heed::dot_product(0));  // every key alike: the mean of the training outputs

  picture.text({430, 610}, "blue: prediction, grey: 2 sin x + x^0.8, dots: training points", 13);
  picture.save(pictures + "/03_kernel_regression.svg");
  heed::write_svg(pictures + "/03_kernel_weights.svg",
                  heed::heatmap_svg(all_weights, {.title = "Weights of the kernels",
                                                  .x_label = "training point",
                                                  .y_label = "test point",
                                                  .panel_names = names}));
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
