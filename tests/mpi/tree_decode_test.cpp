// A cache in parts, one of each rank, against one cache of the whole.

#include <stdexcept>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "support.hpp"

namespace heed {
namespace {

using namespace test;

/// Tokens of two sequences: 100 and 61, of which the ranks have runs of unequal length, some of
/// them none.
template <class Element>
struct Caches {
  static constexpr Index lengths[2] = {100, 61};
  KeyValueCache<Element> whole, part;

  Caches() : whole(config()), part(config()) {
    const Index ranks = world_size(), rank = world_rank();
    for (Index b = 0; b < 2; ++b) {
      const auto keys = make<float, 3>(random({2, 1, lengths[b], 16}, 5));
      const auto values = make<float, 3>(random({2, 1, lengths[b], 16}, 6));
      const auto begin = [&](Index r) {
        // Sequence 1: the second rank, if there is one, has nothing.
        if (b == 1 && r == 2) r = 1;
        return lengths[b] * r * r / (ranks * ranks);
      };
      append(whole, b, keys, values, 0, lengths[b]);
      append(part, b, keys, values, begin(rank), rank + 1 == ranks ? lengths[b] : begin(rank + 1));
    }
  }

 private:
  static CacheConfig config() {
    return {.batch = 2, .kv_heads = 2, .key_dim = 16, .value_dim = 16, .capacity = 128};
  }
  static void append(KeyValueCache<Element>& to, Index b, const Tensor<float, 3>& keys,
                     const Tensor<float, 3>& values, Index first, Index last) {
    const auto rows = [&](const Tensor<float, 3>& x) {
      const auto all = view(x);
      return View<const float, 3>{
          &x(0, 0, 0) + first * all.strides[1], {2, last - first, 16}, all.strides};
    };
    if (last > first) to.append(b, rows(keys), rows(values));
  }
};

void expect_whole(const auto& caches, Index queries, double bound, const auto& score,
                  const auto& mask, const AttentionOptions& options = {}) {
  const auto q = make<float, 4>(random({2, 4, queries, 16}, 7));
  EXPECT_TRUE(close(tree_decode(q, caches.part, MPI_COMM_WORLD, score, mask, options),
                    attention(q, caches.whole, score, mask, options), bound));
}

TEST(TreeDecode, OneQueryOfEachSequence) {
  const Caches<float> caches;
  expect_whole(caches, 1, 2e-6, scaled_dot_product(), no_mask());
  const auto q = make<float, 4>(random({2, 4, 1, 16}, 7));
  const auto output = tree_decode(q, caches.part, MPI_COMM_WORLD);
  EXPECT_TRUE(close(output, attention(q, caches.whole), 2e-6));
  EXPECT_TRUE(identical(
      tree_decode(q, caches.part, MPI_COMM_WORLD, scaled_dot_product(), AttentionOptions{}),
      output));
}

TEST(TreeDecode, PositionsAreThoseInTheWhole) {
  const Caches<float> caches;
  const auto by_position =
      score_mod([](auto s, auto, auto h, auto i, auto j) { return s - (h + 1) * (j - i) * .02f; });
  expect_whole(caches, 3, 4e-6, scaled_dot_product() | by_position,
               causal() && (sliding_window(70, 0) || prefix(3)));
}

TEST(TreeDecode, ASinkCountsOnce) {
  const Caches<float> caches;
  const auto q = make<float, 4>(random({2, 4, 2, 16}, 7));
  const auto score = scaled_dot_product() | softcap(2) | sink({1., 2., 3., 4.});
  expect_whole(caches, 2, 4e-6, score, causal());
  EXPECT_TRUE(identical(tree_decode(q, caches.part, MPI_COMM_WORLD, score, prefix(0)),
                        Tensor<float, 4>(q.constant(0))));
}

/// Each rank has one token, whose value is its number, with scores a thousand apart: the largest
/// has all the weight. Equal ones, of which the exponential is no number, give the mean.
TEST(TreeDecode, ScoresFarFromZeroAndFromOneAnotherByHand) {
  const auto ranks = static_cast<float>(world_size());
  KeyValueCache<float> cache(
      {.batch = 1, .kv_heads = 1, .key_dim = 1, .value_dim = 1, .capacity = 1});
  const Tensor<float, 3> key = Tensor<float, 3>(1, 1, 1).setZero();
  const Tensor<float, 3> value =
      Tensor<float, 3>(1, 1, 1).setConstant(static_cast<float>(world_rank()));
  cache.append(0, key, value);
  const Tensor<float, 4> q = Tensor<float, 4>(1, 1, 1, 1).setZero();
  const auto with = [&](float slope, float shift) {
    const auto line =
        score_mod([=](auto s, auto, auto, auto, auto j) { return s + j * slope + shift; });
    return tree_decode(q, cache, MPI_COMM_WORLD, scaled_dot_product() | line)(0, 0, 0, 0);
  };
  EXPECT_EQ(with(1000, 0), ranks - 1);
  EXPECT_EQ(with(-1000, 0), 0);
  EXPECT_NEAR(with(0, 1000), (ranks - 1) / 2, 1e-6);
  EXPECT_NEAR(with(0, -1000), (ranks - 1) / 2, 1e-6);
}

TEST(TreeDecode, SixteenBitsAndDropout) {
  const Caches<Eigen::bfloat16> caches;
  expect_whole(caches, 1, 2e-6, scaled_dot_product(), causal(), {.dropout = .4, .seed = 3});
}

TEST(TreeDecode, TheSameBitsForAnyThreadsOnAllRanks) {
  const Caches<float> caches;
  Eigen::ThreadPool pool(2);
  const auto q = make<float, 4>(random({2, 4, 20, 16}, 7));
  const auto output = tree_decode(q, caches.part, MPI_COMM_WORLD, scaled_dot_product(), causal());
  EXPECT_TRUE(identical(
      tree_decode(q, caches.part, MPI_COMM_WORLD, scaled_dot_product(), causal(), {.pool = &pool}),
      output));
  Tensor<float, 4> of_first = output;
  MPI_Bcast(of_first.data(), static_cast<int>(of_first.size()), MPI_FLOAT, 0, MPI_COMM_WORLD);
  EXPECT_TRUE(identical(output, of_first));
}

TEST(TreeDecode, WhatFailsOnOneRankThrowsOnAll) {
  const Caches<float> caches;
  const int last = world_size() - 1, rank = world_rank();
  const auto q = make<float, 4>(random({2, 4, 1, 16}, 7)),
             other = make<float, 4>(random({2, 3, 1, 16}, 7));
  EXPECT_TRUE(refuses([&] { tree_decode(rank == last ? other : q, caches.part, MPI_COMM_WORLD); },
                      {"heed::tree_decode", "rank " + std::to_string(last), "do not divide 3"}));
  const auto thrower = mask_if([&](Index, Index, Index, Index j) -> bool {
    if (j == 99) throw std::runtime_error("no such key");
    return true;
  });
  // Key 99 is on the last rank.
  try {
    tree_decode(q, caches.part, MPI_COMM_WORLD, scaled_dot_product(), thrower);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("rank " + std::to_string(last) + " has failed"), std::string::npos)
        << message;
    EXPECT_NE(message.find("no such key"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace heed
