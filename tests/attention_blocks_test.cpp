#include <algorithm>
#include <vector>
#include <Eigen/Core>

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/dropout.hpp"
#include "heed/engine/key_blocks.hpp"
#include "heed/mask.hpp"
#include "heed/modifier.hpp"
#include "heed/score.hpp"
#include "support.hpp"

namespace heed::test {
namespace {

// Keys and values that are too many for the second-level cache are walked in blocks, by several
// panels of queries side by side. What the library takes that cache to be decides about it.

/// For as long as it lives, Eigen believes in a second-level cache of so many bytes.
class SecondLevelCache {
 public:
  explicit SecondLevelCache(std::ptrdiff_t bytes) : bytes_(Eigen::l2CacheSize()) { set(bytes); }
  ~SecondLevelCache() { set(bytes_); }
  SecondLevelCache(const SecondLevelCache&) = delete;
  SecondLevelCache& operator=(const SecondLevelCache&) = delete;

 private:
  static void set(std::ptrdiff_t bytes) {
    Eigen::setCpuCacheSizes(Eigen::l1CacheSize(), bytes, Eigen::l3CacheSize());
  }
  std::ptrdiff_t bytes_;
};

// 200 features of a key leave the first-level cache room for tiles of 120 or 144 keys.
// The queries and sums of three panels are a quarter of `small`, which then holds no 500 keys.
constexpr Index dim = 200, width = 3;
constexpr std::ptrdiff_t large = std::ptrdiff_t(1) << 32;
constexpr std::ptrdiff_t small =
    std::ptrdiff_t(4 * 3) * (dim + 2 * width + 2) * panel_lanes * Index(sizeof(float));

struct Heads {
  Index batch = 1, heads = 1, key_heads = 1;
};

template <class Element, class Score, class Mask>
void expect_bits_of_one_walk(const Heads& n, Index queries, Index keys, const Score& score,
                             const Mask& mask, double dropout = 0, Index apart = 1) {
  SCOPED_TRACE(::testing::Message() << queries << " queries, " << keys << " keys");
  const auto q = make<Element, 4>(random({n.batch, n.heads, queries, dim}, 1, 2));
  const auto k = make<Element, 4>(random({n.batch, n.key_heads, keys * apart, dim}, 2));
  const auto v = make<Element, 4>(random({n.batch, n.key_heads, keys * apart, width}, 3));
  // Rows that lie apart, which many panels read from a copy.
  auto rows_of_keys = view(k), rows_of_values = view(v);
  for (auto* rows : {&rows_of_keys, &rows_of_values}) {
    rows->shape[2] = keys;
    rows->strides[2] *= apart;
  }
  const AttentionOptions options{.dropout = dropout, .seed = 5};
  const auto attend_with = [&](std::ptrdiff_t bytes) {
    const SecondLevelCache cache(bytes);
    return attention_forward(q, rows_of_keys, rows_of_values, score, mask, options);
  };
  const auto whole = attend_with(large), blocks = attend_with(small);
  EXPECT_TRUE(same(reference(blocks.output), reference(whole.output)));
  EXPECT_TRUE(same(reference_rows(blocks.log_sum_exp), reference_rows(whole.log_sum_exp)));
}

// 64 floats of a key and of its value are 512 bytes. Of 4096 keys, 2 MiB, three quarters of 2 MiB
// are less, and half of 2 MiB has 2048 keys, in whole tiles. Panels have (64 + 2 64 + 2) 4 bytes a
// lane, 36 KiB for 48 lanes, of which a quarter of 2 MiB has more than eight; two is the least.
TEST(Blocks, AreWhatTheCachesHold) {
  const auto blocks = [](Index keys, std::ptrdiff_t cache, bool shared = true) {
    const SecondLevelCache second(cache);
    return detail::KeyBlocks<float>({"test", 1, 1, 1, 8, keys, 64, 64, 64}, shared);
  };
  const auto large_ones = blocks(4096, 2 << 20);
  EXPECT_TRUE(large_ones.tile == 120 || large_ones.tile == 132 || large_ones.tile == 144);
  EXPECT_EQ(large_ones.block, 2048 / large_ones.tile * large_ones.tile);
  EXPECT_EQ(large_ones.panels, 8);
  EXPECT_EQ(large_ones.copied, 4096);
  EXPECT_EQ(blocks(8193, 2 << 20).copied, large_ones.tile);  // 8193 x 128 are more than 2^20
  EXPECT_EQ(blocks(3072, 2 << 20).block, 3072);              // 1.5 MiB: all
  EXPECT_EQ(blocks(3072, 2 << 20).panels, 1);
  EXPECT_EQ(blocks(4096, 2 << 20, false).block, 4096);
  EXPECT_EQ(blocks(4096, 1 << 10).block, large_ones.tile);  // one at the least
  EXPECT_EQ(blocks(4096, 1 << 10).panels, 2);
  EXPECT_EQ(blocks(7, 1 << 10).tile, 7);
  EXPECT_EQ(blocks(7, 1 << 10).block, 7);
}

/// Around the ends of tiles and blocks: multiples of 120, 144 and 240 among them.
const std::vector<Index> key_counts = {476, 479, 480, 481, 540, 575, 576,
                                       577, 600, 719, 720, 721, 961};

TEST(Blocks, GiveTheBitsOfOneWalk) {
  for (const Index keys : key_counts) {
    for (const Index queries : {panel_lanes + 1, 3 * panel_lanes, 7 * panel_lanes - 5}) {
      expect_bits_of_one_walk<float>({}, queries, keys, scaled_dot_product(), no_mask());
      expect_bits_of_one_walk<float>({}, queries, keys, scaled_dot_product(), causal());
    }
  }
}

TEST(Blocks, UnderWindowsAndLengths) {
  const Heads heads{.batch = 3, .heads = 4, .key_heads = 2};
  const std::vector<int> lengths = {0, 7, 600};
  const std::vector<float> logits = {.5f, -1, 2, 3};
  const auto score = scaled_dot_product() | softcap(3) | sink(logits);
  for (const Index left : {0, 13, 60, 250, 500}) {
    const auto mask = sliding_window(left, 30) && valid_lens(lengths);
    expect_bits_of_one_walk<float>(heads, 4 * panel_lanes + 3, 601, score, mask);
    expect_bits_of_one_walk<float>(heads, 4 * panel_lanes + 3, 601, score, mask, .3);
  }
}

TEST(Blocks, UnderPackedDocuments) {
  const Index queries = 5 * panel_lanes + 1, keys = 700;
  const auto ids = [](Index count, Index length) {
    std::vector<int> result;
    for (Index i = 0; i < count; ++i) result.push_back(static_cast<int>(i / length % 4));
    return result;
  };
  // A document comes back: its keys are several ranges.
  const auto mask = segments(ids(queries, 31), ids(keys, 90));
  expect_bits_of_one_walk<float>({}, queries, keys, scaled_dot_product(), mask);
  // Later queries see earlier keys.
  auto backwards = ids(queries, 64);
  std::reverse(backwards.begin(), backwards.end());
  expect_bits_of_one_walk<float>({}, queries, keys, scaled_dot_product(),
                                 segments(backwards, ids(keys, 180)));
}

// Copies of keys and values hold a block and a tile, or a whole head.
TEST(Blocks, OfRowsThatAreCopied) {
  const Heads heads{.batch = 2, .heads = 2, .key_heads = 1};
  for (const Index keys : {481, 720, 1201}) {
    const auto score = scaled_dot_product();
    expect_bits_of_one_walk<Eigen::bfloat16>(heads, 5 * panel_lanes, keys, score, causal());
    expect_bits_of_one_walk<float>(heads, 17 * panel_lanes, keys, score, causal(), 0, 2);
  }
  expect_bits_of_one_walk<Eigen::bfloat16>({}, 7 * panel_lanes, 6000, scaled_dot_product(),
                                           causal());
  // Tiles of a panel begin with its window, and reach beyond the ends of blocks.
  expect_bits_of_one_walk<Eigen::bfloat16>({}, 4 * panel_lanes, 6000, scaled_dot_product(),
                                           sliding_window(1000, 30));
  // Three panels take the only block that they see, the fourth copies tiles of it over that copy,
  // and the next head has the same keys.
  const std::vector<int> lengths = {200};
  expect_bits_of_one_walk<Eigen::bfloat16>({.heads = 2}, 4 * panel_lanes, 6000,
                                           scaled_dot_product(), valid_lens(lengths));
  expect_bits_of_one_walk<Eigen::bfloat16>({.heads = 2, .key_heads = 2}, 3 * panel_lanes, 6000,
                                           scaled_dot_product(), valid_lens(lengths));
}

// Pages that follow each other are read where they lie, others are copied: so many keys block by
// block.
TEST(Blocks, OfPages) {
  const Index queries = panel_lanes + 1, keys = 5400;
  const auto q = make<float, 4>(random({1, 1, queries, dim}, 1, 2));
  const auto k = make<float, 4>(random({1, 1, keys, dim}, 2));
  const auto v = make<float, 4>(random({1, 1, keys, width}, 3));
  const auto whole = attention(q, k, v, scaled_dot_product(), causal());
  for (const Index page_size : {16, 350}) {
    PagePool<float> pool({.pages = 2 * (keys + page_size - 1) / page_size,
                          .page_size = page_size,
                          .kv_heads = 1,
                          .key_dim = dim,
                          .value_dim = width});
    PagedKeyValueCache<float> cache(pool, 1);
    cache.append(k, v);
    const SecondLevelCache second(small);
    EXPECT_TRUE(
        same(reference(attention(q, cache, scaled_dot_product(), causal())), reference(whole)))
        << page_size;
  }
}

TEST(Blocks, AgreeWithTheDefinition) {
  const SecondLevelCache cache(small);
  const auto q = random({1, 2, 2 * panel_lanes + 1, dim}, 1, 2);
  const auto k = random({1, 1, 541, dim}, 2), v = random({1, 1, 541, width}, 3);
  const Index ahead = 541 - q.dimension(2);
  const auto allowed = [ahead](Index, Index, Index i, Index j) { return j <= i + ahead; };
  const Expected<float> expected(q, k, v, scaled_dot(), allowed);
  const auto pass = attention_forward(make<float, 4>(q), make<float, 4>(k), make<float, 4>(v),
                                      scaled_dot_product(), causal());
  EXPECT_TRUE(expected.accepts(pass.output));
  EXPECT_TRUE(expected.accepts_log_sum_exp(pass.log_sum_exp));
}

// NaN and infinity beyond what a query sees, in this block and the next, reach nothing; a query
// that sees them is NaN.
TEST(Blocks, HideWhatIsNotFinite) {
  const SecondLevelCache cache(small);
  const Index queries = 6 * panel_lanes, keys = 720;
  const auto q = make<float, 4>(random({1, 1, queries, dim}, 1, 2));
  auto k = make<float, 4>(random({1, 1, keys, dim}, 2));
  auto v = make<float, 4>(random({1, 1, keys, width}, 3));
  const auto mask = causal(Align::top_left);
  const auto clean = attention(q, k, v, scaled_dot_product(), mask);
  const Index seen = 2 * panel_lanes + 3;
  for (const Index j : {seen, keys - 1}) {
    k(0, 0, j, 1) = std::numeric_limits<float>::quiet_NaN();
    v(0, 0, j, 2) = std::numeric_limits<float>::infinity();
  }
  const auto result = attention(q, k, v, scaled_dot_product(), mask);
  for (Index i = 0; i < queries; ++i) {
    for (Index c = 0; c < width; ++c) {
      if (i < seen) {
        EXPECT_EQ(result(0, 0, i, c), clean(0, 0, i, c)) << i << ' ' << c;
      } else {
        EXPECT_TRUE(std::isnan(result(0, 0, i, c))) << i << ' ' << c;
      }
    }
  }
}

}  // namespace
}  // namespace heed::test
