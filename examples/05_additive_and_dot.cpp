// Queries and keys of different widths, two ways: additive attention projects both to one hidden
// width, scaled dot-product attention needs the queries projected to the width of the keys.

#include <cstdio>
#include <exception>
#include <iostream>
#include <string>
#include <vector>
#include <heed/heatmap.hpp>
#include <heed/heed.hpp>

#include "random.hpp"

namespace {

void print(const char* name, const heed::Tensor<float, 3>& weights) {
  std::printf("%s\n", name);
  for (heed::Index b = 0; b < weights.dimension(0); ++b) {
    std::printf("  batch %td, query 0:", b);
    for (heed::Index j = 0; j < weights.dimension(2); ++j) std::printf(" %.3f", weights(b, 0, j));
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string pictures = argc > 1 ? argv[1] : ".";
  constexpr heed::Index batch = 2, queries = 6, keys = 10, query_dim = 20, key_dim = 2, hidden = 8;

  Random random(2015);
  const auto query = random.normal_tensor(batch, queries, query_dim);
  const auto key = random.normal_tensor(batch, keys, key_dim);
  const auto value = random.normal_tensor(batch, keys, 4);
  const std::vector<int> lengths{4,
                                 7};  // keys that batch 0 and batch 1 have; the others are padding

  const heed::AdditiveAttention<float> module(query_dim, key_dim, hidden, 1);
  const auto [sum_output, sum_weights] =
      module.forward_with_weights(query, key, value, heed::valid_lens(lengths));

  const heed::Linear<float> to_key_width{random.normal_matrix(key_dim, query_dim) / 4, {}};
  const auto [dot_output, dot_weights] = heed::attention_with_weights(
      to_key_width(query), key, value, heed::scaled_dot_product(), heed::valid_lens(lengths));

  print("additive", sum_weights);
  print("scaled dot product", dot_weights);

  heed::Tensor<float, 4> both(2, batch, queries, keys);
  both.chip<0>(0) = sum_weights;
  both.chip<0>(1) = dot_weights;
  heed::write_svg(
      pictures + "/05_additive_and_dot.svg",
      heed::heatmap_svg(both, {.title = "Two scores, two lengths of sequence",
                               .panel_names = {"additive, 4 keys", "additive, 7 keys",
                                               "dot product, 4 keys", "dot product, 7 keys"}}));
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
