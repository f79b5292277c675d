// Self-attention of two words, with numbers small enough to check by hand.

#include <cstdio>
#include <exception>
#include <iostream>
#include <string>
#include <heed/heatmap.hpp>
#include <heed/heed.hpp>

namespace {

using Matrix = heed::Matrix<double>;

void print(const char* name, const Matrix& rows) {
  for (heed::Index i = 0; i < rows.rows(); ++i) {
    std::printf("%s%td = (", name, i + 1);
    for (heed::Index j = 0; j < rows.cols(); ++j) {
      std::printf("%s%.5g", j ? ", " : "", rows(i, j));
    }
    std::printf(i + 1 < rows.rows() ? ")   " : ")\n");
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string pictures = argc > 1 ? argv[1] : ".";

  // Each word is a row of two features; the projections make four for matching, two for the answer.
  const Matrix x{{1, 2}, {2, 1}};
  const Matrix query_weight{{1, 0, 1, 0}, {0, 1, 0, 1}};
  const Matrix key_weight{{1, 0, 0, 1}, {0, 1, -1, 0}};
  const Matrix value_weight{{1, 1}, {0, 2}};
  const Matrix query = x * query_weight, key = x * key_weight, value = x * value_weight;

  const auto [output, weights] =
      heed::attention_with_weights(query, key, value, heed::scaled_dot_product());

  print("x", x);
  print("q", query);
  print("k", key);
  print("v", value);
  const Matrix scores = query * key.transpose() / 2;  // 2 = sqrt(4 features)
  for (heed::Index i = 0; i < 2; ++i) {
    std::printf("word %td scores (%g, %g)   w%td1 = %.6f   w%td2 = %.6f\n", i + 1, scores(i, 0),
                scores(i, 1), i + 1, weights(i, 0), i + 1, weights(i, 1));
  }
  print("output", output);

  heed::write_svg(pictures + "/01_two_words.svg",
                  heed::heatmap_svg(weights, {.title = "Two words",
                                              .row_names = {"time", "flies"},
                                              .column_names = {"time", "flies"},
                                              .low = 0,
                                              .high = 1,
                                              .cell_size = 64}));
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
