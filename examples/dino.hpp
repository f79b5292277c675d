#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>
#include <heed/heed.hpp>

#include "pretrained.hpp"

/// The backbone of DINOv2 (Oquab et al., 2023), ViT-S/14: patches of 14 x 14 pixels, a class token,
/// 12 pre-norm layers of width 384 with 6 heads and layer scale.
struct Dino {
  using Image = heed::View<const std::uint8_t, 3>;  // (side, side, 3): red, green, blue
  static constexpr heed::Index kWidth = 384, kHeads = 6, kPatch = 14, kGrid = 37;

  heed::Matrix<float> class_token{1, kWidth};
  heed::Matrix<float> positions{1 + kGrid * kGrid, kWidth};  // of the class token, then row by row
  heed::Linear<float> embedding{heed::Matrix<float>(kWidth, kPatch* kPatch * 3),
                                heed::Vector<float>(kWidth)};  // of a patch's (y, x, colour)
  std::vector<heed::TransformerBlock<float>> blocks = pretrained::blocks<float>(
      12, {.attention = {.embed_dim = kWidth, .num_heads = kHeads, .bias = true},
           .mlp = {.hidden_dim = 4 * kWidth},
           .layer_scale = true,
           .norm_eps = 1e-6});
  heed::LayerNorm<float> norm{kWidth, 1e-6};

  static void members(const auto& visit, auto&... self) {
    visit("class_token", self.class_token...);
    visit("positions", self.positions...);
    visit("embedding", self.embedding...);
    visit("blocks", self.blocks...);
    visit("norm", self.norm...);
  }

  explicit Dino(const heed::SafeTensors& file) { heed::load(*this, file); }

  /// (patches, 14 * 14 * 3): colours less the mean of the training images, in their deviations.
  static heed::Matrix<float> cut(const Image& image) {
    constexpr std::array<float, 3> mean{.485F, .456F, .406F}, deviation{.229F, .224F, .225F};
    const heed::Index grid = image.shape[0] / kPatch;
    if (image.shape != std::array<heed::Index, 3>{grid * kPatch, grid * kPatch, 3}) {
      throw std::invalid_argument("the image is not a square of whole patches in three colours");
    }
    heed::Matrix<float> patches(grid * grid, kPatch * kPatch * 3);
    for (heed::Index y = 0; y < grid * kPatch; ++y) {
      for (heed::Index x = 0; x < grid * kPatch; ++x) {
        const heed::Index patch = y / kPatch * grid + x / kPatch;
        const heed::Index pixel = (y % kPatch * kPatch + x % kPatch) * 3;
        for (heed::Index c = 0; c < 3; ++c) {
          const auto channel = static_cast<std::size_t>(c);
          const float level = static_cast<float>(image(y, x, c)) / 255;
          patches(patch, pixel + c) = (level - mean[channel]) / deviation[channel];
        }
      }
    }
    return patches;
  }

  /// The learned positions of 37 x 37 patches, resized to grid x grid: bicubic with a = -.75
  /// (Keys, "Cubic convolution interpolation for digital image processing", 1981) between the
  /// middles of patches, those at the border going on beyond it.
  heed::Matrix<float> patch_positions(heed::Index grid) const {
    const heed::Matrix<float> given = positions.bottomRows(kGrid * kGrid);
    if (grid == kGrid) return given;
    heed::Matrix<float> weights = heed::Matrix<float>::Zero(grid, kGrid);
    for (heed::Index to = 0; to < grid; ++to) {
      const double at = (static_cast<double>(to) + .5) * kGrid / static_cast<double>(grid) - .5;
      const auto left = static_cast<heed::Index>(std::floor(at));
      for (heed::Index from = left - 1; from <= left + 2; ++from) {
        constexpr double a = -.75;
        const double d = std::abs(at - static_cast<double>(from));
        const double share = d <= 1 ? ((a + 2) * d - (a + 3)) * d * d + 1
                                    : ((a * d - 5 * a) * d + 8 * a) * d - 4 * a;
        weights(to, std::clamp<heed::Index>(from, 0, kGrid - 1)) += static_cast<float>(share);
      }
    }
    heed::Matrix<float> result = heed::Matrix<float>::Zero(grid * grid, kWidth);
    for (heed::Index y = 0; y < grid; ++y) {
      heed::Matrix<float> row = heed::Matrix<float>::Zero(kGrid, kWidth);
      for (heed::Index from = 0; from < kGrid; ++from) {
        if (weights(y, from) != 0) row += weights(y, from) * given.middleRows(from * kGrid, kGrid);
      }
      result.middleRows(y * grid, grid) = weights * row;
    }
    return result;
  }

  /// Tokens (1 + patches, 384), the class token first, in front of the first block.
  heed::Matrix<float> tokens(const Image& image, Eigen::ThreadPoolInterface* pool = nullptr) const {
    const heed::Matrix<float> patches = cut(image);
    heed::Matrix<float> x(1 + patches.rows(), kWidth);
    embedding.into(x.bottomRows(patches.rows()), patches, pool);
    x.bottomRows(patches.rows()) += patch_positions(image.shape[0] / kPatch);
    x.row(0) = class_token.row(0) + positions.row(0);
    return x;
  }

  /// Last states (1 + patches, 384) of an image whose side is a multiple of 14; into `attention`,
  /// if it is given, what the class token attends to in the last block, (heads, 1 + patches).
  heed::Matrix<float> operator()(const Image& image, const heed::AttentionOptions& options = {},
                                 heed::Matrix<float>* attention = nullptr) const {
    heed::Matrix<float> x = tokens(image, options.pool);
    for (const auto& block : blocks) {
      if (attention != nullptr && &block == &blocks.back()) {
        const heed::Matrix<float> read = block.attention_norm(x, options.pool);
        const auto seen = block.attention.forward_with_weights(
            heed::Matrix<float>(read.topRows(1)), read, read, heed::no_mask(), options);
        *attention = Eigen::Map<const heed::Matrix<float>>(seen.weights.data(), kHeads, x.rows());
      }
      block.into(x, x, heed::no_mask(), options);
    }
    norm.into(x, x, options.pool);
    return x;
  }
};
