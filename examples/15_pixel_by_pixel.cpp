// A transformer draws digits pixel by pixel, after less than half a minute of training: with caches
// of keys and values, and without them, for which it reads all it has drawn again for each pixel.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
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
using Matrix = heed::Matrix<float>;
using Ids = heed::Matrix<int>;                           // (sequences, tokens)
using Tokens = heed::Tensor<float, 3>;                   // (sequences, tokens, features)
using Caches = std::vector<heed::KeyValueCache<float>>;  // one for each block
constexpr int kLevels = 8, kDigits = 10;
constexpr Index kPixels = 64, kTrained = 1000, kBatch = 20, kSteps = 800, kReport = 100;
constexpr Index kDrawn = 500, kLongest = 4096;

/// The digit of each image as a token of its own, then its pixels in grey levels.
Ids sequences(const Digits& digits) {
  Ids result(digits.images.rows(), 1 + kPixels);
  result.col(0) = Eigen::Map<const Eigen::VectorXi>(digits.labels.data(), result.rows());
  result.col(0).array() += kLevels;
  result.rightCols(kPixels) = (digits.images * (kLevels - 1)).array().round().cast<int>();
  return result;
}

/// Pixels of sequences from 0 (paper) to 1 (ink).
Matrix grey(const Ids& ids) { return ids.rightCols(kPixels).cast<float>() / (kLevels - 1); }

struct PixelModel {
  heed::Embedding<float> tokens;
  std::vector<heed::TransformerBlock<float>> blocks;
  heed::LayerNorm<float> norm;
  heed::Linear<float> head;  // a logit for each grey level

  PixelModel() = default;
  PixelModel(Index dim, Index heads, std::uint64_t layers)
      : tokens(kLevels + kDigits, dim),
        norm(dim),
        head{Matrix::Zero(kLevels, dim), heed::Vector<float>::Zero(kLevels)} {
    heed::BlockConfig config{.attention = {.embed_dim = dim, .num_heads = heads, .bias = true},
                             .mlp = {.hidden_dim = 2 * dim}};
    // Of heads of 16 features, the slowest pair turns once in 123 pixels, about two images.
    config.attention.rotary = heed::RotaryConfig{.base = 30, .layout = heed::RotaryLayout::half};
    for (std::uint64_t seed = 1; seed <= layers; ++seed) blocks.emplace_back(config, seed);
  }

  Caches caches(heed::CacheConfig config) const {
    const heed::MultiHeadConfig& heads = blocks[0].attention.config();
    config.kv_heads = heads.num_kv_heads;
    config.key_dim = config.value_dim = heads.head_dim;
    return Caches(blocks.size(), heed::KeyValueCache<float>(config));
  }

  /// Logits (sequences, 1, kLevels) of what comes after the last of the ids, which are whole
  /// sequences or, with caches, go on from what these hold.
  Tokens next(const auto& ids, Caches* caches) const {
    Tokens x = tokens(ids);
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      if (caches) {
        blocks[b].into(x, x, (*caches)[b]);
      } else {
        blocks[b].into(x, x, heed::causal());
      }
    }
    heed::View<const float, 3> last = heed::view(x);
    last.data += (last.shape[1] - 1) * last.strides[1];
    last.shape[1] = 1;
    return head(norm(last));
  }

  /// Bits a pixel: the mean of -log2 of the probability of its grey level. `gradient`, unless it is
  /// null, becomes that of the mean of -ln.
  double bits(const Ids& images, PixelModel* gradient,
              const heed::AttentionOptions& options) const {
    const auto embedded = tokens.forward(images.leftCols(kPixels), options.pool);
    std::vector<decltype(blocks[0].forward(embedded.output, heed::causal()))> passes;
    passes.reserve(blocks.size());
    const Tokens* x = &embedded.output;
    for (const auto& block : blocks) {
      passes.push_back(block.forward(*x, heed::causal(), options));
      x = &passes.back().output;
    }
    const auto normed = norm.forward(*x, options.pool);
    Tokens p = heed::softmax(head(normed.output, options.pool));
    const auto pixels = static_cast<float>(images.rows() * kPixels);
    double sum = 0;
    for (Index i = 0; i < images.rows(); ++i) {
      for (Index n = 0; n < kPixels; ++n) {
        float& truth = p(i, n, images(i, 1 + n));
        sum -= std::log2(std::max(truth, 1e-30f));
        truth -= 1;
      }
    }
    if (gradient) {
      p = p / pixels;
      auto by_head = head.backward(normed.output, p, options.pool);
      auto by_norm = norm.backward(normed, by_head.input);
      gradient->head = std::move(by_head.parameters);
      gradient->norm = std::move(by_norm.parameters);
      gradient->blocks.resize(blocks.size());
      for (std::size_t b = blocks.size(); b-- > 0;) {
        auto by_block = blocks[b].backward(passes[b], by_norm.input);
        gradient->blocks[b] = std::move(by_block.parameters);
        by_norm.input = std::move(by_block.input);
      }
      gradient->tokens = tokens.backward(embedded, by_norm.input).parameters;
    }
    return sum / pixels;
  }

  static void members(const auto& visit, auto&... self) {
    visit("tokens", self.tokens...);
    visit("blocks", self.blocks...);
    visit("norm", self.norm...);
    visit("head", self.head...);
  }
};

void train(PixelModel& model, const Ids& images, Eigen::ThreadPoolInterface* pool) {
  Adam<float> adam(1);
  PixelModel gradient;
  Random random(2024);
  double loss = 0;
  for (Index step = 1; step <= kSteps; ++step) {
    Ids batch(kBatch, images.cols());
    for (auto image : batch.rowwise()) {
      image = images.row(static_cast<Index>(random.uniform() * static_cast<double>(images.rows())));
    }
    const auto seed = static_cast<std::uint64_t>(step);
    loss += model.bits(batch, &gradient, {.dropout = 0.1, .seed = seed, .pool = pool}) / kReport;
    // The rate rises at first, then falls along half a cosine.
    const double progress = static_cast<double>(step) / kSteps;
    adam.begin_step(4e-3 * std::min(progress / .03, (1 + std::cos(3.14159265 * progress)) / 2));
    heed::for_each_parameter(model, std::as_const(gradient), adam);
    if (step % kReport != 0) continue;
    std::printf("step %td: %.3f bits a pixel of images in training\n", step, loss);
    std::fflush(stdout);
    loss = 0;
  }
}

/// Bits a pixel where a grey level has the probability of its count among `trained` at that pixel,
/// plus 1/2; `by_digit`: among those of the same digit.
double bits_by_counting(const Ids& trained, const Ids& images, bool by_digit) {
  Eigen::ArrayXXd counts = Eigen::ArrayXXd::Constant(kDigits * kPixels, kLevels, .5);
  const auto at = [&](const auto& image, Index n) {
    return counts.row((by_digit ? image(0) - kLevels : 0) * kPixels + n);
  };
  for (const auto& image : trained.rowwise()) {
    for (Index n = 0; n < kPixels; ++n) ++at(image, n)(image(1 + n));
  }
  double sum = 0;
  for (const auto& image : images.rowwise()) {
    for (Index n = 0; n < kPixels; ++n) {
      sum -= std::log2(at(image, n)(image(1 + n)) / at(image, n).sum());
    }
  }
  return sum / static_cast<double>(images.rows() * kPixels);
}

double milliseconds(const auto& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

/// kDrawn sequences for the digits in turn, each pixel drawn from the probabilities of the model.
Ids draw(const PixelModel& model, bool cached) {
  Ids images(kDrawn, 1 + kPixels);
  for (Index i = 0; i < kDrawn; ++i) images(i, 0) = kLevels + static_cast<int>(i) % kDigits;
  Caches caches = model.caches({.batch = kDrawn, .capacity = kPixels});
  Random random(7);
  for (Index n = 0; n < kPixels; ++n) {
    const Tokens p = heed::softmax(cached ? model.next(images.middleCols(n, 1), &caches)
                                          : model.next(images.leftCols(1 + n), nullptr));
    for (Index i = 0; i < kDrawn; ++i) {
      double left = random.uniform();
      int level = 0;
      while (level < kLevels - 1 && (left -= double(p(i, 0, level))) >= 0) ++level;
      images(i, 1 + n) = level;
    }
  }
  return images;
}

/// Points (tokens so far, milliseconds for the last of them), for random pixels one after another:
/// the fastest of five runs, or, with caches, of the last five tokens.
std::vector<plot::Point> times(const PixelModel& model, Caches* caches) {
  Ids ids(1, kLongest);
  Random random(3);
  for (int& id : ids.reshaped()) id = static_cast<int>(kLevels * random.uniform());
  std::vector<plot::Point> result;
  for (Index length = 16, held = 0; length <= kLongest; length *= 2) {
    double fastest = 1e9;
    const auto run = [&](const auto& tokens) {
      fastest = std::min(fastest, milliseconds([&] { model.next(tokens, caches); }));
    };
    for (int repeat = 0; !caches && repeat < 5; ++repeat) run(ids.leftCols(length));
    for (; caches && held < length; ++held) {
      if (held == length - 5) fastest = 1e9;
      run(ids.middleCols(held, 1));
    }
    result.push_back({static_cast<double>(length), fastest});
  }
  return result;
}

/// The first images of each digit, `rows` of them, from y = `top` on.
void show(plot::Picture& picture, double top, const std::string& by, const Ids& ids, Index rows) {
  constexpr double step = 76, left = 110;
  const Matrix pixels = grey(ids);
  for (int digit = 0; digit < kDigits; ++digit) {
    for (Index i = 0, row = 0; row < rows; ++i) {
      if (ids(i, 0) != kLevels + digit) continue;
      picture.image({left + step * digit, top + step * double(row++)}, 8,
                    Eigen::Map<const Matrix>(pixels.row(i).data(), 8, 8));
    }
  }
  picture.text({left - 14, top + step * double(rows) / 2 - 2}, by, 13, "end");
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string pictures = argc > 1 ? argv[1] : ".";
  const Digits digits = read_digits(digits_path(argc, argv));
  const Ids all = sequences(digits), trained = all.topRows(kTrained),
            others = all.bottomRows(all.rows() - kTrained);
  Eigen::ThreadPool pool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));

  PixelModel model(64, 4, 3);
  const double before = model.bits(others, nullptr, {.pool = &pool});
  const double training = milliseconds([&] { train(model, trained, &pool); });
  std::printf("trained in %.0f s; bits a pixel of %td images never trained on:\n", training / 1000,
              others.rows());
  std::printf("%.3f  before training\n%.3f  by the counts of the grey levels of each pixel\n",
              before, bits_by_counting(trained, others, false));
  std::printf("%.3f  by those of the same digit\n%.3f  after training\n",
              bits_by_counting(trained, others, true),
              model.bits(others, nullptr, {.pool = &pool}));

  Ids drawn, again;
  const double with = milliseconds([&] { drawn = draw(model, true); });
  const double without = milliseconds([&] { again = draw(model, false); });
  std::printf("%td digits drawn in %.2f s with caches, in %.2f s without; %td pixels differ\n",
              kDrawn, with / 1000, without / 1000, (drawn.array() != again.array()).count());
  // Judged as in 04_digits, by attention to the images of the training.
  const Matrix votes = heed::attention(grey(drawn), digits.images.topRows(kTrained),
                                       one_hot(digits, kTrained), heed::gaussian(2.69));
  Index right = 0, guess = 0;
  for (Index i = 0; i < kDrawn; ++i) {
    votes.row(i).maxCoeff(&guess);
    right += kLevels + guess == drawn(i, 0);
  }
  std::printf("a classifier of such images takes %.1f %% of them for the digit wanted\n",
              100 * static_cast<double>(right) / kDrawn);
  plot::Picture sheet(878, 500);
  show(sheet, 18, "by hand", others, 2);
  show(sheet, 184, "by the model", drawn, 4);
  sheet.save(pictures + "/15_drawn_digits.svg");

  Caches whole = model.caches({.capacity = kLongest}),
         window = model.caches({.window = kPixels, .sinks = 1});
  const std::vector<plot::Point> curves[] = {times(model, nullptr), times(model, &whole),
                                             times(model, &window)};
  std::printf("milliseconds for a token, on one thread\n  length   again   cache  window\n");
  plot::Picture picture(640, 400);
  plot::Axes axes(picture, {64, 36}, 556, 300, {16, 1e-3}, {kLongest, 1e3},
                  "Milliseconds for a token, by the length of the sequence", {2, 10},
                  plot::Axes::logarithmic);
  axes.curve(curves[0], "#9a9a9a", 2.5);
  axes.curve(curves[1], "#006a8e", 2.5);
  axes.curve(curves[2], "#e08214", 2.5);
  for (std::size_t n = 0; n < curves[0].size(); ++n) {
    std::printf("%8.0f%8.3f%8.3f%8.3f\n", curves[0][n].x, curves[0][n].y, curves[1][n].y,
                curves[2][n].y);
  }
  picture.text({342, 386}, "grey: no cache, blue: a cache, orange: a cache of the last 64 tokens",
               13);
  picture.save(pictures + "/15_time_a_token.svg");
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
