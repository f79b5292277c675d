#include <random>

#include "cache_support.hpp"

/// Keys and values of 8 bits, with a scale for each token and head.
namespace heed::test {
namespace {

/// What a cache gives back of a single token: its value, as the only key has all the weight.
std::vector<float> kept(const std::vector<float>& value) {
  const auto n = static_cast<Index>(value.size());
  KeyValueCache<Quantised8> cache({.key_dim = 1, .value_dim = n, .capacity = 1});
  Matrix<float> v(1, n);
  for (Index c = 0; c < n; ++c) v(0, c) = value[static_cast<std::size_t>(c)];
  cache.append(Matrix<float>(Matrix<float>::Ones(1, 1)), v);
  const auto out = attention(Matrix<float>(Matrix<float>::Ones(1, 1)), cache);
  return {out.data(), out.data() + n};
}

TEST(QuantisedCache, ByHand) {
  // The scale is 127 / 127 = 1.
  EXPECT_EQ(kept({-127, 64, 1.4F}), (std::vector<float>{-127, 64, 1}));
  // 2 / 127: .5 is 31.75 of them, so 32, and -1 is -63.5, so -64 (ties to even).
  const std::vector<float> found = kept({2, .5F, -1});
  const float scale = static_cast<float>(2. / 127);
  EXPECT_EQ(found, (std::vector<float>{127 * scale, 32 * scale, -64 * scale}));
  EXPECT_EQ(kept({0, 0, 0}), (std::vector<float>{0, 0, 0}));
}

TEST(QuantisedCache, TinyAndHugeRows) {
  // The scale, 2^-149 / 127, is rounded to 0.
  EXPECT_EQ(kept({0x1p-149F, 0, 0}), (std::vector<float>{0, 0, 0}));
  const std::vector<float> found = kept({3e38F, -3e38F, 1});
  EXPECT_NEAR(static_cast<double>(found[0]), 3e38, 1e32);
  EXPECT_NEAR(static_cast<double>(found[1]), -3e38, 1e32);
  EXPECT_EQ(found[2], 0);
  for (const float x :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const float y : kept({1, x, 2})) EXPECT_TRUE(std::isnan(y));
  }
}

constexpr auto gaussian_of_half = [](const auto& p) {
  typename std::remove_cvref_t<decltype(p)>::Real sum = 0;
  for (std::size_t d = 0; d < p.query.size(); ++d) {
    sum += (p.query[d] - p.key[d]) * (p.query[d] - p.key[d]);
  }
  return -sum / 8;
};

TEST(QuantisedCache, ScoresOfEveryKindAndNumbersOfQueries) {
  for (const Index dim : {16, 5}) {
    const Sizes sizes{.batch = 2, .heads = 6, .key_heads = 2, .dim = dim, .width = 2 * dim};
    const Sequence s(sizes, 150);
    KeyValueCache<Quantised8> cache(sizes.config(150));
    append(cache, s, 0, 77);
    append(cache, s, 77, 150);
    PagePool<Quantised8> pool({.pages = 32,
                               .page_size = 16,
                               .kv_heads = sizes.key_heads,
                               .key_dim = sizes.dim,
                               .value_dim = sizes.width});
    PagedKeyValueCache<Quantised8> paged(pool, 2);
    append(paged, s, 0, 150);
    for (const Index n : {1, 3, 16, 40}) {
      SCOPED_TRACE(n);
      const auto allowed = [&](Index keys, Index, Index i, Index j) {
        return causally(keys, n, i, j);
      };
      const auto expect = [&](const auto& held) {
        expect_sequences<Quantised8>(held, sizes, s, {150, 150}, n, scaled_dot_product(), causal(),
                                     scaled_dot(), allowed);
      };
      expect(cache);
      expect(paged);
      expect_sequences<Quantised8>(cache, sizes, s, {150, 150}, n, gaussian(.5), causal(),
                                   gaussian_of_half, allowed);
    }
  }
}

TEST(QuantisedCache, ScalesGoWithTheirRows) {
  // Sequence b is 10^b times as large, so that a scale of another row would show.
  const Sizes sizes{.batch = 3, .heads = 2, .key_heads = 2, .dim = 16, .width = 16};
  Sequence s(sizes, 30);
  for_each_index({3, 2, 30, 16}, [&](Index b, Index h, Index j, Index c) {
    s.value(b, h, j, c) =
        static_cast<double>(static_cast<float>(s.value(b, h, j, c) * std::pow(10., b)));
  });
  const auto fill = [&](auto& cache) {
    append(cache, s, 0, 20);
    cache.truncate(0, 11);
    append(cache, 0, s, 11, 30);
    append(cache, 1, s, 20, 30);
    append(cache, 2, s, 20, 30);
    cache.reorder({2, 0, 2});
  };
  const auto expect = [&](const auto& cache) {
    const auto out = reference(attention(make<float, 4>(queries(sizes, 1)), cache));
    const std::array<Index, 3> from{2, 0, 2};
    for (Index b = 0; b < 3; ++b) {
      const Index source = from[static_cast<std::size_t>(b)];
      const Expected<float> expected(
          entry(queries(sizes, 1), b), stored<Quantised8>(entry(s.key, source)),
          stored<Quantised8>(entry(s.value, source)), scaled_dot(), everything());
      EXPECT_TRUE(near(entry(out, b), expected.output, expected.output_bound));
    }
  };
  KeyValueCache<Quantised8> cache(sizes.config(30));
  fill(cache);
  expect(cache);
  PagePool<Quantised8> pool(
      {.pages = 40, .page_size = 4, .kv_heads = 2, .key_dim = 16, .value_dim = 16});
  PagedKeyValueCache<Quantised8> paged(pool, 3);
  fill(paged);
  expect(paged);
}

TEST(QuantisedCache, ARingOfThem) {
  const Sizes sizes;
  const Sequence s(sizes, 70);
  KeyValueCache<Quantised8> cache(sizes.config(0, 20, 3));
  for (Index at = 0; at < 70; at += 7) append(cache, s, at, at + 7);
  for (const Index n : {1, 5}) {
    expect_sequences<Quantised8>(cache, sizes, s, {70, 70}, n, scaled_dot_product(), causal(),
                                 scaled_dot(), [&](Index keys, Index, Index i, Index j) {
                                   return causally(keys, n, i, j) && (j < 3 || j >= 50);
                                 });
  }
}

TEST(QuantisedCache, ErrorOnNormalData) {
  // Rounding moves a value by at most 1/254 of its row's largest, and a mean of values by no more;
  // rounded keys move the weights as well. In all at most .5 % of the largest value.
  std::mt19937_64 engine(3);
  std::normal_distribution<double> normal;
  const Sizes sizes{.batch = 2, .heads = 4, .key_heads = 2, .dim = 64, .width = 64};
  Sequence s(sizes, 300);
  Reference q = queries(sizes, 4);
  for (Reference* x : {&s.key, &s.value, &q}) {
    for (Index n = 0; n < x->size(); ++n) {
      x->data()[n] = static_cast<double>(static_cast<float>(normal(engine)));
    }
  }
  KeyValueCache<Quantised8> cache(sizes.config(300));
  append(cache, s, 0, 300);
  const Expected<float> exact(q, s.key, s.value, scaled_dot(), everything());
  double largest = 0;
  for (Index n = 0; n < s.value.size(); ++n) {
    largest = std::max(largest, std::abs(s.value.data()[n]));
  }
  EXPECT_TRUE(near(reference(attention(make<float, 4>(q), cache)), exact.output, .005 * largest));
}

}  // namespace
}  // namespace heed::test
