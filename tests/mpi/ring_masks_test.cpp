// Masks, number types, dropout and shapes, split over ranks, and what travels.

#include <chrono>
#include <random>
#include <thread>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "support.hpp"

namespace heed {
namespace {

using namespace test;

TEST(RingMasks, FunctionsOfIndicesAndUnsortedSegmentsWithMoreKeysThanQueries) {
  std::vector<int> query_ids, key_ids;
  for (int i = 0; i < 48; ++i) query_ids.push_back(i * 5 % 3);
  for (int j = 0; j < 96; ++j) key_ids.push_back(j * 7 % 4);
  expect_ring<double>(
      {.batch = 1, .queries = 48, .keys = 96},
      pairwise([](auto q, auto k) {
        using std::abs;
        return -abs(q - k);
      }) | score_mod([](auto s, Index, Index h, Index i, Index j) {
        return s * (1 + .1 * static_cast<double>((i + 2 * j + h) % 5));
      }),
      mask_if([](Index b, Index h, Index i, Index j) { return (i + 3 * j + h + b) % 5 < 2; }) ||
          (segments(query_ids, key_ids) && !sliding_window(5, 5)));
}

TEST(RingMasks, DropoutGoesByPositionsInTheWholeSequence) {
  expect_ring<float>({.dim = 16, .width = 16}, scaled_dot_product(), causal({-3, 0}),
                     {.dropout = .3, .seed = 5});
}

/// Keys that only other ranks see, and from the sixtieth on none: their gradients are those ranks'
/// alone, and 0.
TEST(RingMasks, KeysThatTheirOwnRankDoesNotSee) {
  expect_ring<double>({.batch = 1}, dot_product(.3), !sliding_window(47, 47) && prefix(60));
}

TEST(RingMasks, ManyTilesOfFloats) {
  expect_ring<float>({.batch = 1,
                      .heads = 2,
                      .kv_heads = 1,
                      .queries = 480,
                      .keys = 480,
                      .dim = 2 * simd_lanes,
                      .width = simd_lanes + 1},
                     dot_product(.3), causal());
}

TEST(RingMasks, SixteenBits) {
  using Eigen::bfloat16;
  const Whole<bfloat16> whole({.dim = 16, .width = 16});
  const auto score = scaled_dot_product();
  const auto expected = attention_forward(whole.query, whole.key, whole.value, score, causal());
  for (const auto layout : layouts) {
    const Pieces<bfloat16> own(whole, layout);
    const auto pass = ring_attention_forward(own.query, own.key, own.value, MPI_COMM_WORLD, layout,
                                             score, causal());
    EXPECT_TRUE(close(gather(pass.output, MPI_COMM_WORLD, layout), expected.output,
                      2 * epsilon<bfloat16>()));
  }
}

/// Positions by hand: with values that are their positions and scores that do not depend on keys,
/// query i of a causal mask gets the mean of 0 .. i, which is i / 2.
TEST(Ring, MeansOfPositionsByHand) {
  const Index tokens = 48;
  Matrix<double> q(tokens, 1), v(tokens, 1);
  q.setZero();
  for (Index i = 0; i < tokens; ++i) v(i, 0) = static_cast<double>(i);
  for (const auto layout : layouts) {
    const auto own_q = shard(q, MPI_COMM_WORLD, layout), own_v = shard(v, MPI_COMM_WORLD, layout);
    const auto pass = ring_attention_forward(own_q, own_q, own_v, MPI_COMM_WORLD, layout,
                                             dot_product(), causal());
    const Matrix<double> all = gather(pass.output, MPI_COMM_WORLD, layout);
    for (Index i = 0; i < tokens; ++i) {
      EXPECT_NEAR(all(i, 0), static_cast<double>(i) / 2, 1e-13) << i;
    }
    // The log-sum-exp of i + 1 scores of 0.
    const auto chunks = detail::Chunks::of_piece(layout, world_size(), own_q.piece.rows());
    for (Index n = 0; n < own_q.piece.rows(); ++n) {
      const Index i = chunks.first(chunks.number(world_rank(), n / chunks.rows)) + n % chunks.rows;
      EXPECT_NEAR(pass.log_sum_exp(n), std::log(static_cast<double>(i + 1)), 1e-13) << i;
    }
  }
}

TEST(Ring, ShardsAreTheChunksOfALayout) {
  const Index ranks = world_size(), rank = world_rank();
  Matrix<float> x(4 * ranks, 1);
  for (Index i = 0; i < x.rows(); ++i) x(i, 0) = static_cast<float>(i);
  // Chunks of four rows, or of two: those numbered r and 2R-1-r.
  const auto even = shard(x, MPI_COMM_WORLD, SequenceLayout::contiguous);
  const auto zigzag = shard(x, MPI_COMM_WORLD, SequenceLayout::zigzag);
  for (Index i = 0; i < 4; ++i) {
    const Index chunk = i < 2 ? rank : 2 * ranks - 1 - rank;
    EXPECT_EQ(even.piece(i, 0), static_cast<float>(4 * rank + i));
    EXPECT_EQ(zigzag.piece(i, 0), static_cast<float>(2 * chunk + i % 2));
  }
  EXPECT_TRUE(identical(gather(even), x));
  EXPECT_TRUE(identical(gather(zigzag), x));
}

/// Float keys and values of 48 x (7 + 5) numbers in all, each rounded up to 64 bytes.
TEST(Ring, ChunksTravelAsFarAsTheyAreSeen) {
  const Index ranks = world_size(), rank = world_rank(), rows = 48 / ranks;
  const Whole<float> whole({.batch = 1, .heads = 1, .kv_heads = 1, .queries = 48, .keys = 48});
  const Pieces<float> own(whole, SequenceLayout::contiguous);
  const auto rounded_up = [](Index bytes) { return (bytes + 63) / 64 * 64; };
  const Index chunk = rounded_up(rows * 7 * 4) + rounded_up(rows * 5 * 4);
  RingReport report;
  const auto run = [&](const auto& mask) {
    ring_attention(own.query, own.key, own.value, MPI_COMM_WORLD, SequenceLayout::contiguous,
                   scaled_dot_product(), mask, {}, &report);
  };
  // Everybody sees everything: in each round but the last, a rank sends what it has.
  run(no_mask());
  EXPECT_EQ(report.bytes_sent, (ranks - 1) * chunk);
  EXPECT_EQ(report.chunk_pairs, ranks);
  EXPECT_EQ(report.hidden_chunk_pairs, 0);
  // Upwards as far as the last rank: rank r passes on r + 1 chunks, the last rank none.
  run(causal());
  EXPECT_EQ(report.bytes_sent, rank + 1 == ranks ? 0 : (rank + 1) * chunk);
  EXPECT_EQ(report.chunk_pairs, rank + 1);
  // A window of three tokens reaches into the chunk before, which makes one step.
  run(sliding_window(2, 0));
  EXPECT_EQ(report.bytes_sent, rank + 1 == ranks ? 0 : chunk);
  EXPECT_EQ(report.chunk_pairs, rank == 0 ? 1 : 2);
  EXPECT_EQ(report.hidden_chunk_pairs, ranks - report.chunk_pairs);
  // The other way round it is the chunk behind.
  run(sliding_window(0, 2));
  EXPECT_EQ(report.bytes_sent, rank == 0 ? 0 : chunk);
  // The first token of the last chunk sees itself alone, and nobody else sees anything.
  run(mask_if([](Index, Index, Index, Index) { return true; }) && prefix(0));
  EXPECT_EQ(report.bytes_sent, 0);
  EXPECT_EQ(report.chunk_pairs, 0);
}

TEST(Ring, TheSameBitsWhateverTheTimingAndTheThreads) {
  const Whole<float> whole({.dim = 16, .width = 16});
  Eigen::ThreadPool pool(3);
  for (const auto layout : layouts) {
    const Pieces<float> own(whole, layout);
    std::mt19937 engine(static_cast<unsigned>(world_rank()));
    int calls = 0;
    const auto run = [&](bool sleepy, Eigen::ThreadPoolInterface* threads) {
      const auto sleeps = mask_if([&, sleepy](Index, Index, Index i, Index j) {
        if (sleepy && ++calls % 4000 == 0) {
          std::this_thread::sleep_for(std::chrono::milliseconds(engine() % 4));
        }
        return (i + j) % 7 != 0;
      });
      const AttentionOptions options{.pool = threads};
      const auto score = scaled_dot_product();
      const auto pass = ring_attention_forward(own.query, own.key, own.value, MPI_COMM_WORLD,
                                               layout, score, sleeps, options);
      return std::pair(pass,
                       ring_attention_backward(own.query, own.key, own.value, pass, own.grad,
                                               MPI_COMM_WORLD, layout, score, sleeps, options));
    };
    const auto [pass, gradients] = run(false, nullptr);
    for (int turn = 0; turn < 3; ++turn) {
      const auto [other, others] = turn == 2 ? run(false, &pool) : run(true, nullptr);
      EXPECT_TRUE(identical(other.output, pass.output));
      EXPECT_TRUE(identical(others.query, gradients.query));
      EXPECT_TRUE(identical(others.key, gradients.key));
      EXPECT_TRUE(identical(others.value, gradients.value));
    }
    EXPECT_GT(calls, 0);
  }
}

TEST(Ring, EmptySequencesAndBatches) {
  for (const auto layout : layouts) {
    const Matrix<float> none(0, 3), some(2, 3);
    EXPECT_EQ(ring_attention(none, none, none, MPI_COMM_WORLD, layout).rows(), 0);
    const Matrix<float> out = ring_attention(some, none, none, MPI_COMM_WORLD, layout);
    EXPECT_EQ(out.cwiseAbs().maxCoeff(), 0);
    const Tensor<float, 3> no_batch(0, 2, 3);
    EXPECT_EQ(ring_attention(no_batch, no_batch, no_batch, MPI_COMM_WORLD, layout).size(), 0);
  }
}

/// Sets of keys with the outputs 1 and 3 and the sums of weights 1 and 3: (1 1 + 3 3) / 4 = 2.5,
/// and log 4. A sink of logit log 4 halves the output. Far larger sets begin the sums anew.
TEST(RunningMerge, ByHand) {
  detail::RunningMerge<float> merge(1, 1, 1, 1);
  detail::Layout size;
  merge.lay(size);
  std::vector<std::byte> memory(size.bytes());
  detail::Layout layout(memory.data());
  merge.lay(layout);
  float output = 0, lse = 0;
  const View<float, 4> out{&output, {1, 1, 1, 1}, {1, 1, 1, 1}};
  const View<float, 3> rows{&lse, {1, 1, 1}, {1, 1, 1}};
  const auto absorb = [&](double value, double log_sum) {
    output = static_cast<float>(value);
    lse = static_cast<float>(log_sum);
    merge.absorb(0, out, rows, nullptr);
  };
  merge.start();
  merge.finish(out, rows);
  EXPECT_EQ(output, 0);
  EXPECT_EQ(lse, -infinity);
  absorb(99, -infinity);
  absorb(1, std::log(1.));
  absorb(3, std::log(3.));
  merge.finish(out, rows);
  EXPECT_NEAR(output, 2.5, 1e-6);
  EXPECT_NEAR(lse, std::log(4.), 1e-6);
  merge.absorb_sink(0, 0, static_cast<float>(std::log(4.)));
  merge.finish(out, rows);
  EXPECT_NEAR(output, 1.25, 1e-6);
  EXPECT_NEAR(lse, std::log(8.), 1e-6);
  absorb(7, 1e4);
  merge.finish(out, rows);
  EXPECT_EQ(output, 7);
  EXPECT_EQ(lse, 1e4f);
  absorb(nan, 1e4);
  merge.finish(out, rows);
  EXPECT_TRUE(std::isnan(output));
}

}  // namespace
}  // namespace heed
