// A vision transformer trained from scratch to read handwritten digits: gradients of everything, on
// one core, in less than a minute.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>
#include <heed/heed.hpp>

#include "adam.hpp"
#include "digits.hpp"
#include "distort.hpp"
#include "vit.hpp"
#include "vit_pictures.hpp"

namespace {

using heed::Index;
using Matrix = heed::Matrix<float>;
using Model = vit::VisionTransformer<float>;
constexpr Index kTrained = 1000, kBatch = 50, kSteps = kTrained / kBatch;
constexpr int kEpochs = 140, kWarmUp = 5, kReport = 5, kViews = 32;

/// Percentage of the images after the first kTrained that the model gets right. With `views`, each
/// is judged by the mean over that many distorted views of it.
double test_accuracy(const Model& model, const Digits& digits, int views = 0) {
  Matrix images = digits.images.bottomRows(digits.images.rows() - kTrained);
  Matrix votes = Matrix::Zero(images.rows(), vit::kClasses);
  Random random(797);
  Model::Pass pass;
  for (int view = 0; view < std::max(views, 1); ++view) {
    for (Index n = 0; views > 0 && n < images.rows(); ++n) {
      images.row(n) = distort(digits.images.row(kTrained + n), {}, random).transpose();
    }
    model.forward(images, pass);
    votes += heed::softmax(pass.logits);
  }
  return accuracy(votes, digits, kTrained);
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string pictures = argc > 1 ? argv[1] : ".";
  const Digits digits = read_digits(digits_path(argc, argv));
  Random random(2021);
  Model model = vit::make_vision_transformer<float>(64, 2, 4, random);
  Model average = model;  // decaying average of the model over steps: steadier than any one of them
  Index parameters = 0;
  heed::for_each_parameter(model, average,
                           [&](const auto& p, const auto&) { parameters += p.size(); });
  std::printf("%td parameters\n", parameters);

  Adam<float> adam(0.01);
  Model::Pass pass;
  vit::Curves curves;
  std::vector<Index> order(kTrained);
  std::iota(order.begin(), order.end(), Index{0});
  const auto start = std::chrono::steady_clock::now();
  double step = 0;
  for (int epoch = 1; epoch <= kEpochs; ++epoch) {
    double loss = 0, right = 0;
    for (Index batch = 0; batch < kSteps; ++batch) {
      Matrix images(kBatch, 64), targets = Matrix::Zero(kBatch, vit::kClasses);
      for (Index n = 0; n < kBatch; ++n) {
        const auto at = static_cast<std::size_t>(batch * kBatch + n);
        // Shuffled one by one: any of those left may be next (Fisher and Yates).
        const auto left = static_cast<double>(order.size() - at);
        std::swap(order[at], order[at + static_cast<std::size_t>(random.uniform() * left)]);
        images.row(n) = distort(digits.images.row(order[at]), {}, random).transpose();
        targets(n, digits.labels[static_cast<std::size_t>(order[at])]) = 1;
      }
      model.forward(images, pass);
      const auto [batch_loss, grad_logits] = vit::cross_entropy(pass.logits, targets);
      const Model gradients = model.backward(pass, grad_logits);

      // The rate rises over the first epochs, then falls along half a cosine.
      const double progress = ++step / kSteps;
      const double half_turn = 3.141592653589793 * (progress - kWarmUp) / (kEpochs - kWarmUp);
      adam.begin_step(4e-3 *
                      std::min(progress / kWarmUp, (1 + std::cos(std::max(half_turn, 0.0))) / 2));
      heed::for_each_parameter(model, gradients, adam);
      const auto share = static_cast<float>(std::max(0.005, 10 / (10 + step)));
      heed::for_each_parameter(
          average, model, [&](auto& mean, const auto& value) { mean += share * (value - mean); });

      loss += batch_loss / kSteps;
      for (Index n = 0, guess = 0; n < kBatch; ++n) {
        pass.logits.row(n).maxCoeff(&guess);
        right += targets(n, guess);
      }
    }
    curves.loss.push_back({double(epoch), loss});
    curves.training.push_back({double(epoch), 100 * right / kTrained});
    if (epoch % kReport != 0 && epoch != 1) continue;
    curves.test.push_back({double(epoch), test_accuracy(average, digits)});
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    std::printf("epoch %3d  loss %.3f  training %5.1f %%  test %5.1f %%  %.0f s left\n", epoch,
                loss, 100 * right / kTrained, curves.test.back().y,
                time.count() / epoch * (kEpochs - epoch));
    std::fflush(stdout);
  }
  std::printf("%.1f %% of %td digits right, each judged by the mean of %d distorted views\n",
              test_accuracy(average, digits, kViews), digits.images.rows() - kTrained, kViews);
  vit::draw(curves, kEpochs, pictures + "/10_training.svg");
  vit::draw_attention(average, digits, kTrained, {0, 2, 3, 4, 5, 7},
                      pictures + "/10_attention.svg");
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
