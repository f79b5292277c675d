// Handwritten digits classified by attention alone, without training: 1,000 labelled images are the
// keys, their labels the values, and every other image is a query.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <iostream>
#include <iterator>
#include <numeric>
#include <string>
#include <vector>
#include <heed/heed.hpp>

#include "digits.hpp"
#include "plot.hpp"

namespace {

using heed::Index;
using Matrix = heed::Matrix<float>;
constexpr Index kKeys = 1000, kShown = 7;

/// One row: the query, what it is taken for, and the keys that it attends to most.
void draw(plot::Picture& picture, double y, const Digits& digits, Index query, Index guess,
          float certainty, const Matrix& weights) {
  const auto image = [&](Index i) {
    return Eigen::Map<const Matrix>(digits.images.row(i).data(), 8, 8);
  };
  char label[64];
  const int truth = digits.labels[static_cast<std::size_t>(kKeys + query)];
  picture.image({30, y}, 8, image(kKeys + query));
  std::snprintf(label, sizeof label, "is a %d", truth);
  picture.text({112, y + 22}, label, 13, "start");
  std::snprintf(label, sizeof label, "taken for %td", guess);
  picture.text({112, y + 40}, label, 13, "start",
               truth == guess ? "font-weight=\"bold\"" : "font-weight=\"bold\" fill=\"#c0262d\"");
  std::snprintf(label, sizeof label, "with %.1f %%", 100 * certainty);
  picture.text({112, y + 58}, label, 13, "start");

  std::vector<Index> order(kKeys);
  std::iota(order.begin(), order.end(), Index{0});
  std::partial_sort(order.begin(), order.begin() + kShown, order.end(),
                    [&](Index a, Index b) { return weights(query, a) > weights(query, b); });
  for (Index rank = 0; rank < kShown; ++rank) {
    const Index key = order[static_cast<std::size_t>(rank)];
    const double x = 236 + 86 * static_cast<double>(rank);
    picture.image({x, y}, 8, image(key));
    const double share = weights(query, key);
    picture.box({x, y + 70}, 64, 5, "#e8e8e8");
    picture.box({x, y + 70}, 64 * share, 5, "#006a8e");
    std::snprintf(label, sizeof label, "%d: %.3f", digits.labels[static_cast<std::size_t>(key)],
                  share);
    picture.text({x + 32, y + 90}, label, 12);
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string pictures = argc > 1 ? argv[1] : ".";
  const Digits digits = read_digits(digits_path(argc, argv));
  const Index queries = digits.images.rows() - kKeys;
  const auto key = digits.images.topRows(kKeys), query = digits.images.bottomRows(queries);
  const Matrix labels = one_hot(digits, kKeys);

  const auto start = std::chrono::steady_clock::now();
  const Matrix votes = heed::attention(query, key, labels, heed::gaussian(3));
  const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;

  std::vector<Index> guesses(static_cast<std::size_t>(queries)), wrong;
  for (Index i = 0; i < queries; ++i) {
    Index& guess = guesses[static_cast<std::size_t>(i)];
    votes.row(i).maxCoeff(&guess);
    if (guess != digits.labels[static_cast<std::size_t>(kKeys + i)]) wrong.push_back(i);
  }
  const auto right = queries - static_cast<Index>(wrong.size());
  std::printf("%td of %td digits right: %.1f %%\n", right, queries,
              100.0 * static_cast<double>(right) / static_cast<double>(queries));
  std::printf("%td queries x %td keys of 64 pixels in %.1f ms on one thread\n", queries, kKeys,
              time.count());

  const auto weights = heed::attention_with_weights(query, key, labels, heed::gaussian(3)).weights;
  plot::Picture picture(840, 640);
  picture.text({30, 32}, "Query", 15, "start", "font-weight=\"bold\"");
  picture.text({236, 32}, "Training images it attends to most: label and weight", 15, "start",
               "font-weight=\"bold\"");
  std::vector<Index> shown{3, 5, 8};
  shown.insert(shown.end(), wrong.begin(),
               wrong.begin() + std::min<std::ptrdiff_t>(2, std::ssize(wrong)));
  double y = 52;
  for (const Index i : shown) {
    const Index guess = guesses[static_cast<std::size_t>(i)];
    draw(picture, y, digits, i, guess, votes(i, guess), weights);
    y += 116;
  }
  picture.save(pictures + "/04_digits.svg");
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
