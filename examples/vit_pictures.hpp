#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "digits.hpp"
#include "plot.hpp"
#include "vit.hpp"

namespace vit {

/// What training went through: points (epoch, value).
struct Curves {
  std::vector<plot::Point> loss, training, test;
};

inline void draw(const Curves& curves, double epochs, const std::string& path) {
  plot::Picture picture(880, 330);
  plot::Axes loss(picture, {56, 36}, 360, 230, {0, 0}, {epochs, 2.8}, "Loss", {epochs / 4, 0.4});
  loss.curve(curves.loss, "#006a8e", 2.5);
  plot::Axes accuracy(picture, {500, 36}, 360, 230, {0, 80}, {epochs, 100}, "Accuracy in %",
                      {epochs / 4, 5});
  const auto inside = [](std::vector<plot::Point> points) {
    for (plot::Point& p : points) p.y = std::max(p.y, 80.0);
    return points;
  };
  accuracy.curve(inside(curves.training), "#9a9a9a", 1.5);
  accuracy.curve(inside(curves.test), "#e08214", 2.5);
  for (const double x : {236.0, 680.0}) picture.text({x, 300}, "epoch", 12);
  picture.text({440, 322}, "grey: distorted training images, orange: images never trained on", 13);
  picture.save(path);
}

/// How the class token attends to the patches in each block, as the mean of its heads, for the
/// first image from `first` on of each digit shown.
inline void draw_attention(const VisionTransformer<float>& model, const Digits& digits, Index first,
                           const std::vector<int>& shown, const std::string& path) {
  constexpr double pixel = 15, size = kSide * pixel, step = size + 22;
  heed::Matrix<float> images(static_cast<Index>(shown.size()), kSide * kSide);
  for (Index n = 0; n < images.rows(); ++n) {
    Index i = first;
    while (digits.labels[static_cast<std::size_t>(i)] != shown[static_cast<std::size_t>(n)]) ++i;
    images.row(n) = digits.images.row(i);
  }
  VisionTransformer<float>::Pass pass;
  model.forward(images, pass);
  const heed::Matrix<float> certainty = heed::softmax(pass.logits);

  plot::Picture picture(90 + double(images.rows()) * step,
                        40 + double(model.blocks.size() + 1) * step);
  for (Index n = 0; n < images.rows(); ++n) {
    Index guess = 0;
    const double percent = 100 * double(certainty.row(n).maxCoeff(&guess));
    char label[64];
    std::snprintf(label, sizeof label, "%td with %.1f %%", guess, percent);
    const double left = 78 + double(n) * step;
    picture.text({left + size / 2, 28}, label, 13, "middle", "font-weight=\"bold\"");
    const Eigen::Map<const heed::Matrix<float>> image(images.row(n).data(), kSide, kSide);
    picture.image({left, 40}, pixel, image);
    for (std::size_t b = 0; b < model.blocks.size(); ++b) {
      const double top = 40 + double(b + 1) * step;
      if (n == 0) picture.text({12, top + size / 2}, "block " + std::to_string(b + 1), 13, "start");
      picture.image({left, top}, pixel, image * 0.5f);
      const auto& y = pass.blocks[b].attention.between;
      const auto weights = model.blocks[b].attention.forward_with_weights(y, y, y).weights;
      heed::Vector<float> mean = heed::Vector<float>::Zero(kGrid * kGrid);
      for (Index h = 0; h < weights.dimension(1); ++h) {
        for (Index j = 0; j < mean.size(); ++j) mean(j) += weights(n, h, 0, 1 + j);
      }
      mean /= mean.maxCoeff();
      for (Index j = 0; j < mean.size(); ++j) {
        picture.box(
            {left + kPatch * pixel * double(j % kGrid), top + kPatch * pixel * double(j / kGrid)},
            kPatch * pixel, kPatch * pixel, "#f07800",
            "fill-opacity=\"" + std::to_string(0.85f * mean(j)) + "\"");
      }
    }
  }
  picture.save(path);
}

}  // namespace vit
