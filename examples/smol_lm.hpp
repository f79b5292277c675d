#pragma once

#include <cstddef>
#include <string>
#include <vector>
#include <heed/heed.hpp>

#include "pretrained.hpp"

/// SmolLM2-135M-Instruct (Allal et al., 2025): 30 blocks of width 576 as in Llama (Touvron et al.,
/// 2023), 9 heads of queries on 3 of keys and values, rotary positions, gated SiLU; weights of
/// bfloat16, all else in float.
struct SmolLm {
  using Element = Eigen::bfloat16;
  using Ids = std::vector<int>;
  using Cache = heed::KeyValueCache<float>;
  static constexpr heed::Index kWidth = 576, kHeads = 9, kKeyHeads = 3, kHeadDim = 64, kBlocks = 30;

  heed::Embedding<Element> embedding{49152, kWidth};
  std::vector<heed::TransformerBlock<Element>> blocks = pretrained::blocks<Element>(
      kBlocks,
      {.attention = {.embed_dim = kWidth,
                     .num_heads = kHeads,
                     .num_kv_heads = kKeyHeads,
                     .rotary = heed::RotaryConfig{.base = 100000,
                                                  .layout = heed::RotaryLayout::interleaved}},
       .mlp =
           {.hidden_dim = 1536, .activation = heed::Activation::silu, .gated = true, .bias = false},
       .norm = heed::Norm::rms,
       .norm_eps = 1e-5});
  heed::RmsNorm<Element> norm{kWidth, 1e-5};

  static void members(const auto& visit, auto&... self) {
    visit("embedding", self.embedding...);
    visit("blocks", self.blocks...);
    visit("norm", self.norm...);
  }

  explicit SmolLm(const heed::SafeTensors& file) { heed::load(*this, file); }

  /// Keys and values of one conversation, a cache for each block.
  static std::vector<Cache> caches(heed::Index capacity) {
    std::vector<Cache> result;
    for (heed::Index n = 0; n < kBlocks; ++n) {
      result.emplace_back(heed::CacheConfig{
          .kv_heads = kKeyHeads, .key_dim = kHeadDim, .value_dim = kHeadDim, .capacity = capacity});
    }
    return result;
  }

  /// Scores of what may follow tokens and all that the caches hold, (tokens, 49152), or of what
  /// may follow the last one, (1, 49152).
  heed::Matrix<float> next(const Ids& ids, std::vector<Cache>& held, bool last_only = true,
                           const heed::AttentionOptions& options = {}) const {
    heed::Matrix<float> x(static_cast<heed::Index>(ids.size()), kWidth);
    embedding.into(x, ids, options.pool);
    for (std::size_t n = 0; n < blocks.size(); ++n) blocks[n].into(x, x, held[n], options);
    if (last_only) x = x.bottomRows(1).eval();
    norm.into(x, x, options.pool);
    return embedding.logits(x, options.pool);
  }

  /// The same for a whole text, without caches.
  heed::Matrix<float> read(const Ids& ids, const heed::AttentionOptions& options = {}) const {
    heed::Matrix<float> x(static_cast<heed::Index>(ids.size()), kWidth);
    embedding.into(x, ids, options.pool);
    for (const auto& block : blocks) block.into(x, x, heed::causal(), options);
    norm.into(x, x, options.pool);
    return embedding.logits(x, options.pool);
  }
};
