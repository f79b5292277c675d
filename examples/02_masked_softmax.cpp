// Sentences of unequal length in one batch: what is padding gets no weight.

#include <algorithm>
#include <cstdio>
#include <exception>
#include <iostream>
#include <iterator>
#include <set>
#include <sstream>
#include <string>
#include <vector>
#include <heed/heatmap.hpp>
#include <heed/heed.hpp>

namespace {

/// How many different letters two words have in common.
float shared_letters(const std::string& a, const std::string& b) {
  const std::set<char> letters(a.begin(), a.end());
  return static_cast<float>(std::count_if(letters.begin(), letters.end(),
                                          [&](char c) { return b.find(c) != std::string::npos; }));
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string pictures = argc > 1 ? argv[1] : ".";
  const std::vector<std::string> sentences{"the cat sat on that mat", "rain in spain",
                                           "more or less"};

  constexpr heed::Index longest = 6;
  std::vector<std::vector<std::string>> words;
  std::vector<int> lengths;
  for (const auto& sentence : sentences) {
    std::istringstream in(sentence);
    words.emplace_back(std::istream_iterator<std::string>(in),
                       std::istream_iterator<std::string>());
    lengths.push_back(static_cast<int>(words.back().size()));
    words.back().resize(longest, "aeiou");  // padding that would match a lot
  }
  heed::Tensor<float, 3> scores(3, longest, longest);  // (batch, queries, keys)
  for (heed::Index b = 0; b < 3; ++b) {
    for (heed::Index i = 0; i < longest; ++i) {
      for (heed::Index j = 0; j < longest; ++j) {
        const auto& sentence = words[static_cast<std::size_t>(b)];
        scores(b, i, j) = shared_letters(sentence[static_cast<std::size_t>(i)],
                                         sentence[static_cast<std::size_t>(j)]);
      }
    }
  }

  const auto weights = heed::masked_softmax(scores, lengths);
  const auto earlier = heed::masked_softmax(scores, heed::valid_lens(lengths) && heed::causal());

  for (heed::Index b = 0; b < 3; ++b) {
    for (const auto* w : {&weights, &earlier}) {
      float sum = 0;
      std::printf("%-23s  second word %s:", sentences[static_cast<std::size_t>(b)].c_str(),
                  w == &weights ? "sees the sentence" : "sees up to itself");
      for (heed::Index j = 0; j < longest; ++j) {
        std::printf(" %.3f", (*w)(b, 1, j));
        sum += (*w)(b, 1, j);
      }
      std::printf("   sum %.3f\n", sum);
    }
  }

  heed::write_svg(pictures + "/02_masked_softmax.svg",
                  heed::heatmap_svg(weights, {.title = "Weights by shared letters",
                                              .x_label = "word attended to",
                                              .y_label = "word",
                                              .row_names = {"1", "2", "3", "4", "5", "6"},
                                              .column_names = {"1", "2", "3", "4", "5", "6"},
                                              .panel_names = sentences,
                                              .high = 1}));
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
