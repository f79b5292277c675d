#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <sstream>
#include <string>
#include <vector>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "../examples/byte_pair.hpp"
#include "../examples/dino.hpp"
#include "../examples/mini_lm.hpp"
#include "../examples/smol_lm.hpp"

/// The pretrained models beside what other programs make of the same weights: where
/// examples/models.sh has fetched them, and bench/peers/reference.sh has written the reference.
namespace heed::test {
namespace {

struct Pretrained : ::testing::Test {
  Eigen::ThreadPool pool{2};
  const AttentionOptions options{.pool = &pool};
  std::optional<SafeTensors> reference{};

  /// Whether model and reference are there.
  bool open(const std::string& model) {
    for (const std::string& file : {model, std::string("reference.safetensors")}) {
      if (!std::filesystem::exists(pretrained::path(file))) return false;
    }
    reference.emplace(pretrained::path("reference.safetensors"));
    return true;
  }

  /// The largest difference of all elements; infinite where shapes differ or one is NaN.
  double distance(const Matrix<float>& actual, const std::string& name) const {
    const auto expected = reference->view<float, 2>(name);
    if (expected.shape != std::array{actual.rows(), actual.cols()}) return INFINITY;
    double largest = 0;
    for (Index i = 0; i < actual.rows(); ++i) {
      for (Index j = 0; j < actual.cols(); ++j) {
        const double error = std::abs(double{actual(i, j)} - double{expected(i, j)});
        if (!(error <= largest)) largest = std::isnan(error) ? INFINITY : error;
      }
    }
    return largest;
  }

  std::vector<int> ids(const std::string& name) const {
    const auto list = reference->view<std::int32_t, 1>(name);
    return {list.data, list.data + list.size()};
  }
};

#define HEED_OPEN(model) \
  if (!open(model)) GTEST_SKIP() << (model) << " or its reference is not there"

TEST_F(Pretrained, SentencesAreEmbeddedAsByTheReference) {
  HEED_OPEN("sentences.safetensors");
  std::vector<MiniLm::Ids> sentences;
  const auto data = std::filesystem::path(__FILE__).parent_path() / "data";
  for (const std::string& line : read_lines((data / "sentences.word_piece").string())) {
    std::istringstream numbers(line);
    sentences.emplace_back();
    for (int id = 0; numbers >> id;) sentences.back().push_back(id);
  }
  const MiniLm model(SafeTensors(pretrained::path("sentences.safetensors")));
  const double error = distance(model.embed(sentences, options), "sentences");
  RecordProperty("error", std::to_string(error));
  EXPECT_LE(error, 1e-5);
  // What is padding for one sentence of a batch does not matter to the others.
  const Matrix<float> alone = model.embed({sentences[5]}, options);
  const Matrix<float> beside = model.embed({sentences[5], sentences[58]}, options);
  EXPECT_LE((alone.row(0) - beside.row(0)).cwiseAbs().maxCoeff(), 1e-6F);
}

TEST_F(Pretrained, ImagesAreSeenAsByOnnxRuntime) {
  HEED_OPEN("vision.safetensors");
  const Dino model(SafeTensors(pretrained::path("vision.safetensors")));
  const SafeTensors photographs(pretrained::path("photographs.safetensors"));
  for (const std::string size : {"224", "518"}) {
    Matrix<float> seen;
    const auto states = model(photographs.view<std::uint8_t, 3>("chelsea." + size), options, &seen);
    const double error = distance(states, "vision." + size);
    RecordProperty("error " + size, std::to_string(error));
    EXPECT_LE(error, 1e-4) << size;
    EXPECT_LE((seen.rowwise().sum().array() - 1).abs().maxCoeff(), 1e-5F);
  }
}

TEST_F(Pretrained, LanguageGoesOnAsByTheReference) {
  HEED_OPEN("language.safetensors");
  const SmolLm model(SafeTensors(pretrained::path("language.safetensors")));
  const std::vector<int> prompt = ids("language.prompt"), expected = ids("language.tokens");
  const BytePair tokenizer(pretrained::path("language.txt"));
  EXPECT_EQ(tokenizer(tokenizer.decode(prompt)), prompt);

  // The prompt in two parts, then token by token.
  const auto best = [](const auto& logits) {
    Index place = 0;
    logits.maxCoeff(&place);
    return static_cast<int>(place);
  };
  auto caches = SmolLm::caches(256);
  model.next({prompt.begin(), prompt.begin() + 7}, caches, true, options);
  Matrix<float> logits = model.next({prompt.begin() + 7, prompt.end()}, caches, true, options);
  const auto first = reference->view<float, 1>("language.logits");
  ASSERT_EQ(first.size(), logits.cols());
  float error = 0;
  for (Index n = 0; n < first.size(); ++n)
    error = std::max(error, std::abs(logits(0, n) - first(n)));
  RecordProperty("error", std::to_string(error));
  EXPECT_LE(error, 2e-4F);  // logits reach 30, after 30 blocks in float on both sides
  std::vector<int> said;
  while (said.size() < expected.size()) {
    said.push_back(best(logits.row(0)));
    logits = model.next({said.back()}, caches, true, options);
  }
  EXPECT_EQ(said, expected);

  // Without caches, all at once: every token is the likeliest after those before it.
  std::vector<int> whole = prompt;
  whole.insert(whole.end(), said.begin(), said.end() - 1);
  const Matrix<float> every = model.read(whole, options);
  for (std::size_t n = 0; n < said.size(); ++n) {
    EXPECT_EQ(best(every.row(static_cast<Index>(prompt.size() - 1 + n))), said[n]) << n;
  }
}

}  // namespace
}  // namespace heed::test
