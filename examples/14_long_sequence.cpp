// A needle in 262,144 words: self-attention over a sequence that is split over the ranks of MPI. No
// rank ever holds more than its own words, and keys and values of as many others twice.
//
// Start it with mpirun -n 2; any number of ranks that is a power of two will do.

#include <mpi.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>
#include <heed/mpi.hpp>

#include "plot.hpp"
#include "random.hpp"

namespace {

using heed::Index;
using Matrix = heed::Matrix<float>;

constexpr Index kWords = 262144, kVocabulary = 1000, kDim = 32;
constexpr Index kPassword = kVocabulary, kAnswer = 741, kNeedle = 173205;
constexpr auto kLayout = heed::SequenceLayout::zigzag;

/// The word at a position: random ones, but for "password" in two places, the needle and the end,
/// and the answer behind the needle. Every rank can tell any word (Steele, Lea and Flood, 2014).
Index word_at(Index position) {
  if (position == kNeedle || position == kWords - 1) return kPassword;
  if (position == kNeedle + 1) return kAnswer;
  auto x = (static_cast<std::uint64_t>(position) + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return static_cast<Index>((x ^ (x >> 31)) % static_cast<std::uint64_t>(kVocabulary));
}

/// The most memory that this process has had, in MB; 0 where the system does not tell.
double peak_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::atof(line.c_str() + 6) / 1024;
  }
  return 0;
}

void draw(const Matrix& weights, const std::string& path) {
  constexpr Index bins = 512, run = kWords / bins;
  const auto most = [&](Index bin) { return weights.middleRows(bin * run, run).maxCoeff(); };
  std::vector<plot::Point> curve;
  for (Index bin = 0; bin < bins; ++bin) {
    const double height = std::max(-12., std::log10(std::max(1e-30, double(most(bin)))));
    const auto at = [&](Index edge) { return static_cast<double>(edge * run) / 1000; };
    curve.push_back({at(bin), height});
    curve.push_back({at(bin + 1), height});
  }
  plot::Picture picture(860, 320);
  plot::Axes axes(picture, {60, 40}, 780, 220, {0, -12}, {262.144, 0},
                  "What the last of 262,144 words attends to", {50, 3});
  axes.curve(curve, "#006a8e", 1.5);
  picture.text({450, 300}, "position in thousands; power of 10 of the largest weight of 512 words",
               13);
  picture.save(path);
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int status = 0;
  try {
    const std::string pictures = argc > 1 ? argv[1] : ".";
    int rank = 0, ranks = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    Random random(1);
    Matrix embedding = random.normal_matrix(kVocabulary + 1, kDim);
    embedding.rowwise().normalize();

    // "What has come after this word before?" A word asks with itself, and is found by the word
    // before it (the induction heads of Olsson et al., 2022).
    const Index own = kWords / ranks, chunk = own / 2;
    Matrix query(own, kDim), key(own, kDim), value(own, kDim);
    for (Index n = 0; n < own; ++n) {
      const Index number = n < chunk ? rank : 2 * ranks - 1 - rank;
      const Index position = number * chunk + n % chunk;
      query.row(n) = value.row(n) = embedding.row(word_at(position));
      key.row(n) = embedding.row(word_at(std::max<Index>(position - 1, 0)));
    }
    const auto score = heed::dot_product(40);
    const double memory = peak_memory();
    const auto start = std::chrono::steady_clock::now();
    heed::RingReport report;
    const auto pass = heed::ring_attention_forward(query, key, value, MPI_COMM_WORLD, kLayout,
                                                   score, heed::causal(), {}, &report);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;

    // The weights of the last word, which ends the piece of rank 0, one rank after the other.
    Matrix last = query.bottomRows(1);
    float log_sum_exp = pass.log_sum_exp(own - 1);
    MPI_Bcast(last.data(), kDim, MPI_FLOAT, 0, MPI_COMM_WORLD);
    MPI_Bcast(&log_sum_exp, 1, MPI_FLOAT, 0, MPI_COMM_WORLD);
    const Matrix scores = heed::attention_scores(last, key, score).transpose();
    const Matrix own_weights = (scores.array() - log_sum_exp).exp();
    const Matrix weights = heed::gather(own_weights, MPI_COMM_WORLD, kLayout);

    for (int turn = 0; turn < ranks; ++turn) {
      MPI_Barrier(MPI_COMM_WORLD);
      if (turn != rank) continue;
      std::printf(
          "rank %d of %d: %ld words, %.0f MB at most (%.0f MB before), %.1f MB sent, %.1f s "
          "of which %.3f s waiting\n",
          rank, ranks, static_cast<long>(own), peak_memory(), memory,
          static_cast<double>(report.bytes_sent) / 1e6, seconds.count(), report.seconds_waited);
      std::fflush(stdout);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0) {
      Index found = 0, answer = 0;
      const float weight = weights.col(0).maxCoeff(&found);
      (embedding * pass.output.bottomRows(1).transpose()).col(0).maxCoeff(&answer);
      std::printf("the weights of all pairs would be %.0f GB\n",
                  double(kWords) * double(kWords) * sizeof(float) / 1e9);
      std::printf(
          "the last word attends to word %ld with weight %.4f, and is answered by word %ld\n",
          static_cast<long>(found), static_cast<double>(weight), static_cast<long>(answer));
      draw(weights, pictures + "/14_long_sequence.svg");
      if (found != kNeedle + 1 || answer != kAnswer) {
        std::printf("but it should be %ld and %ld\n", static_cast<long>(kNeedle + 1),
                    static_cast<long>(kAnswer));
        status = 1;
      }
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    status = 1;
  }
  MPI_Finalize();
  return status;
}
