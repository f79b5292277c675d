#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>
#include <heed/heed.hpp>

#include "layers.hpp"

/// The vision transformer (Dosovitskiy et al., "An image is worth 16x16 words", 2021) for images of
/// 8 x 8 pixels cut into 4 x 4 patches of 2 x 2.
namespace vit {

inline constexpr Index kSide = 8, kPatch = 2, kGrid = kSide / kPatch, kClasses = 10;

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

/// Attention and then an MLP, each added to what it reads, which is normalised first (Xiong et al.,
/// "On layer normalization in the transformer architecture", 2020).
template <class Scalar>
struct Block {
  using Attention = heed::MultiHeadAttention<Scalar>;
  LayerNorm<Scalar> attention_norm;
  Attention attention;
  LayerNorm<Scalar> mlp_norm;
  Mlp<Scalar> mlp;

  struct Pass {
    typename LayerNorm<Scalar>::Pass attention_norm, mlp_norm;
    // Refers to attention_norm.output.
    std::optional<decltype(Attention().forward(Tokens<Scalar>(), Tokens<Scalar>(),
                                               Tokens<Scalar>()))>
        attention;
    typename Mlp<Scalar>::Pass mlp;
    Tokens<Scalar> output;
  };

  /// The pass stays where it is until backward, as it refers to itself.
  void forward(const Tokens<Scalar>& x, Pass& pass) const {
    pass.attention_norm = attention_norm.forward(x);
    const auto& y = pass.attention_norm.output;
    pass.attention.emplace(attention.forward(y, y, y));
    pass.output = x + pass.attention->output;
    pass.mlp_norm = mlp_norm.forward(pass.output);
    pass.mlp = mlp.forward(pass.mlp_norm.output);
    pass.output += pass.mlp.output;
  }

  Gradients<Tokens<Scalar>, Block> backward(const Pass& pass,
                                            const Tokens<Scalar>& grad_output) const {
    auto by_mlp = mlp.backward(pass.mlp_norm.output, pass.mlp, grad_output);
    auto by_mlp_norm = mlp_norm.backward(pass.mlp_norm, by_mlp.input);
    const Tokens<Scalar> grad_middle = grad_output + by_mlp_norm.input;
    auto by_attention = attention.backward(*pass.attention, grad_middle);
    by_attention.query += by_attention.key + by_attention.value;  // all three are one input
    auto by_attention_norm = attention_norm.backward(pass.attention_norm, by_attention.query);
    return {grad_middle + by_attention_norm.input,
            {std::move(by_attention_norm.parameters), std::move(by_attention.parameters),
             std::move(by_mlp_norm.parameters), std::move(by_mlp.parameters)}};
  }

  static void members(const auto& visit, auto&... self) {
    visit("attention_norm", self.attention_norm...);
    visit("attention", self.attention...);
    visit("mlp_norm", self.mlp_norm...);
    visit("mlp", self.mlp...);
  }
};

/// Patches become tokens by a projection and a learned position; a class token goes through the
/// blocks with them, gathers what it needs, and is classified at the end.
template <class Scalar>
struct VisionTransformer {
  heed::Linear<Scalar> embedding;
  heed::Matrix<Scalar> positions;  // (1 + patches, features); the first row is the class token
  std::vector<Block<Scalar>> blocks;
  LayerNorm<Scalar> norm;
  heed::Linear<Scalar> head;

  struct Pass {
    Tokens<Scalar> patches, tokens;
    std::vector<typename Block<Scalar>::Pass> blocks;
    typename LayerNorm<Scalar>::Pass norm;  // of the class tokens, (images, 1, features)
    heed::Matrix<Scalar> logits;            // (images, classes)
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
    pass.blocks.resize(blocks.size());
    const Tokens<Scalar>* x = &pass.tokens;
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      blocks[b].forward(*x, pass.blocks[b]);
      x = &pass.blocks[b].output;
    }
    Tokens<Scalar> class_tokens(count, 1, width);
    for (Index n = 0; n < count; ++n) rows(class_tokens).row(n) = rows(*x).row(n * (1 + patches));
    pass.norm = norm.forward(class_tokens);
    pass.logits = head(rows(pass.norm.output));
  }

  VisionTransformer backward(const Pass& pass, const heed::Matrix<Scalar>& grad_logits) const {
    const Index count = grad_logits.rows(), length = positions.rows(), width = positions.cols();
    VisionTransformer gradients;
    gradients.blocks.resize(blocks.size());
    auto by_head = head.backward(rows(pass.norm.output), grad_logits);
    gradients.head = std::move(by_head.parameters);
    Tokens<Scalar> grad(count, 1, width);
    rows(grad) = by_head.input;
    auto by_norm = norm.backward(pass.norm, grad);
    gradients.norm = std::move(by_norm.parameters);

    grad.resize(count, length, width);
    grad.setZero();
    for (Index n = 0; n < count; ++n) rows(grad).row(n * length) = rows(by_norm.input).row(n);
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

  static void members(const auto& visit, auto&... self) {
    visit("embedding", self.embedding...);
    visit("positions", self.positions...);
    visit("blocks", self.blocks...);
    visit("norm", self.norm...);
    visit("head", self.head...);
  }
};

template <class Scalar>
VisionTransformer<Scalar> make_vision_transformer(Index features, Index blocks, Index heads,
                                                  Random& random) {
  VisionTransformer<Scalar> model;
  model.embedding = make_linear<Scalar>(kPatch * kPatch, features, random);
  model.positions = heed::Matrix<Scalar>::NullaryExpr(
      1 + kGrid * kGrid, features, [&] { return static_cast<Scalar>(0.1 * random.normal()); });
  for (Index b = 0; b < blocks; ++b) {
    const heed::MultiHeadConfig config{.embed_dim = features, .num_heads = heads, .bias = true};
    const auto seed = static_cast<std::uint64_t>(4294967296.0 * random.uniform());
    Mlp<Scalar> mlp{make_linear<Scalar>(features, 2 * features, random),
                    make_linear<Scalar>(2 * features, features, random)};
    model.blocks.push_back({make_layer_norm<Scalar>(features),
                            heed::MultiHeadAttention<Scalar>(config, seed),
                            make_layer_norm<Scalar>(features), std::move(mlp)});
  }
  model.norm = make_layer_norm<Scalar>(features);
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
