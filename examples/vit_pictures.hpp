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
  plot::Axes loss(picture, {56, 36}, 360, 230, {0, 0}, {epochs, 2.4}, "Loss", {epochs / 5, 0.4});
  loss.curve(curves.loss, "#006a8e", 2.5);
  plot::Axes accuracy(picture, {500, 36}, 360, 230, {0, 80}, {epochs, 100}, "Accuracy in %",
                      {epochs / 5, 5});
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

/// How the class token of the last block attends to the patches, in each head, for the first of
/// these images of each of some digits.
inline void draw_attention(const VisionTransformer<float>& model, const Digits& digits, Index first,
                           const std::vector<int>& shown, const std::string& path) {
  constexpr double pixel = 15, gap = 22, size = kSide * pixel;
  heed::Matrix<float> images(static_cast<Index>(shown.size()), kSide * kSide);
  for (std::size_t n = 0; n < shown.size(); ++n) {
    Index i = first;
    while (digits.labels[static_cast<std::size_t>(i)] != shown[n]) ++i;
    images.row(static_cast<Index>(n)) = digits.images.row(i);
  }
  typename VisionTransformer<float>::Pass pass;
  model.forward(images, pass);
  const auto& y = pass.blocks.back().attention_norm.output;
  const auto weights = model.blocks.back().attention.forward_with_weights(y, y, y).weights;
  const heed::Matrix<float> p = heed::softmax(pass.logits);

  const Index heads = weights.dimension(1);
  plot::Picture picture(gap + double(heads + 1) * (size + gap),
                        60 + double(shown.size()) * (size + 2 * gap));
  for (Index h = 0; h < heads; ++h) {
    picture.text({gap + double(h + 1) * (size + gap) + size / 2, 34},
                 "head " + std::to_string(h + 1), 13, "middle", "font-weight=\"bold\"");
  }
  for (Index n = 0; n < images.rows(); ++n) {
    const double top = 46 + double(n) * (size + 2 * gap);
    const Eigen::Map<const heed::Matrix<float>> image(images.row(n).data(), kSide, kSide);
    picture.image({gap, top}, pixel, image);
    Index guess = 0;
    const float certainty = p.row(n).maxCoeff(&guess);
    char label[64];
    std::snprintf(label, sizeof label, "%td with %.1f %%", guess, 100 * certainty);
    picture.text({gap + size / 2, top + size + 18}, label, 13);
    for (Index h = 0; h < heads; ++h) {
      const plot::Point corner{gap + double(h + 1) * (size + gap), top};
      picture.image(corner, pixel, image * 0.5f);
      float largest = 0;
      for (Index j = 0; j <= kGrid * kGrid; ++j) largest = std::max(largest, weights(n, h, 0, j));
      for (Index j = 0; j < kGrid * kGrid; ++j) {
        picture.box(
            {corner.x + kPatch * pixel * double(j % kGrid),
             corner.y + kPatch * pixel * double(j / kGrid)},
            kPatch * pixel, kPatch * pixel, "#f07800",
            "fill-opacity=\"" + std::to_string(0.85f * weights(n, h, 0, 1 + j) / largest) + "\"");
      }
    }
  }
  picture.save(path);
}

}  // namespace vit
