// A transformer that draws digits pixel by pixel: trained in half a minute, then drawing with
// caches of keys and values, and without them, for which it reads all it has drawn again for each
// pixel.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>
#include <unsupported/Eigen/CXX11/ThreadPool>
#include <heed/heed.hpp>

#include "adam.hpp"
#include "digits.hpp"
#include "plot.hpp"
#include "random.hpp"

namespace {

using heed::Index;
using Ids = heed::Matrix<int>;  // (sequences, tokens)
using Tokens = heed::Tensor<float, 3>;
using Block = heed::TransformerBlock<float>;
using Caches = std::vector<heed::KeyValueCache<float>>;  // one for each block
constexpr Index kLevels = 8, kPixels = 64, kClasses = 10, kTrained = 1000, kBatch = 50;
constexpr Index kSteps = 500, kReport = 50, kLongest = 4096;

/// One sequence for each image: kLevels + its digit, then its pixels in grey levels.
Ids sequences(const Digits& digits) {
  Ids result(digits.images.rows(), 1 + kPixels);
  result.rightCols(kPixels) = (digits.images * (kLevels - 1)).array().round().cast<int>();
  for (Index i = 0; i < result.rows(); ++i) {
    result(i, 0) = static_cast<int>(kLevels) + digits.labels[static_cast<std::size_t>(i)];
  }
  return result;
}

struct PixelModel {
  heed::Embedding<float> tokens;
  std::vector<Block> blocks;
  heed::LayerNorm<float> norm;
  heed::Linear<float> head;  // a logit for each grey level

  PixelModel() = default;
  PixelModel(Index dim, Index heads, std::uint64_t layers)
      : tokens(kLevels + kClasses, dim),
        norm(dim),
        head{heed::Matrix<float>::Zero(kLevels, dim), heed::Vector<float>::Zero(kLevels)} {
    heed::BlockConfig config{.attention = {.embed_dim = dim, .num_heads = heads, .bias = true},
                             .mlp = {.hidden_dim = 2 * dim}};
    config.attention.rotary = heed::RotaryConfig{.base = 100, .layout = heed::RotaryLayout::half};
    for (std::uint64_t seed = 1; seed <= layers; ++seed) blocks.emplace_back(config, seed);
  }

  /// The logits (sequences, 1, kLevels) of what follows the last of the ids: of sequences from
  /// their start, or with caches, of tokens that continue what these hold.
  Tokens next(const auto& ids, Caches* caches = nullptr) const {
    Tokens x = tokens(ids);
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      if (caches) {
        blocks[b].into(x, x, (*caches)[b]);
      } else {
        blocks[b].into(x, x, heed::causal());
      }
    }
    auto last = heed::view(std::as_const(x));
    last.data += (last.shape[1] - 1) * last.strides[1];
    last.shape[1] = 1;
    return head(norm(last));
  }

  Caches make_caches(Index batch, Index capacity, Index window = 0, Index sinks = 0) const {
    Caches caches;
    for (const Block& block : blocks) {
      const auto& c = block.attention.config();
      caches.emplace_back(heed::CacheConfig{batch, c.num_kv_heads, c.head_dim, c.head_dim, capacity,
                                            window, sinks});
    }
    return caches;
  }

  /// Bits a pixel, -log2 of the probability of the true grey level, as the mean over all pixels;
  /// with `gradient`, also the gradient of their number in nats.
  double bits(const Ids& images, Eigen::ThreadPoolInterface* pool,
              PixelModel* gradient = nullptr) const {
    const heed::AttentionOptions options{.pool = pool};
    const auto embedded = tokens.forward(images.leftCols(kPixels), pool);
    std::vector<decltype(blocks[0].forward(embedded.output, heed::causal()))> passes;
    passes.reserve(blocks.size());
    const Tokens* x = &embedded.output;
    for (const Block& block : blocks) {
      passes.push_back(block.forward(*x, heed::causal(), options));
      x = &passes.back().output;
    }
    const auto normed = norm.forward(*x, pool);
    Tokens p = heed::softmax(head(normed.output, pool));
    double bits = 0;
    for (Index i = 0; i < images.rows(); ++i) {
      for (Index n = 0; n < kPixels; ++n) {
        float& truth = p(i, n, images(i, 1 + n));
        bits -= std::log2(std::max(truth, 1e-30f));
        truth -= 1;
      }
    }
    const auto pixels = static_cast<double>(images.rows() * kPixels);
    if (!gradient) return bits / pixels;
    p = p * static_cast<float>(1 / pixels);
    auto by_head = head.backward(normed.output, p, pool);
    gradient->head = std::move(by_head.parameters);
    auto by_norm = norm.backward(normed, by_head.input);
    gradient->norm = std::move(by_norm.parameters);
    Tokens grad = std::move(by_norm.input);
    gradient->blocks.resize(blocks.size());
    for (std::size_t b = blocks.size(); b-- > 0;) {
      auto by_block = blocks[b].backward(passes[b], grad);
      gradient->blocks[b] = std::move(by_block.parameters);
      grad = std::move(by_block.input);
    }
    gradient->tokens = tokens.backward(embedded, grad).parameters;
    return bits / pixels;
  }

  static void members(const auto& visit, auto&... self) {
    visit("tokens", self.tokens...);
    visit("blocks", self.blocks...);
    visit("norm", self.norm...);
    visit("head", self.head...);
  }
};

/// Bits a pixel of `images` where each grey level is as likely as its count in `trained` at that
/// pixel, plus 1/2, says; with `by_class`, its count among the images of the same digit.
double bits_by_counting(const Ids& trained, const Ids& images, bool by_class) {
  std::vector<Eigen::ArrayXXd> counts(kClasses, Eigen::ArrayXXd::Constant(kPixels, kLevels, .5));
  const auto of = [&](int token) -> Eigen::ArrayXXd& {
    return counts[by_class ? static_cast<std::size_t>(token - kLevels) : 0];
  };
  for (const auto& image : trained.rowwise()) {
    for (Index n = 0; n < kPixels; ++n) ++of(image(0))(n, image(1 + n));
  }
  double bits = 0;
  for (const auto& image : images.rowwise()) {
    const Eigen::ArrayXXd& count = of(image(0));
    for (Index n = 0; n < kPixels; ++n) {
      bits -= std::log2(count(n, image(1 + n)) / count.row(n).sum());
    }
  }
  return bits / static_cast<double>(images.rows() * kPixels);
}

PixelModel train(PixelModel model, const Ids& images, Eigen::ThreadPoolInterface* pool) {
  PixelModel average = model, gradient;  // decaying average over steps: steadier than any one
  Adam<float> adam(0.3);
  Random random(2024);
  std::vector<Index> order(kTrained);
  std::iota(order.begin(), order.end(), Index{0});
  double loss = 0;
  for (Index step = 0; step < kSteps; ++step) {
    Ids batch(kBatch, images.cols());
    for (Index n = 0; n < kBatch; ++n) {
      // Shuffled one by one: any of those left may be next (Fisher and Yates).
      const auto at = static_cast<std::size_t>((step * kBatch + n) % kTrained);
      const auto left = static_cast<double>(order.size() - at);
      std::swap(order[at], order[at + static_cast<std::size_t>(random.uniform() * left)]);
      batch.row(n) = images.row(order[at]);
    }
    loss += model.bits(batch, pool, &gradient) / kReport;
    // The rate rises at first, then falls along half a cosine.
    const double progress = static_cast<double>(step + 1) / kSteps;
    adam.begin_step(4e-3 *
                    std::min(progress / .03, (1 + std::cos(3.141592653589793 * progress)) / 2));
    heed::for_each_parameter(model, std::as_const(gradient), adam);
    const auto share = std::max(.02f, 10 / (10 + static_cast<float>(step)));
    heed::for_each_parameter(average, std::as_const(model), [&](auto& mean, const auto& value) {
      mean += share * (value - mean);
    });
    if ((step + 1) % kReport != 0) continue;
    std::printf("step %3td  %.3f bits a pixel of training images\n", step + 1, loss);
    std::fflush(stdout);
    loss = 0;
  }
  return average;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Sequences that begin with these digits, each pixel drawn from the model's probabilities.
Ids draw(const PixelModel& model, const Eigen::VectorXi& digits, bool cached) {
  Ids images(digits.size(), 1 + kPixels);
  images.col(0) = digits.array() + static_cast<int>(kLevels);
  Caches caches = model.make_caches(digits.size(), kPixels);
  Random random(7);
  for (Index n = 0; n < kPixels; ++n) {
    const Tokens p = heed::softmax(cached ? model.next(images.middleCols(n, 1), &caches)
                                          : model.next(images.leftCols(1 + n)));
    for (Index i = 0; i < images.rows(); ++i) {
      double left = random.uniform();
      int level = 0;
      while (level < kLevels - 1 && (left -= p(i, 0, level)) >= 0) ++level;
      images(i, 1 + n) = level;
    }
  }
  return images;
}

/// Points (length of the sequence, milliseconds for its last token), each the median of some, for
/// random pixels one after the other.
std::vector<plot::Point> times(const PixelModel& model, Caches* caches) {
  Random random(3);
  const Ids ids =
      Ids::NullaryExpr(1, kLongest, [&] { return static_cast<int>(kLevels * random.uniform()); });
  std::vector<plot::Point> result;
  std::vector<double> last;
  const auto measure = [&](const auto& tokens) {
    const auto start = std::chrono::steady_clock::now();
    model.next(tokens, caches);
    last.push_back(1000 * seconds_since(start));
  };
  for (Index length = 1; length <= kLongest; ++length) {
    const bool shown = length >= 16 && (length & (length - 1)) == 0;
    if (caches) measure(ids.middleCols(length - 1, 1));
    for (int run = 0; !caches && shown && run < 5; ++run) measure(ids.leftCols(length));
    if (!shown) continue;
    const auto from = last.size() > 32 ? last.end() - 32 : last.begin();
    std::nth_element(from, from + (last.end() - from) / 2, last.end());
    result.push_back({static_cast<double>(length), *(from + (last.end() - from) / 2)});
    if (!caches) last.clear();
  }
  return result;
}

void draw_digits(const Ids& held_out, const Ids& drawn, const std::string& path) {
  constexpr double pixel = 8, step = 76, left = 110;
  constexpr Index real = 2;
  const Index rows = drawn.rows() / kClasses;
  plot::Picture picture(left + step * kClasses + 8, 26 + step * double(real + rows) + 14);
  const auto place = [&](Index row, Index column, const auto& image) {
    const heed::Matrix<float> grey =
        image.rightCols(kPixels).template cast<float>() / (kLevels - 1);
    picture.image({left + step * double(column), 18 + step * double(row) + (row < real ? 0 : 14)},
                  pixel, Eigen::Map<const heed::Matrix<float>>(grey.data(), 8, 8));
  };
  for (int digit = 0; digit < kClasses; ++digit) {
    Index row = 0;
    for (Index i = 0; row < real; ++i) {
      if (held_out(i, 0) == kLevels + digit) place(row++, digit, held_out.row(i));
    }
    for (Index n = 0; n < rows; ++n) place(real + n, digit, drawn.row(n * kClasses + digit));
  }
  picture.text({left - 14, 18 + step * real / 2}, "by hand", 13, "end");
  picture.text({left - 14, 32 + step * double(real + double(rows) / 2)}, "by the model", 13, "end");
  picture.save(path);
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string pictures = argc > 1 ? argv[1] : ".";
  const Digits digits = read_digits(digits_path(argc, argv));
  const Ids all = sequences(digits), trained = all.topRows(kTrained),
            held_out = all.bottomRows(all.rows() - kTrained);
  Eigen::ThreadPool pool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));

  const PixelModel untrained(64, 4, 2);
  auto start = std::chrono::steady_clock::now();
  const PixelModel model = train(untrained, trained, &pool);
  std::printf("trained in %.0f s\n", seconds_since(start));
  std::printf("bits a pixel of %td digits never trained on:\n", held_out.rows());
  const auto report = [](const char* what, double bits) {
    std::printf("  %.3f  %s\n", bits, what);
  };
  report("before training", untrained.bits(held_out, &pool));
  report("each pixel's grey levels, counted", bits_by_counting(trained, held_out, false));
  report("the same for each digit apart", bits_by_counting(trained, held_out, true));
  report("after training", model.bits(held_out, &pool));

  Eigen::VectorXi wanted(500);
  for (Index i = 0; i < wanted.size(); ++i) wanted(i) = static_cast<int>(i % kClasses);
  start = std::chrono::steady_clock::now();
  const Ids drawn = draw(model, wanted, true);
  const double with_caches = seconds_since(start);
  start = std::chrono::steady_clock::now();
  const Ids again = draw(model, wanted, false);
  std::printf(
      "%td digits drawn in %.2f s with caches and in %.2f s without, on one thread:\n"
      "  %td of %td pixels differ\n",
      wanted.size(), with_caches, seconds_since(start), (drawn.array() != again.array()).count(),
      wanted.size() * kPixels);
  draw_digits(held_out, drawn.topRows(4 * kClasses), pictures + "/15_drawn_digits.svg");

  // Judged by attention to the digits written by hand, as in 04_digits.
  const heed::Matrix<float> grey = drawn.rightCols(kPixels).cast<float>() / (kLevels - 1);
  const heed::Matrix<float> votes = heed::attention(
      grey, digits.images.topRows(kTrained), one_hot(digits, kTrained), heed::gaussian(2.69));
  std::printf("  %.1f %% of them are taken for the digit that was asked for\n",
              accuracy(votes, {grey, {wanted.begin(), wanted.end()}}, 0));

  Caches caches = model.make_caches(1, kLongest), windows = model.make_caches(1, 0, kPixels, 1);
  const auto with = times(model, &caches), window = times(model, &windows),
             without = times(model, nullptr);
  std::printf("milliseconds for a token\n  length   again   cache  window\n");
  for (std::size_t n = 0; n < with.size(); ++n) {
    std::printf("%8.0f%8.3f%8.3f%8.3f\n", with[n].x, without[n].y, with[n].y, window[n].y);
  }
  plot::Picture picture(640, 400);
  plot::Axes axes(picture, {64, 36}, 556, 300, {16, 0.01}, {kLongest, 1000},
                  "Milliseconds for a token, by the length of the sequence", {2, 10},
                  plot::Axes::logarithmic);
  axes.curve(without, "#9a9a9a", 2.5);
  axes.curve(with, "#006a8e", 2.5);
  axes.curve(window, "#e08214", 2.5);
  picture.text({320, 386},
               "grey: the whole sequence again, blue: a cache, orange: a cache of the last 64 "
               "tokens and the first",
               13);
  picture.save(pictures + "/15_time_a_token.svg");
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
