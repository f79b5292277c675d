// heed_ring_bench: ring attention on 2 ranks of one thread each beside attention on 2 threads of
// one process, in turns; to be started with mpirun -n 2. Arguments: tokens, rounds, forward or
// backward, and a layout and a mask to measure alone: heed_ring_bench 8192 9 forward zigzag causal.
//
// Prints a row for each layout and mask: the medians of both times and of the ratio of each round,
// what a rank sends, the time that the same messages take without any computing, and the time that
// the slower rank waited for messages, of which the share hidden is the rest.

#include <mpi.h>
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include <heed/mpi.hpp>

namespace {

using heed::Index;
using heed::Matrix;
using heed::SequenceLayout;

constexpr Index dim = 64;

/// Returns when all ranks are there, without keeping a core busy until then.
void meet() {
  MPI_Request request;
  MPI_Ibarrier(MPI_COMM_WORLD, &request);
  for (int done = 0; !done;) {
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    if (!done) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

double median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

/// The largest of what the ranks have.
double largest(double x) {
  double result = 0;
  MPI_Allreduce(&x, &result, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return result;
}

double seconds_of(const auto& body) {
  const double start = MPI_Wtime();
  body();
  return MPI_Wtime() - start;
}

/// So many bytes to the other rank, and as many from it.
double exchange(Index bytes, Index from_other) {
  std::vector<char> mine(static_cast<std::size_t>(bytes), 1);
  std::vector<char> other(static_cast<std::size_t>(from_other), 1);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  std::vector<double> times;
  for (int turn = 0; turn < 5; ++turn) {
    MPI_Barrier(MPI_COMM_WORLD);
    times.push_back(seconds_of([&] {
      MPI_Request requests[2];
      MPI_Irecv(other.data(), static_cast<int>(from_other), MPI_BYTE, 1 - rank, 0, MPI_COMM_WORLD,
                &requests[0]);
      MPI_Isend(mine.data(), static_cast<int>(bytes), MPI_BYTE, 1 - rank, 0, MPI_COMM_WORLD,
                &requests[1]);
      MPI_Waitall(2, requests, MPI_STATUSES_IGNORE);
    }));
  }
  return largest(median(times));
}

template <class Mask>
bool measure(Index tokens, int rounds, bool backward, SequenceLayout layout, const char* mask_name,
             const Mask& mask) {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  std::mt19937 engine(1);
  std::normal_distribution<float> normal;
  std::array<Matrix<float>, 4> whole;
  for (auto& x : whole) {
    x = Matrix<float>::NullaryExpr(tokens, dim, [&] { return normal(engine); });
  }
  const auto& [q, k, v, grad] = whole;
  const auto piece = [&](const Matrix<float>& x) {
    return heed::shard(x, MPI_COMM_WORLD, layout).piece;
  };
  const Matrix<float> own_q = piece(q), own_k = piece(k), own_v = piece(v), own_grad = piece(grad);
  const auto score = heed::scaled_dot_product();
  Eigen::ThreadPool pool(2);
  const heed::AttentionOptions two_threads{.pool = &pool};
  const auto pass =
      heed::ring_attention_forward(own_q, own_k, own_v, MPI_COMM_WORLD, layout, score, mask);
  const auto gathered = heed::gather(pass.output, MPI_COMM_WORLD, layout);
  const auto whole_pass = heed::attention_forward(q, k, v, score, mask, two_threads);
  const float error = (gathered - whole_pass.output).cwiseAbs().maxCoeff();
  if (!(error <= 1e-5f)) {
    std::printf("rank %d: the ring's result is off by %g\n", rank, static_cast<double>(error));
    return false;
  }
  heed::RingReport report;
  std::vector<double> by_ranks, by_threads, ratios, waited;
  Matrix<float> result;
  for (int round = 0; round < rounds; ++round) {
    meet();
    MPI_Barrier(MPI_COMM_WORLD);
    by_ranks.push_back(largest(seconds_of([&] {
      if (backward) {
        result = heed::ring_attention_backward(own_q, own_k, own_v, pass, own_grad, MPI_COMM_WORLD,
                                               layout, score, mask, {}, &report)
                     .key;
      } else {
        result = heed::ring_attention(own_q, own_k, own_v, MPI_COMM_WORLD, layout, score, mask, {},
                                      &report);
      }
    })));
    waited.push_back(largest(report.seconds_waited));
    if (rank == 0) {
      by_threads.push_back(seconds_of([&] {
        if (backward) {
          result =
              heed::attention_backward(q, k, v, whole_pass, grad, score, mask, two_threads).key;
        } else {
          result = heed::attention(q, k, v, score, mask, two_threads);
        }
      }));
      ratios.push_back(by_threads.back() / by_ranks.back());
    }
  }
  meet();
  Index sent[2] = {};
  MPI_Allgather(&report.bytes_sent, sizeof(Index), MPI_BYTE, sent, sizeof(Index), MPI_BYTE,
                MPI_COMM_WORLD);
  const double alone = exchange(sent[rank], sent[1 - rank]);
  if (rank == 0) {
    const double wait = median(waited);
    std::printf("| %s | %ld | %s | %s | %.1f | %.1f | %.3f | %.2f, %.2f | %.2f | %.2f | %.2f |\n",
                backward ? "backward" : "forward", static_cast<long>(tokens), mask_name,
                layout == SequenceLayout::zigzag ? "zigzag" : "contiguous",
                median(by_threads) * 1e3, median(by_ranks) * 1e3, median(ratios),
                static_cast<double>(sent[0]) / 1e6, static_cast<double>(sent[1]) / 1e6, alone * 1e3,
                wait * 1e3, alone > 0 ? std::clamp(1 - wait / alone, 0., 1.) : 1);
    std::fflush(stdout);
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int ranks = 0, rank = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (ranks != 2) {
    if (rank == 0) std::fprintf(stderr, "heed_ring_bench: start it with mpirun -n 2\n");
    MPI_Finalize();
    return 1;
  }
  const std::vector<std::string> words(argv + 1, argv + argc);
  const auto word = [&](std::size_t n) { return n < words.size() ? words[n] : std::string(); };
  const Index tokens = words.size() > 0 ? std::atol(words[0].c_str()) : 8192;
  const int rounds = words.size() > 1 ? std::atoi(words[1].c_str()) : 9;
  const bool backward = word(2) == "backward";
  if (rank == 0) {
    std::printf(
        "| | tokens | mask | layout | 2 threads, ms | 2 ranks, ms | speed of the ranks | MB sent "
        "by "
        "rank 0, 1 | their exchange alone, ms | waited, ms | hidden |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
  }
  bool right = true;
  for (const auto layout : {SequenceLayout::contiguous, SequenceLayout::zigzag}) {
    const std::string name = layout == SequenceLayout::zigzag ? "zigzag" : "contiguous";
    if (!word(3).empty() && word(3) != name) continue;
    if (word(4) != "causal") {
      right = measure(tokens, rounds, backward, layout, "none", heed::no_mask()) && right;
    }
    if (word(4) != "none") {
      right = measure(tokens, rounds, backward, layout, "causal", heed::causal()) && right;
    }
  }
  MPI_Finalize();
  return right ? 0 : 1;
}
