#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>
#include <heed/heed.hpp>

#include "random.hpp"

/// The vision transformer (Dosovitskiy et al., "An image is worth 16x16 words", 2021) for images of
/// 8 x 8 pixels cut into 4 x 4 patches of 2 x 2.
namespace vit {

using heed::Index;
template <class Scalar>
using Tokens = heed::Tensor<Scalar, 3>;  // (images, tokens, features)

inline constexpr Index kSide = 8, kPatch = 2, kGrid = kSide / kPatch, kClasses = 10;

/// (images * tokens, features), without a copy.
template <class Scalar>
auto rows(Tokens<Scalar>& x) {
  return Eigen::Map<heed::Matrix<Scalar>>(x.data(), x.dimension(0) * x.dimension(1),
                                          x.dimension(2));
}
template <class Scalar>
auto rows(const Tokens<Scalar>& x) {
  return Eigen::Map<const heed::Matrix<Scalar>>(x.data(), x.dimension(0) * x.dimension(1),
                                                x.dimension(2));
}

/// (images, 64) -> (images, 16, 4): the patches row by row, as are the pixels of each.
template <class Scalar>
Tokens<Scalar> cut(const heed::Matrix<Scalar>& images) {
  Tokens<Scalar> patches(images.rows(), kGrid * kGrid, kPatch * kPatch);
  for (Index n = 0; n < images.rows(); ++n) {
    for (Index y = 0; y < kSide; ++y) {
      for (Index x = 0; x < kSide; ++x) {
        patches(n, y / kPatch * kGrid + x / kPatch, y % kPatch * kPatch + x % kPatch) =
            images(n, y * kSide + x);
      }
    }
  }
  return patches;
}

/// Patches become tokens by a projection and a learned position; a class token goes through the
/// blocks with them, gathers what it needs, and is classified at the end.
template <class Scalar>
struct VisionTransformer {
  using Block = heed::TransformerBlock<Scalar>;
  heed::Linear<Scalar> embedding;
  heed::Matrix<Scalar> positions;  // (1 + patches, features); the first row is the class token
  std::vector<Block> blocks;
  heed::LayerNorm<Scalar> norm;
  heed::Linear<Scalar> head;

  struct Pass {
    Tokens<Scalar> patches, tokens;
    std::vector<decltype(Block().forward(tokens))> blocks;
    heed::Matrix<Scalar> class_tokens;  // (images, features), as the blocks leave them
    decltype(heed::LayerNorm<Scalar>().forward(class_tokens)) norm;
    heed::Matrix<Scalar> logits;  // (images, classes)
  };

  void forward(const heed::Matrix<Scalar>& images, Pass& pass) const {
    pass.patches = cut(images);
    const Tokens<Scalar> embedded = embedding(pass.patches);
    const Index count = images.rows(), patches = embedded.dimension(1), width = positions.cols();
    pass.tokens.resize(count, 1 + patches, width);
    for (Index n = 0; n < count; ++n) {
      auto tokens = rows(pass.tokens).middleRows(n * (1 + patches), 1 + patches);
      tokens = positions;
      tokens.bottomRows(patches) += rows(embedded).middleRows(n * patches, patches);
    }
    pass.blocks.clear();
    for (const Block& block : blocks) {
      pass.blocks.push_back(
          block.forward(pass.blocks.empty() ? pass.tokens : pass.blocks.back().output));
    }
    const auto& last = pass.blocks.empty() ? pass.tokens : pass.blocks.back().output;
    pass.class_tokens.resize(count, width);
    for (Index n = 0; n < count; ++n) {
      pass.class_tokens.row(n) = rows(last).row(n * (1 + patches));
    }
    pass.norm = norm.forward(pass.class_tokens);
    pass.logits = head(pass.norm.output);
  }

  VisionTransformer backward(const Pass& pass, const heed::Matrix<Scalar>& grad_logits) const {
    const Index count = grad_logits.rows(), length = positions.rows(), width = positions.cols();
    VisionTransformer gradients;
    gradients.blocks.resize(blocks.size());
    auto by_head = head.backward(pass.norm.output, grad_logits);
    gradients.head = std::move(by_head.parameters);
    auto by_norm = norm.backward(pass.norm, by_head.input);
    gradients.norm = std::move(by_norm.parameters);

    Tokens<Scalar> grad(count, length, width);
    grad.setZero();
    for (Index n = 0; n < count; ++n) rows(grad).row(n * length) = by_norm.input.row(n);
    for (std::size_t b = blocks.size(); b-- > 0;) {
      auto by_block = blocks[b].backward(pass.blocks[b], grad);
      gradients.blocks[b] = std::move(by_block.parameters);
      grad = std::move(by_block.input);
    }

    gradients.positions = heed::Matrix<Scalar>::Zero(length, width);
    Tokens<Scalar> grad_embedded(count, length - 1, width);
    for (Index n = 0; n < count; ++n) {
      const auto tokens = rows(grad).middleRows(n * length, length);
      gradients.positions += tokens;
      rows(grad_embedded).middleRows(n * (length - 1), length - 1) = tokens.bottomRows(length - 1);
    }
    gradients.embedding = embedding.backward(pass.patches, grad_embedded).parameters;
    return gradients;
  }

  /// What heed::for_each_parameter goes through.
  static void members(const auto& visit, auto&... self) {
    visit("embedding", self.embedding...);
    visit("positions", self.positions...);
    visit("blocks", self.blocks...);
    visit("norm", self.norm...);
    visit("head", self.head...);
  }
};

/// Xavier weights (Glorot and Bengio, 2010) and a bias of zeros.
template <class Scalar>
heed::Linear<Scalar> make_linear(Index in, Index out, Random& random) {
  const double bound = std::sqrt(6.0 / static_cast<double>(in + out));
  return {heed::Matrix<Scalar>::NullaryExpr(
              out, in, [&] { return static_cast<Scalar>(bound * (2 * random.uniform() - 1)); }),
          heed::Vector<Scalar>::Zero(out)};
}

template <class Scalar>
VisionTransformer<Scalar> make_vision_transformer(Index features, Index blocks, Index heads,
                                                  Random& random) {
  VisionTransformer<Scalar> model;
  model.embedding = make_linear<Scalar>(kPatch * kPatch, features, random);
  model.positions = heed::Matrix<Scalar>::NullaryExpr(
      1 + kGrid * kGrid, features, [&] { return static_cast<Scalar>(0.1 * random.normal()); });
  for (Index b = 0; b < blocks; ++b) {
    const heed::BlockConfig config{
        .attention = {.embed_dim = features, .num_heads = heads, .bias = true},
        .mlp = {.hidden_dim = 2 * features, .activation = heed::Activation::gelu_tanh}};
    model.blocks.emplace_back(config, static_cast<std::uint64_t>(4294967296.0 * random.uniform()));
  }
  model.norm = heed::LayerNorm<Scalar>(features);
  model.head = make_linear<Scalar>(features, kClasses, random);
  return model;
}

/// Mean over images of -sum over classes of target log softmax(logits), and its gradient by them.
template <class Scalar>
std::pair<Scalar, heed::Matrix<Scalar>> cross_entropy(const heed::Matrix<Scalar>& logits,
                                                      const heed::Matrix<Scalar>& target) {
  const heed::Matrix<Scalar> p = heed::softmax(logits);
  const auto count = static_cast<Scalar>(logits.rows());
  const Scalar loss = -(target.array() * (p.array() + Scalar(1e-12)).log()).sum() / count;
  return {loss, (p - target) / count};
}

}  // namespace vit
