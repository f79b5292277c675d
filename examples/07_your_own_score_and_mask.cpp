// A score and a mask of your own: lambdas that compile into the fused loop, composed with what the
// library has.

#include <cmath>
#include <cstdio>
#include <exception>
#include <iostream>
#include <string>
#include <heed/heatmap.hpp>
#include <heed/heed.hpp>

#include "random.hpp"

int main(int argc, char** argv) try {
  using heed::Index;
  const std::string pictures = argc > 1 ? argv[1] : ".";

  // Similarity: city-block distance, feature by feature; then favour neighbours by the logarithm of
  // how far they are apart; at last keep scores within -8 to 8.
  const auto score = heed::pairwise([](auto q, auto k) {
                       using std::abs;
                       return -abs(q - k);
                     }) |
                     heed::score_mod([](auto s, Index, Index, Index i, Index j) {
                       return s - std::log1p(static_cast<float>(std::abs(i - j)));
                     }) |
                     heed::softcap(8);

  // The last 4 positions, and of those before every 8th, as a summary ("strided" attention).
  const auto summary = heed::mask_if([](Index, Index, Index, Index j) { return j % 8 == 7; });
  const auto mask = heed::causal() && (heed::sliding_window(3, 0) || summary);

  Random random(7);
  constexpr Index length = 2048, dim = 16;
  const auto query = random.normal_matrix(length, dim), key = random.normal_matrix(length, dim),
             value = random.normal_matrix(length, dim);
  const heed::Matrix<float> fused = heed::attention(query, key, value, score, mask);
  const auto [output, weights] = heed::attention_with_weights(query, key, value, score, mask);

  std::printf("%td queries and keys: fused and reference differ by at most %.1e\n", length,
              (fused - output).cwiseAbs().maxCoeff());
  std::printf("query 20 sees keys:");
  for (Index j = 0; j < length; ++j) {
    if (weights(20, j) > 0) std::printf(" %td (%.3f)", j, weights(20, j));
  }
  std::printf("\n");

  heed::write_svg(
      pictures + "/07_your_own_score_and_mask.svg",
      heed::heatmap_svg(weights.topLeftCorner(40, 40),
                        {.title = "Own score, own mask: the first 40 positions", .high = 0.4}));
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
