/// Runs the pretrained models of the examples on request, for models.py to time beside others:
///
///   heed_models <folder of the models> <threads>
///
/// reads lines "sentences <batch> <tokens>", "vision <side>", "prefill <tokens>", "write <tokens
/// before>", "read", and answers each with the seconds of one run and some of its numbers.
#include <chrono>
#include <cstring>
#include <iostream>
#include <optional>
#include <sstream>
#include <string>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "../../examples/dino.hpp"
#include "../../examples/mini_lm.hpp"
#include "../../examples/smol_lm.hpp"

namespace {

double seconds_of(const auto& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void answer(double seconds, const float* numbers, heed::Index count) {
  std::cout << seconds;
  for (heed::Index n = 0; n < count; ++n) std::cout << ' ' << numbers[n];
  std::cout << std::endl;
}

/// Reads so many bytes and does nothing else with them.
EIGEN_DONT_INLINE void plain_read(const char* data, std::size_t bytes) {
  using Block [[gnu::vector_size(64)]] = std::uint64_t;
  Block sums[4] = {};
  for (std::size_t at = 0; at + sizeof sums <= bytes; at += sizeof sums) {
    for (std::size_t n = 0; n < 4; ++n) {
      Block block;
      std::memcpy(&block, data + at + n * sizeof block, sizeof block);
      sums[n] ^= block;
    }
  }
  asm volatile("" : : "r"(&sums) : "memory");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::cerr << "heed_models <folder of the models> <threads>\n", 2;
  const std::string folder = std::string(argv[1]) + "/";
  const int threads = std::stoi(argv[2]);
  std::optional<Eigen::ThreadPool> pool;
  if (threads > 1) pool.emplace(threads);
  const heed::AttentionOptions options{.pool = pool ? &*pool : nullptr};

  const heed::SafeTensors sentences(folder + "sentences.safetensors"),
      vision(folder + "vision.safetensors"), photographs(folder + "photographs.safetensors"),
      language(folder + "language.safetensors");
  const MiniLm mini(sentences);
  const Dino dino(vision);
  const SmolLm smol(language);
  for (std::string what; std::cin >> what;) {
    heed::Index first = 0, second = 0;
    std::string rest;
    std::getline(std::cin, rest);
    std::istringstream(rest) >> first >> second;
    if (what == "sentences") {
      MiniLm::Ids ids(static_cast<std::size_t>(second));
      for (std::size_t n = 0; n < ids.size(); ++n) ids[n] = static_cast<int>(2000 + 7 * n);
      const std::vector<MiniLm::Ids> batch(static_cast<std::size_t>(first), ids);
      heed::Tensor<float, 3> states;
      const double time = seconds_of([&] { states = mini.states(batch, options); });
      answer(time, states.data(), 4);
    } else if (what == "vision") {
      const auto image = photographs.view<std::uint8_t, 3>("chelsea." + std::to_string(first));
      heed::Matrix<float> states;
      const double time = seconds_of([&] { states = dino(image, options); });
      answer(time, states.data(), 4);
    } else if (what == "prefill" || what == "write") {
      SmolLm::Ids ids(static_cast<std::size_t>(first));
      for (std::size_t n = 0; n < ids.size(); ++n) ids[n] = static_cast<int>(100 + 11 * n % 40000);
      auto caches = SmolLm::caches(first + 1);
      heed::Matrix<float> scores;
      double time = seconds_of([&] { scores = smol.next(ids, caches, true, options); });
      if (what == "write") {
        time = seconds_of([&] { scores = smol.next({42}, caches, true, options); });
      }
      answer(time, scores.data(), 4);
    } else if (what == "read") {
      // Every weight is read once for a token, the embedding for the scores of what follows.
      const double time = seconds_of([&] {
        heed::for_each_parameter(smol, [](std::string_view, const auto& value) {
          plain_read(reinterpret_cast<const char*>(value.data()),
                     static_cast<std::size_t>(value.size()) * sizeof(SmolLm::Element));
        });
      });
      answer(time, nullptr, 0);
    } else {
      std::cerr << "what is " << what << "?\n";
      return 2;
    }
  }
}
