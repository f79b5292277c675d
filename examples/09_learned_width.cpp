// Kernels that learn their width by leave-one-out: in the regression of example 3, and for digits,
// one width for all pixels and then one for each. Gradients reach the parameters of a score.

#include <cstdio>
#include <exception>
#include <iostream>
#include <string>
#include <vector>
#include <heed/heatmap.hpp>
#include <heed/heed.hpp>

#include "digits.hpp"
#include "leave_one_out.hpp"
#include "noisy_curve.hpp"
#include "plot.hpp"

namespace {

using heed::Index;
using Matrix = heed::Matrix<float>;
using Vector = heed::Vector<float>;

void regression(const std::string& pictures) {
  constexpr Index count = 50;
  const NoisyCurve data = noisy_curve(count);
  const Matrix &x = data.x_train, &y = data.y_train;
  Vector width = Vector::Ones(1);
  const auto losses = learn_widths(
      width, x, y, [&](Vector& gradient) { return heed::gaussian(width(0), gradient(0)); },
      [&](const Matrix& prediction, Matrix& gradient) {
        gradient = 2 * (prediction - y) / float(count);
        return (prediction - y).squaredNorm() / float(count);
      },
      100, 0.1);

  plot::Picture picture(1190, 310);
  plot::Axes loss(picture, {46, 36}, 340, 230, {0, 0}, {100, 0.8},
                  "Leave-one-out loss at each step", {20, 0.2});
  std::vector<plot::Point> curve;
  for (const float value : losses) curve.push_back({double(curve.size()), value});
  loss.curve(curve, "#006a8e", 2.5);

  heed::Tensor<float, 3> weights(2, count, count);
  std::vector<std::string> names;
  for (const float w : {1.0f, width(0)}) {
    const auto fit = heed::attention_with_weights(data.x_test, x, y, heed::gaussian(w));
    const auto panel = static_cast<Index>(names.size());
    for (Index i = 0; i < count; ++i) {
      for (Index j = 0; j < count; ++j) weights(panel, i, j) = fit.weights(i, j);
    }
    char name[32];
    std::snprintf(name, sizeof name, "width %.2f", w);
    names.push_back(name);
    std::printf("%s: mean squared error %.3f\n", name,
                (fit.output - data.y_test).squaredNorm() / float(count));
    plot::Axes axes(picture, {446 + 390 * double(panel), 36}, 340, 230, {0, -1.5}, {5, 5}, name);
    axes.dots(plot::points(x, y), "#e08214");
    axes.curve(plot::points(data.x_test, data.y_test), "#9a9a9a", 1.5);
    axes.curve(plot::points(data.x_test, fit.output), "#006a8e", 2.5);
  }
  picture.text({810, 300}, "blue: prediction, grey: 2 sin x + x^0.8, dots: training points", 13);
  picture.save(pictures + "/09_learned_width.svg");
  heed::write_svg(pictures + "/09_sharper_weights.svg",
                  heed::heatmap_svg(weights, {.title = "Weights before and after",
                                              .x_label = "training point",
                                              .y_label = "test point",
                                              .panel_names = names}));
}

void classification(const Digits& digits, const std::string& pictures) {
  constexpr Index count = 1000;
  const Matrix x = digits.images.topRows(count);
  const Matrix x_test = digits.images.bottomRows(digits.images.rows() - count);
  const Matrix y = one_hot(digits, count);
  const auto report = [&](const char* what, const auto& score) {
    std::printf("%s: %.1f %% by leave-one-out, %.1f %% of %td others\n", what,
                accuracy(heed::attention(x, x, y, score, all_others), digits, 0),
                accuracy(heed::attention(x_test, x, y, score), digits, count), x_test.rows());
  };
  // Cross-entropy; a thousandth of doubt in every vote keeps a confident error from being infinite.
  const auto cross_entropy = [&](const Matrix& votes, Matrix& gradient) {
    const auto share = (0.999f * votes.cwiseProduct(y).rowwise().sum().array() + 1e-4f).eval();
    gradient = y.array().colwise() * (-0.999f / float(count) / share);
    return -share.log().mean();
  };

  Vector one = Vector::Ones(1);
  report("width 1.00            ", heed::gaussian(one(0)));
  learn_widths(
      one, x, y, [&](Vector& gradient) { return heed::gaussian(one(0), gradient(0)); },
      cross_entropy, 50, 0.1);
  char name[32];
  std::snprintf(name, sizeof name, "width %.2f, learned   ", one(0));
  report(name, heed::gaussian(one(0)));
  Vector each = Vector::Constant(x.cols(), one(0));
  learn_widths(
      each, x, y, [&](Vector& gradient) { return heed::gaussian(each, gradient); }, cross_entropy,
      30, 0.1);
  report("a width for each pixel", heed::gaussian(each));
  const Matrix map = each.reshaped<Eigen::RowMajor>(8, 8);
  heed::write_svg(
      pictures + "/09_pixel_widths.svg",
      heed::heatmap_svg(
          map, {.title = "Learned width of each pixel", .x_label = "column", .y_label = "row"}));
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string pictures = argc > 1 ? argv[1] : ".";
  regression(pictures);
  classification(read_digits(digits_path(argc, argv)), pictures);
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
