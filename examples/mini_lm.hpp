#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <string>
#include <vector>
#include <heed/heed.hpp>

#include "pretrained.hpp"

/// all-MiniLM-L6-v2, which gives sentences of similar meaning similar vectors: BERT (Devlin et al.,
/// 2019) of 6 post-norm layers of width 384, 12 heads (Wang et al., "MiniLM", 2020), trained on
/// pairs of sentences (Reimers and Gurevych, "Sentence-BERT", 2019).
struct MiniLm {
  static constexpr heed::Index kWidth = 384, kLongest = 512;
  using Ids = std::vector<int>;

  heed::Embedding<float> words{30522, kWidth}, positions{kLongest, kWidth}, kinds{2, kWidth};
  heed::LayerNorm<float> norm{kWidth, 1e-12};
  std::vector<heed::TransformerBlock<float>> blocks = pretrained::blocks<float>(
      6, {.attention = {.embed_dim = kWidth, .num_heads = 12, .bias = true},
          .mlp = {.hidden_dim = 1536},
          .pre_norm = false,
          .norm_eps = 1e-12});

  static void members(const auto& visit, auto&... self) {
    visit("words", self.words...);
    visit("positions", self.positions...);
    visit("kinds", self.kinds...);
    visit("norm", self.norm...);
    visit("blocks", self.blocks...);
  }

  explicit MiniLm(const heed::SafeTensors& file) {
    heed::load(*this, file, [](const std::string& name) {
      if (name.starts_with("norm")) return "embeddings.LayerNorm" + name.substr(4);
      return pretrained::renamed(name, {{"words", "embeddings.word_embeddings"},
                                        {"positions", "embeddings.position_embeddings"},
                                        {"kinds", "embeddings.token_type_embeddings"},
                                        {"blocks", "encoder.layer"},
                                        {"query_projection", "self.query"},
                                        {"key_projection", "self.key"},
                                        {"value_projection", "self.value"},
                                        {"output_projection", "output.dense"},
                                        {"attention_norm", "attention.output.LayerNorm"},
                                        {"mlp.up_projection", "intermediate.dense"},
                                        {"mlp.down_projection", "output.dense"},
                                        {"mlp_norm", "output.LayerNorm"}});
    });
  }

  /// Last states of sentences (batch, longest, 384), of which those behind a sentence's end mean
  /// nothing.
  heed::Tensor<float, 3> states(const std::vector<Ids>& sentences,
                                const heed::AttentionOptions& options = {}) const {
    std::vector<heed::Index> lengths;
    for (const Ids& ids : sentences) lengths.push_back(static_cast<heed::Index>(ids.size()));
    const auto longest = std::min(*std::max_element(lengths.begin(), lengths.end()), kLongest);
    heed::Matrix<int> padded =
        heed::Matrix<int>::Zero(static_cast<heed::Index>(sentences.size()), longest);
    for (std::size_t n = 0; n < sentences.size(); ++n) {
      for (heed::Index i = 0; i < std::min(lengths[n], longest); ++i) {
        padded(static_cast<heed::Index>(n), i) = sentences[n][static_cast<std::size_t>(i)];
      }
    }
    heed::Tensor<float, 3> x = words(padded, options.pool);
    for (heed::Index n = 0; n < padded.rows(); ++n) {
      pretrained::rows(x).middleRows(n * longest, longest) +=
          positions.weight.topRows(longest).rowwise() + kinds.weight.row(0);
    }
    norm.into(x, x, options.pool);
    for (const auto& block : blocks) block.into(x, x, heed::valid_lens(lengths), options);
    return x;
  }

  /// A vector of length 1 for each sentence, given by its tokens: the direction of their mean
  /// state.
  heed::Matrix<float> embed(const std::vector<Ids>& sentences,
                            const heed::AttentionOptions& options = {}) const {
    constexpr std::size_t batch = 8;  // of sentences of about one length: little is padding
    std::vector<std::size_t> order(sentences.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return sentences[a].size() < sentences[b].size();
    });
    heed::Matrix<float> result(static_cast<heed::Index>(sentences.size()), kWidth);
    for (std::size_t first = 0; first < order.size(); first += batch) {
      std::vector<Ids> some;
      for (std::size_t n = first; n < std::min(first + batch, order.size()); ++n) {
        some.push_back(sentences[order[n]]);
      }
      auto x = states(some, options);
      for (std::size_t n = 0; n < some.size(); ++n) {
        const auto length = std::min(static_cast<heed::Index>(some[n].size()), kLongest);
        const auto start = static_cast<heed::Index>(n) * x.dimension(1);
        result.row(static_cast<heed::Index>(order[first + n])) =
            pretrained::rows(x).middleRows(start, length).colwise().mean().normalized();
      }
    }
    return result;
  }
};
