// Multi-head attention of a sentence to itself, each word to those before it, and of a second
// sentence to the first, whose end is padding.

#include <cstdio>
#include <exception>
#include <iostream>
#include <map>
#include <string>
#include <vector>
#include <heed/heatmap.hpp>
#include <heed/heed.hpp>

#include "random.hpp"

namespace {

using Words = std::vector<std::string>;
constexpr heed::Index kEmbedding = 32;

/// (1, words, kEmbedding): one random vector for each word of the vocabulary.
heed::Tensor<float, 3> embed(const Words& words, std::map<std::string, heed::Matrix<float>>& table,
                             Random& random) {
  heed::Tensor<float, 3> result(1, static_cast<heed::Index>(words.size()), kEmbedding);
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (!table.count(words[i])) table[words[i]] = random.normal_matrix(1, kEmbedding);
    for (heed::Index c = 0; c < kEmbedding; ++c) {
      result(0, static_cast<heed::Index>(i), c) = table[words[i]](0, c);
    }
  }
  return result;
}

void print(const char* name, const heed::Tensor<float, 4>& weights, const Words& queries,
           const Words& keys, heed::Index query) {
  for (heed::Index h = 0; h < weights.dimension(1); ++h) {
    heed::Index most = 0;
    for (heed::Index j = 1; j < weights.dimension(3); ++j) {
      if (weights(0, h, query, j) > weights(0, h, query, most)) most = j;
    }
    std::printf("%s, head %td: \"%s\" attends most to \"%s\" (%.3f)\n", name, h,
                queries[static_cast<std::size_t>(query)].c_str(),
                keys[static_cast<std::size_t>(most)].c_str(), weights(0, h, query, most));
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string pictures = argc > 1 ? argv[1] : ".";
  const Words source{"the", "cat", "sat", "on", "the", "mat", "and", "slept", "<pad>", "<pad>"};
  const Words target{"die", "Katze", "schlief"};

  Random random(2017);
  std::map<std::string, heed::Matrix<float>> table;
  const auto x = embed(source, table, random), y = embed(target, table, random);
  const heed::MultiHeadAttention<float> self({.embed_dim = kEmbedding, .num_heads = 4}, 1);
  const heed::MultiHeadAttention<float> cross({.embed_dim = kEmbedding, .num_heads = 4}, 2);

  const auto sentence = heed::valid_lens({8});
  const auto encoded = self.forward_with_weights(x, x, x, sentence && heed::causal());
  const auto decoded = cross.forward_with_weights(y, encoded.output, encoded.output, sentence);

  print("self", encoded.weights, source, source, 7);
  print("cross", decoded.weights, target, source, 2);

  heed::write_svg(pictures + "/06_self_attention.svg",
                  heed::heatmap_svg(encoded.weights, {.title = "Self-attention, causal",
                                                      .row_names = source,
                                                      .column_names = source}));
  heed::write_svg(
      pictures + "/06_cross_attention.svg",
      heed::heatmap_svg(decoded.weights,
                        {.title = "Cross-attention", .row_names = target, .column_names = source}));
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
