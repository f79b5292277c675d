#include "cache_support.hpp"

#include <unsupported/Eigen/CXX11/ThreadPool>

#include "allocation_support.hpp"

/// Attention over a cache is attention over the whole sequence, however it was appended.
namespace heed::test {
namespace {

TEST(Cache, AnySplitGivesTheWholeSequence) {
  const Sizes sizes;
  for (const Index step : {1, 2, 3, 5, 16, 50, 150}) {
    SCOPED_TRACE(step);
    const Index length = step < 16 ? 25 : 150;
    const Sequence s(sizes, length);
    KeyValueCache<float> cache(sizes.config(length));
    for (Index at = 0; at < length; at += step) {
      const Index end = std::min(length, at + step);
      append(cache, s, at, end);
      expect_sequences(
          cache, sizes, s, {end, end}, end - at, scaled_dot_product(), causal(), scaled_dot(),
          [&](Index keys, Index, Index i, Index j) { return causally(keys, end - at, i, j); });
    }
    EXPECT_EQ(cache.length(1), length);
  }
}

TEST(Cache, NewQueriesFromOneToSixteenUnderManyMasks) {
  const Sizes sizes{.batch = 2, .heads = 6, .key_heads = 3, .dim = 32, .width = 16};
  const Sequence s(sizes, 90);
  KeyValueCache<float> cache(sizes.config(128));
  append(cache, s, 0, 90);
  const std::vector<Index> lengths{90, 90};
  for (Index n = 1; n <= 16; ++n) {
    SCOPED_TRACE(n);
    expect_sequences(cache, sizes, s, lengths, n, scaled_dot_product(), sliding_window(7, 0),
                     scaled_dot(), [&](Index keys, Index, Index i, Index j) {
                       return causally(keys, n, i, j) && j >= keys - n + i - 7;
                     });
    const std::function<bool(Index, Index, Index, Index)> odd =
        [](Index, Index h, Index i, Index j) { return (h + i + j) % 3 != 0; };
    expect_sequences(cache, sizes, s, lengths, n, scaled_dot_product(), mask_if(odd), scaled_dot(),
                     [&](Index, Index h, Index i, Index j) { return odd(0, h, i, j); });
  }
}

TEST(Cache, SequencesHaveLengthsOfTheirOwn) {
  const Sizes sizes{.batch = 3};
  const Sequence s(sizes, 200);
  KeyValueCache<float> cache(sizes.config(200));
  const std::vector<Index> lengths{37, 200, 6};
  for (Index b = 0; b < 3; ++b) append(cache, b, s, 0, lengths[static_cast<std::size_t>(b)]);
  for (const Index n : {1, 4, 16}) {
    SCOPED_TRACE(n);
    expect_sequences(cache, sizes, s, lengths, n, scaled_dot_product(), causal(), scaled_dot(),
                     [&](Index keys, Index, Index i, Index j) { return causally(keys, n, i, j); });
    expect_sequences(cache, sizes, s, lengths, n, scaled_dot_product(), no_mask(), scaled_dot(),
                     [](Index, Index, Index, Index) { return true; });
  }
}

TEST(Cache, AnEmptySequenceGivesZero) {
  const Sizes sizes;
  const Sequence s(sizes, 5);
  KeyValueCache<float> cache(sizes.config(5));
  const auto q = make<float, 4>(queries(sizes, 1));
  EXPECT_TRUE(near(reference(attention(q, cache)), constant({2, 4, 1, 32}, 0), 0));
  append(cache, 1, s, 0, 5);
  const Reference out = reference(attention(q, cache));
  EXPECT_TRUE(near(entry(out, 0), constant({1, 4, 1, 32}, 0), 0));
  EXPECT_FALSE(near(entry(out, 1), constant({1, 4, 1, 32}, 0), 1e-3));
}

TEST(Cache, ScoresAndModifiersGoByPosition) {
  const Sizes sizes{.batch = 2, .heads = 2, .key_heads = 1, .dim = 16, .width = 16};
  const Sequence s(sizes, 60);
  const Reference biases = random({1, 2, 1, 60}, 5);
  const auto tensor = make<float, 4>(biases);
  const auto score = scaled_dot_product() | bias(tensor);
  const auto formula = [&](const auto& p) {
    using Real = typename std::remove_cvref_t<decltype(p)>::Real;
    return scaled_dot()(p) + static_cast<Real>(biases(0, p.h, 0, p.j));
  };
  // The ring holds positions 0, 1 and 40 .. 59.
  for (const Index window : {0, 20}) {
    KeyValueCache<float> cache(sizes.config(60, window, window > 0 ? 2 : 0));
    append(cache, s, 0, 60);
    for (const Index n : {1, 7}) {
      expect_sequences(cache, sizes, s, {60, 60}, n, score, causal(), formula,
                       [&](Index keys, Index, Index i, Index j) {
                         return causally(keys, n, i, j) && (window == 0 || j < 2 || j >= 40);
                       });
    }
  }
}

// Query 0 and keys 0 and 1 have scores 0 and log 2 by alibi; a logit of log 1.5 joins them: weights
// 1/4.5 and 2/4.5 of values 6 and 12 give 30/4.5.
TEST(Cache, ASinkStaysOneBesideAModifierThatGoesByPosition) {
  KeyValueCache<double> cache({.kv_heads = 1, .key_dim = 1, .value_dim = 1, .capacity = 2});
  Tensor<double, 4> k(1, 1, 2, 1), v(1, 1, 2, 1), q(1, 1, 1, 1);
  k.setZero();
  q.setZero();
  v.setValues({{{{6}, {12}}}});
  cache.append(k, v);
  const auto out =
      attention(q, cache, dot_product() | alibi({std::log(2.)}) | sink({std::log(1.5)}));
  EXPECT_NEAR(out(0), 30 / 4.5, 1e-12);
}

TEST(Cache, NumbersOfEveryType) {
  const Sizes sizes;
  const Sequence s(sizes, 70);
  const auto expect = [&]<class Element>(Element) {
    KeyValueCache<Element> cache(sizes.config(80));
    append(cache, s, 0, 33);
    append(cache, s, 33, 70);
    for (const Index n : {1, 16}) {
      expect_sequences<Element>(
          cache, sizes, s, {70, 70}, n, scaled_dot_product(), causal(), scaled_dot(),
          [&](Index keys, Index, Index i, Index j) { return causally(keys, n, i, j); });
    }
  };
  expect(double());
  expect(Eigen::half());
  expect(Eigen::bfloat16());
}

TEST(Cache, ARingIsAWindowOverTheWholeSequence) {
  const Sizes sizes;
  const Sequence s(sizes, 70);
  for (const Index sinks : {0, 3}) {
    for (const Index capacity : {0, 21}) {
      KeyValueCache<float> cache(sizes.config(capacity, 12, sinks));
      Index step = 1;
      for (Index at = 0; at < 70; at += step, step = step % 7 + 1) {
        const Index end = std::min<Index>(70, at + step);
        append(cache, s, at, end);
        SCOPED_TRACE(end);
        for (const Index n : {Index(1), end - at}) {
          expect_sequences(cache, sizes, s, {end, end}, n, scaled_dot_product(), causal(),
                           scaled_dot(), [&](Index keys, Index, Index i, Index j) {
                             return causally(keys, n, i, j) && (j < sinks || j >= keys - 12);
                           });
        }
      }
    }
  }
}

TEST(Cache, RingsOfSeveralLengthsAndMoreTokensThanSlots) {
  const Sizes sizes{.batch = 3};
  const Sequence s(sizes, 400);
  KeyValueCache<float> cache(sizes.config(0, 100, 5));
  const std::vector<Index> lengths{400, 31, 170};
  for (Index b = 0; b < 3; ++b) {
    const Index length = lengths[static_cast<std::size_t>(b)];
    append(cache, b, s, 0, length - 30);
    append(cache, b, s, length - 30, length);
  }
  EXPECT_EQ(cache.length(0), 400);
  for (const Index n : {1, 30}) {
    expect_sequences(cache, sizes, s, lengths, n, scaled_dot_product(), causal(), scaled_dot(),
                     [&](Index keys, Index, Index i, Index j) {
                       return causally(keys, n, i, j) && (j < 5 || j >= keys - 100);
                     });
  }
}

/// A predicate is asked for positions, and so are ranges apart, of which a sequence has but a part.
TEST(Cache, MasksOverARingGoByPosition) {
  const Sizes sizes;
  const Sequence s(sizes, 70);
  KeyValueCache<float> cache(sizes.config(0, 25, 4));
  const std::vector<Index> lengths{70, 33};
  for (Index b = 0; b < 2; ++b) append(cache, b, s, 0, lengths[static_cast<std::size_t>(b)]);
  const std::function<bool(Index, Index, Index, Index)> third =
      [](Index, Index h, Index i, Index j) { return (h + i + j) % 3 == 0; };
  const auto kept = [](Index keys, Index j) { return j < 4 || j >= keys - 25; };
  for (const Index n : {1, 16}) {
    expect_sequences(
        cache, sizes, s, lengths, n, scaled_dot_product(), mask_if(third), scaled_dot(),
        [&](Index keys, Index h, Index i, Index j) { return third(0, h, i, j) && kept(keys, j); });
    expect_sequences(cache, sizes, s, lengths, n, scaled_dot_product(),
                     prefix(11) || sliding_window(5, 0), scaled_dot(),
                     [&](Index keys, Index, Index i, Index j) {
                       const bool near_by = causally(keys, n, i, j) && j >= keys - n + i - 5;
                       return (j < 11 || near_by) && kept(keys, j);
                     });
  }
}

TEST(Cache, TokensAreTakenBack) {
  const Sizes sizes;
  const Sequence s(sizes, 40);
  Sequence draft = s;  // what has been taken back is of no account
  draft.key.setConstant(nan);
  draft.value.setConstant(nan);
  // A window of 12 with room for 4 more.
  for (const Index window : {0, 12}) {
    KeyValueCache<float> cache(sizes.config(window > 0 ? 18 : 40, window, window > 0 ? 2 : 0));
    append(cache, s, 0, 30);
    append(cache, draft, 30, 34);
    cache.truncate(0, 30);
    cache.truncate(1, 30);
    EXPECT_EQ(cache.length(0), 30);
    const auto allowed = [&](Index keys, Index, Index, Index j) {
      return window == 0 || j < 2 || j >= keys - 12;
    };
    expect_sequences(cache, sizes, s, {30, 30}, 1, scaled_dot_product(), causal(), scaled_dot(),
                     allowed);
    expect_sequences(cache, sizes, s, {30, 30}, 16, scaled_dot_product(), causal(), scaled_dot(),
                     [&](Index keys, Index h, Index i, Index j) {
                       return causally(keys, 16, i, j) && allowed(keys, h, i, j);
                     });
    append(cache, 1, s, 30, 33);
    expect_sequences(cache, sizes, s, {30, 33}, 1, scaled_dot_product(), causal(), scaled_dot(),
                     allowed);
    cache.truncate(1, 1);
    append(cache, 1, s, 1, 9);
    expect_sequences(cache, sizes, s, {30, 9}, 1, scaled_dot_product(), causal(), scaled_dot(),
                     allowed);
    cache.clear();
    EXPECT_EQ(cache.length(0), 0);
    append(cache, s, 0, 40);
    expect_sequences(cache, sizes, s, {40, 40}, 1, scaled_dot_product(), causal(), scaled_dot(),
                     allowed);
  }
}

/// A ring that has lost what truncate gives back hides it, and shows what is appended afterwards.
TEST(Cache, WhatARingHasOverwrittenStaysHidden) {
  const Sizes sizes;
  const Sequence s(sizes, 40);
  KeyValueCache<float> cache(sizes.config(0, 8));
  append(cache, s, 0, 30);  // 22 .. 29 are there
  for (Index b = 0; b < 2; ++b) cache.truncate(b, 25);
  expect_sequences(cache, sizes, s, {25, 25}, 1, scaled_dot_product(), causal(), scaled_dot(),
                   [](Index, Index, Index, Index j) { return j >= 22; });
  for (Index b = 0; b < 2; ++b) cache.truncate(b, 10);
  append(cache, s, 10, 13);
  expect_sequences(cache, sizes, s, {13, 13}, 1, scaled_dot_product(), causal(), scaled_dot(),
                   [](Index, Index, Index, Index j) { return j >= 10; });
}

TEST(Cache, BeamsAreReordered) {
  const Sizes sizes{.batch = 4, .heads = 2, .key_heads = 1};
  const Sequence s(sizes, 20);
  const std::vector<Index> lengths{3, 20, 9, 13};
  const auto q = make<float, 4>(generate({4, 2, 1, 16}, [](Index, Index h, Index, Index c) {
    return static_cast<double>(h - c) / 7;  // every beam asks the same
  }));
  for (const Index window : {0, 5}) {
    // All 256 orders, permutations and others.
    for (Index n = 0; n < 256; ++n) {
      const std::vector<Index> order{n % 4, n / 4 % 4, n / 16 % 4, n / 64};
      KeyValueCache<float> cache(sizes.config(20, window));
      for (Index b = 0; b < 4; ++b) append(cache, b, s, 0, lengths[static_cast<std::size_t>(b)]);
      const Reference before = reference(attention(q, cache));
      cache.reorder(order);
      const Reference after = reference(attention(q, cache));
      for (Index b = 0; b < 4; ++b) {
        const Index from = order[static_cast<std::size_t>(b)];
        ASSERT_EQ(cache.length(b), lengths[static_cast<std::size_t>(from)]);
        ASSERT_TRUE(near(entry(after, b), entry(before, from), 1e-6)) << n << ' ' << b;
      }
    }
  }
}

TEST(Cache, QueriesOfLowerRankAndInto) {
  KeyValueCache<float> cache({.key_dim = 16, .value_dim = 16, .capacity = 9});
  const Sizes sizes{.batch = 1, .heads = 1, .key_heads = 1, .dim = 16, .width = 16};
  const Sequence s(sizes, 9);
  cache.append(make<float, 2>(s.key), make<float, 2>(s.value));
  const Reference q = queries(sizes, 3);
  const auto wide = attention(make<float, 4>(q), cache, scaled_dot_product(), causal());
  const Matrix<float> two = attention(make<float, 2>(q), cache, scaled_dot_product(), causal());
  EXPECT_TRUE(near(reference(two), reference(wide), 0));
  Matrix<float> out(3, 16);
  Eigen::ThreadPool pool(2);
  attention_into(out, make<float, 2>(q), cache, scaled_dot_product(), causal(), {.pool = &pool});
  EXPECT_TRUE(near(reference(out), reference(wide), 0));
  EXPECT_THROW(attention_into(out, make<float, 2>(queries(sizes, 2)), cache),
               std::invalid_argument);
}

TEST(Cache, BadInputLeavesItAsItWas) {
  const Sizes sizes;
  const Sequence s(sizes, 12);
  KeyValueCache<float> cache(sizes.config(10));
  append(cache, s, 0, 4);
  append(cache, 0, s, 4, 9);
  const auto q = make<float, 4>(queries(sizes, 1));
  const Reference before = reference(attention(q, cache));
  const auto k = [](Index batch, Index heads, Index n, Index dim) {
    return make<float, 4>(constant({batch, heads, n, dim}, 1));
  };
  const auto refuse = [&](const std::string& what, const auto& call) {
    EXPECT_TRUE(refuses(call, {what})) << what;
    EXPECT_EQ(cache.length(0), 9);
    EXPECT_EQ(cache.length(1), 4);
    EXPECT_TRUE(near(reference(attention(q, cache)), before, 0));
  };
  refuse("2 tokens (axis 2) do not fit into sequence 0",
         [&] { cache.append(k(2, 2, 2, 16), k(2, 2, 2, 32)); });
  refuse("batch (axis 0", [&] { cache.append(k(1, 2, 1, 16), k(1, 2, 1, 32)); });
  refuse("heads (axis 1", [&] { cache.append(k(2, 3, 1, 16), k(2, 3, 1, 32)); });
  refuse("key and the cache differ in width (axis 3",
         [&] { cache.append(k(2, 2, 1, 15), k(2, 2, 1, 32)); });
  refuse("value and the cache differ in width (axis 3",
         [&] { cache.append(k(2, 2, 1, 16), k(2, 2, 1, 31)); });
  refuse("differ in tokens", [&] { cache.append(k(2, 2, 1, 16), k(2, 2, 0, 32)); });
  refuse("no sequence 2", [&] { append(cache, 2, s, 0, 0); });
  refuse("no sequence -1", [&] { cache.truncate(-1, 0); });
  refuse("sequence 1 has 4 tokens and cannot keep 5", [&] { cache.truncate(1, 5); });
  refuse("cannot keep -1", [&] { cache.truncate(1, -1); });
  refuse("no sequence 7", [&] { (void)cache.length(7); });
  refuse("no sequence 2", [&] { cache.clear(2); });
  refuse("index 1 is 2", [&] { cache.reorder({1, 2}); });
  refuse("index 0 is -1", [&] { cache.reorder({-1, 0}); });
  refuse("3 indices (axis 0)", [&] { cache.reorder({0, 1, 0}); });
  refuse("batch (axis 0): 1 and 2",
         [&] { attention(make<float, 4>(constant({1, 4, 1, 16}, 1)), cache); });
  refuse("2 key heads of the cache do not divide 3",
         [&] { attention(make<float, 4>(constant({2, 3, 1, 16}, 1)), cache); });
}

TEST(Cache, BadConfigurations) {
  const auto refuse = [](const char* what, const CacheConfig& config) {
    EXPECT_TRUE(refuses([&] { KeyValueCache<float> cache(config); }, {what})) << what;
  };
  refuse("capacity is -1", {.key_dim = 1, .value_dim = 1, .capacity = -1});
  refuse("window is -2", {.key_dim = 1, .value_dim = 1, .capacity = 1, .window = -2});
  refuse("sinks is -3", {.key_dim = 1, .value_dim = 1, .window = 1, .sinks = -3});
  refuse("4 sinks need a window", {.key_dim = 1, .value_dim = 1, .capacity = 9, .sinks = 4});
  refuse("negative extent of -1 in axis 0", {.batch = -1, .key_dim = 1, .value_dim = 1});
  refuse("negative extent of -5 in axis 3", {.key_dim = -5, .value_dim = 1});
  refuse("too many elements",
         {.key_dim = 1, .value_dim = Index(1) << 40, .capacity = Index(1) << 40});
}

#ifdef HEED_TEST_COUNTS_ALLOCATIONS
TEST(Cache, AppendAndTheSecondCallAllocateNothing) {
  const Sizes sizes;
  const Sequence s(sizes, 40);
  const auto k = make<float, 4>(rows(s.key, 0, 1)), v = make<float, 4>(rows(s.value, 0, 1));
  const auto q = make<float, 4>(queries(sizes, 1));
  for (const Index window : {0, 8}) {
    KeyValueCache<float> cache(sizes.config(40, window));
    append(cache, 1, s, 0, 11);
    Tensor<float, 4> out(2, 4, 1, 32);
    attention_into(out, q, cache, scaled_dot_product(), causal());
    EXPECT_EQ(allocations_of([&] {
                for (int step = 0; step < 20; ++step) {
                  cache.append(k, v);
                  attention_into(out, q, cache, scaled_dot_product(), causal());
                }
              }),
              0);
  }
}
#endif

}  // namespace
}  // namespace heed::test
