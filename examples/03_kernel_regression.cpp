// Regression without parameters (Nadaraya and Watson, 1964): attention whose score is a kernel of
// the distance between a query and a training point.

#include <cstdio>
#include <exception>
#include <iostream>
#include <string>
#include <vector>
#include <heed/heatmap.hpp>
#include <heed/heed.hpp>

#include "noisy_curve.hpp"
#include "plot.hpp"

namespace {

constexpr heed::Index kPoints = 50;

}  // namespace

int main(int argc, char** argv) try {
  const std::string pictures = argc > 1 ? argv[1] : ".";

  // Keys are the training inputs, values their noisy outputs, queries the inputs to predict at.
  const NoisyCurve data = noisy_curve(kPoints);
  const std::vector<std::string> names{"Gaussian", "boxcar", "triangular", "constant"};
  heed::Tensor<float, 3> all_weights(4, kPoints, kPoints);
  plot::Picture picture(860, 620);
  heed::Index kernels = 0;
  const auto fit = [&](const auto& score) {
    const auto [prediction, weights] =
        heed::attention_with_weights(data.x_test, data.x_train, data.y_train, score);
    const heed::Index k = kernels++;
    for (heed::Index i = 0; i < kPoints; ++i) {
      for (heed::Index j = 0; j < kPoints; ++j) all_weights(k, i, j) = weights(i, j);
    }
    const auto& name = names[static_cast<std::size_t>(k)];
    std::printf("%-10s mean squared error %.3f\n", name.c_str(),
                (prediction - data.y_test).squaredNorm() / static_cast<float>(kPoints));

    const plot::Point corner{40 + 420 * static_cast<double>(k % 2),
                             36 + 290 * static_cast<double>(k / 2)};
    plot::Axes axes(picture, corner, 380, 230, {0, -1.5}, {5, 5}, name);
    axes.dots(plot::points(data.x_train, data.y_train), "#e08214");
    axes.curve(plot::points(data.x_test, data.y_test), "#9a9a9a", 1.5);
    axes.curve(plot::points(data.x_test, prediction), "#006a8e", 2.5);
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
