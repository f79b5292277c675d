#include <algorithm>
#include <memory>
#include <stdexcept>

#include "allocation_support.hpp"
#include "cache_support.hpp"

/// Sequences in pages of a pool, which share what they have in common.
namespace heed::test {
namespace {

PagePoolConfig pool_of(const Sizes& sizes, Index pages, Index page_size) {
  return {.pages = pages,
          .page_size = page_size,
          .kv_heads = sizes.key_heads,
          .key_dim = sizes.dim,
          .value_dim = sizes.width};
}

/// The first `shared` tokens of a, then those of b.
Sequence joined(const Sequence& a, const Sequence& b, Index shared) {
  Sequence result = a;
  const auto join = [shared](const Reference& x, const Reference& y) {
    return generate(x.dimensions(), [&](Index n, Index h, Index t, Index c) {
      return t < shared ? x(n, h, t, c) : y(n, h, t, c);
    });
  };
  result.key = join(a.key, b.key);
  result.value = join(a.value, b.value);
  return result;
}

template <class Cache>
void expect_causal(const Cache& cache, const Sizes& sizes, const Sequence& s,
                   const std::vector<Index>& lengths, Index n) {
  expect_sequences(cache, sizes, s, lengths, n, scaled_dot_product(), causal(), scaled_dot(),
                   [&](Index keys, Index, Index i, Index j) { return causally(keys, n, i, j); });
}

/// One batch entry of an answer against the first `length` tokens of its own sequence.
template <class Cache>
void expect_entry(const Cache& cache, const Sizes& sizes, Index b, const Sequence& s,
                  Index length) {
  SCOPED_TRACE(b);
  ASSERT_EQ(cache.length(b), length);
  const Reference q = queries(sizes, 2);
  const Reference out =
      reference(attention(make<float, 4>(q), cache, scaled_dot_product(), causal()));
  const Expected<float> expected(
      entry(q, b), entry(rows(s.key, 0, length), b), entry(rows(s.value, 0, length), b),
      scaled_dot(), [&](Index, Index, Index i, Index j) { return causally(length, 2, i, j); });
  EXPECT_TRUE(near(entry(out, b), expected.output, expected.output_bound));
}

TEST(PagedCache, AnySplitAndLengthGivesTheWholeSequence) {
  const Sizes sizes{.batch = 3};
  const Sequence s(sizes, 150);
  for (const Index page_size : {1, 7, 16, 200}) {
    SCOPED_TRACE(page_size);
    PagePool<float> pool(pool_of(sizes, 450 / page_size + 3, page_size));
    PagedKeyValueCache<float> cache(pool, 3);
    std::vector<Index> lengths{0, 0, 0};
    for (const Index step : {1, 5, 16, 30, 98}) {
      for (Index b = 0; b < 3; ++b) {
        // The middle one gets half of it.
        Index& at = lengths[static_cast<std::size_t>(b)];
        const Index more = b == 1 ? step / 2 : step;
        append(cache, b, s, at, at + more);
        at += more;
      }
      for (const Index n : {Index(1), std::min<Index>(step, 16)}) {
        expect_causal(cache, sizes, s, lengths, n);
      }
    }
    EXPECT_EQ(cache.length(0), 150);
    EXPECT_EQ(cache.length(1), 0 + 2 + 8 + 15 + 49);
  }
}

TEST(PagedCache, OneSequenceLiesEvenlyAndOthersDoNot) {
  const Sizes sizes{.batch = 3};
  const Sequence s(sizes, 60);
  PagePool<float> pool(pool_of(sizes, 30, 8));
  PagedKeyValueCache<float> cache(pool, 3);
  append(cache, 0, s, 0, 60);
  for (Index at = 0; at < 60; at += 10) {
    append(cache, 1, s, at, at + 10);
    append(cache, 2, s, at, at + 10);
  }
  for (const Index n : {1, 16, 60}) expect_causal(cache, sizes, s, {60, 60, 60}, n);
}

TEST(PagedCache, ForksShareUntilOneWrites) {
  const Sizes sizes{.batch = 3};
  // One sequence for all entries, so that a fork of one is known to the others.
  Sequence s(sizes, 20), other(sizes, 20, 31), third(sizes, 20, 41);
  for (Sequence* x : {&s, &other, &third}) {
    for (Reference* rows : {&x->key, &x->value}) {
      const Reference first = entry(*rows, 0);
      *rows = generate(rows->dimensions(),
                       [&](Index, Index h, Index t, Index c) { return first(0, h, t, c); });
    }
  }
  PagePool<float> pool(pool_of(sizes, 12, 4));
  PagedKeyValueCache<float> cache(pool, 3);
  append(cache, 0, s, 0, 10);  // two full pages and half of one
  EXPECT_EQ(pool.free_pages(), 9);
  cache.fork(0, 1);
  cache.fork(0, 2);
  cache.fork(2, 2);
  EXPECT_EQ(pool.free_pages(), 9);
  for (Index b = 0; b < 3; ++b) expect_entry(cache, sizes, b, s, 10);

  append(cache, 1, other, 10, 11);  // copies the last page
  EXPECT_EQ(pool.free_pages(), 8);
  append(cache, 0, third, 10, 12);  // likewise
  EXPECT_EQ(pool.free_pages(), 7);
  append(cache, 2, s, 10, 11);  // the last owner writes in place
  EXPECT_EQ(pool.free_pages(), 7);
  expect_entry(cache, sizes, 0, joined(s, third, 10), 12);
  expect_entry(cache, sizes, 1, joined(s, other, 10), 11);
  expect_entry(cache, sizes, 2, s, 11);

  // Of a shared page that one has shortened, the other keeps what it has.
  cache.fork(2, 0);
  EXPECT_EQ(pool.free_pages(), 8);
  cache.truncate(0, 9);
  append(cache, 0, third, 9, 20);
  expect_entry(cache, sizes, 0, joined(s, third, 9), 20);
  expect_entry(cache, sizes, 2, s, 11);

  // 8 shared tokens, 3 pages of sequence 0 behind them, the last page of 1 and of 2.
  EXPECT_EQ(pool.free_pages(), 12 - 2 - 3 - 1 - 1);
  cache.clear(0);
  EXPECT_EQ(pool.free_pages(), 12 - 2 - 1 - 1);
  cache.truncate(1, 8);
  EXPECT_EQ(pool.free_pages(), 12 - 2 - 1);
  expect_entry(cache, sizes, 2, s, 11);
  cache.clear();
  EXPECT_EQ(pool.free_pages(), 12);
}

/// Three owners of a page need two copies of it, and the pool has just these.
TEST(PagedCache, AppendToAllCopiesASharedPageOnceLessThanItsOwners) {
  const Sizes sizes{.batch = 3};
  const Sequence s(sizes, 8);
  PagePool<float> pool(pool_of(sizes, 3, 8));
  PagedKeyValueCache<float> cache(pool, 3);
  append(cache, 0, s, 0, 5);
  cache.fork(0, 1);
  cache.fork(0, 2);
  append(cache, s, 5, 6);
  EXPECT_EQ(pool.free_pages(), 0);
  for (Index b = 0; b < 3; ++b) {
    const Sequence mine = [&] {  // tokens 0 .. 4 are those of sequence 0
      Sequence x = s;
      const auto from_first = [](const Reference& rows) {
        return generate(rows.dimensions(), [&](Index n, Index h, Index t, Index c) {
          return rows(t < 5 ? 0 : n, h, t, c);
        });
      };
      x.key = from_first(s.key);
      x.value = from_first(s.value);
      return x;
    }();
    expect_entry(cache, sizes, b, mine, 6);
  }
}

TEST(PagedCache, BeamsAreReordered) {
  const Sizes sizes{.batch = 3};
  const Sequence s(sizes, 30);
  const std::vector<Index> lengths{10, 30, 17};
  const auto q = make<float, 4>(generate({3, 4, 1, 16}, [](Index, Index h, Index, Index c) {
    return static_cast<double>(h - c) / 7;
  }));
  for (Index n = 0; n < 27; ++n) {
    const std::vector<Index> order{n % 3, n / 3 % 3, n / 9};
    PagePool<float> pool(pool_of(sizes, 20, 4));
    PagedKeyValueCache<float> cache(pool, 3);
    for (Index b = 0; b < 3; ++b) append(cache, b, s, 0, lengths[static_cast<std::size_t>(b)]);
    const Reference before = reference(attention(q, cache));
    cache.reorder(order);
    const Reference after = reference(attention(q, cache));
    Index used = 0;
    for (Index b = 0; b < 3; ++b) {
      const Index from = order[static_cast<std::size_t>(b)];
      EXPECT_EQ(cache.length(b), lengths[static_cast<std::size_t>(from)]);
      EXPECT_TRUE(near(entry(after, b), entry(before, from), 1e-6)) << n << ' ' << b;
      if (std::find(order.begin(), order.end(), b) != order.end()) {
        used += (lengths[static_cast<std::size_t>(b)] + 3) / 4;
      }
    }
    EXPECT_EQ(pool.free_pages(), 20 - used);
  }
}

TEST(PagedCache, CachesOfOnePoolAndItsEnd) {
  const Sizes sizes{.batch = 1};
  const Sequence s(sizes, 12);
  auto pool = std::make_unique<PagePool<float>>(pool_of(sizes, 6, 4));
  PagedKeyValueCache<float> first(*pool);
  append(first, s, 0, 5);
  {
    PagedKeyValueCache<float> second(*pool);
    append(second, s, 0, 12);
    EXPECT_EQ(pool->free_pages(), 1);
    PagedKeyValueCache<float> moved(std::move(second));
    EXPECT_EQ(pool->free_pages(), 1);
    expect_entry(moved, sizes, 0, s, 12);
  }
  EXPECT_EQ(pool->free_pages(), 4);
  {
    PagedKeyValueCache<float> third(*pool);
    append(third, s, 0, 8);
    first = std::move(third);
  }
  EXPECT_EQ(pool->free_pages(), 4);
  pool.reset();
  expect_entry(first, sizes, 0, s, 8);
}

TEST(PagedCache, WhatDoesNotFitLeavesAllAsItWas) {
  const Sizes sizes;
  const Sequence s(sizes, 40);
  PagePool<float> pool(pool_of(sizes, 5, 4));
  PagedKeyValueCache<float> cache(pool, 2);
  append(cache, 0, s, 0, 6);
  append(cache, 1, s, 0, 3);
  const auto q = make<float, 4>(queries(sizes, 1));
  const Reference before = reference(attention(q, cache));
  const auto unchanged = [&] {
    EXPECT_EQ(cache.length(0), 6);
    EXPECT_EQ(cache.length(1), 3);
    EXPECT_EQ(pool.free_pages(), 2);
    EXPECT_TRUE(near(reference(attention(q, cache)), before, 0));
  };
  // 6 + 11 tokens take 5 pages, of which there are 2, and 2 free.
  EXPECT_THROW(append(cache, 0, s, 6, 17), std::length_error);
  unchanged();
  // 6 + 3 and 3 + 3 take a page more each, 6 + 6 and 3 + 6 one and two.
  EXPECT_THROW(append(cache, s, 6, 12), std::length_error);
  unchanged();
  const auto k = [](Index batch, Index heads, Index n, Index dim) {
    return make<float, 4>(constant({batch, heads, n, dim}, 1));
  };
  const auto refuse = [&](const std::string& what, const auto& call) {
    EXPECT_TRUE(refuses(call, {what})) << what;
    unchanged();
  };
  refuse("batch (axis 0", [&] { cache.append(k(1, 2, 1, 16), k(1, 2, 1, 32)); });
  refuse("heads (axis 1", [&] { cache.append(k(2, 4, 1, 16), k(2, 4, 1, 32)); });
  refuse("width (axis 3", [&] { cache.append(k(2, 2, 1, 16), k(2, 2, 1, 16)); });
  refuse("no sequence 2", [&] { cache.fork(0, 2); });
  refuse("no sequence -1", [&] { cache.fork(-1, 0); });
  refuse("cannot keep 7", [&] { cache.truncate(0, 7); });
  refuse("index 1 is 9", [&] { cache.reorder({0, 9}); });
  refuse("page_size is 0", [&] { PagePool<float> bad(pool_of(sizes, 5, 0)); });
  refuse("negative extent of -1", [&] { PagePool<float> bad(pool_of(sizes, -1, 4)); });
  refuse("batch is -1", [&] { PagedKeyValueCache<float> bad(pool, -1); });
  append(cache, s, 6, 9);
  EXPECT_EQ(pool.free_pages(), 0);
}

#ifdef HEED_TEST_COUNTS_ALLOCATIONS
TEST(PagedCache, AppendAndForkAllocateNothing) {
  const Sizes sizes;
  const Sequence s(sizes, 1);
  const auto k = make<float, 4>(s.key), v = make<float, 4>(s.value);
  PagePool<float> pool(pool_of(sizes, 40, 2));
  PagedKeyValueCache<float> cache(pool, 2);
  EXPECT_EQ(allocations_of([&] {
              for (int step = 0; step < 30; ++step) {
                cache.append(k, v);
                if (step == 10) cache.fork(0, 1);
              }
            }),
            0);
}
#endif

}  // namespace
}  // namespace heed::test
