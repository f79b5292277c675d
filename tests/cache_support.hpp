#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <type_traits>
#include <vector>

#include "heed/cache.hpp"
#include "support.hpp"

namespace heed::test {

struct Sizes {
  Index batch = 2, heads = 4, key_heads = 2, dim = 16, width = 32;

  CacheConfig config(Index capacity, Index window = 0, Index sinks = 0) const {
    return {.batch = batch,
            .kv_heads = key_heads,
            .key_dim = dim,
            .value_dim = width,
            .capacity = capacity,
            .window = window,
            .sinks = sinks};
  }
};

/// A sequence of `length` tokens for each batch entry.
struct Sequence {
  Reference key, value;

  Sequence(const Sizes& sizes, Index length, std::uint64_t seed = 1)
      : key(random({sizes.batch, sizes.key_heads, length, sizes.dim}, seed)),
        value(random({sizes.batch, sizes.key_heads, length, sizes.width}, seed + 1)) {}
  Index length() const { return key.dimension(2); }
};

inline Reference queries(const Sizes& sizes, Index n, std::uint64_t seed = 9) {
  return random({sizes.batch, sizes.heads, n, sizes.dim}, seed, 2);
}

inline Reference entry(const Reference& x, Index b) {
  return generate({1, x.dimension(1), x.dimension(2), x.dimension(3)},
                  [&](Index, Index h, Index i, Index j) { return x(b, h, i, j); });
}

/// (heads, rows, columns) of one batch entry.
template <class Scalar>
Tensor<Scalar, 3> one(const Reference& x, Index b) {
  Tensor<Scalar, 3> result(x.dimension(1), x.dimension(2), x.dimension(3));
  for_each_index(
      {1, x.dimension(1), x.dimension(2), x.dimension(3)},
      [&](Index, Index h, Index i, Index j) { result(h, i, j) = rounded<Scalar>(x(b, h, i, j)); });
  return result;
}

template <class Cache>
void append(Cache& cache, const Sequence& s, Index first, Index last) {
  cache.append(make<float, 4>(rows(s.key, first, last)),
               make<float, 4>(rows(s.value, first, last)));
}
template <class Cache>
void append(Cache& cache, Index b, const Sequence& s, Index first, Index last) {
  cache.append(b, one<float>(rows(s.key, first, last), b),
               one<float>(rows(s.value, first, last), b));
}

/// Rows as a cache of Element holds them. Quantised8, after its definition: whole numbers of a
/// 127th of the row's largest, which is rounded to float.
template <class Element>
Reference stored(const Reference& x) {
  if constexpr (std::is_same_v<Element, Quantised8>) {
    Reference result = x;
    for (Index row = 0; row < x.size(); row += x.dimension(3)) {
      double largest = 0;
      for (Index c = 0; c < x.dimension(3); ++c) {
        largest = std::max(largest, std::abs(x.data()[row + c]));
      }
      for (Index c = 0; c < x.dimension(3); ++c) {
        const double whole = largest > 0 ? std::nearbyint(x.data()[row + c] / largest * 127) : 0;
        result.data()[row + c] = whole * static_cast<double>(static_cast<float>(largest / 127));
      }
    }
    return result;
  } else {
    return rounded<Element>(x);
  }
}

/// What a cache of Element gives for q, entry by entry, where entry b has the first lengths[b]
/// tokens of s; `allowed` goes by positions.
template <class Element = float, class Cache, class Score, class Mask, class Formula>
void expect_sequences(const Cache& cache, const Sizes& sizes, const Sequence& s,
                      const std::vector<Index>& lengths, Index n, const Score& score,
                      const Mask& mask, const Formula& formula,
                      const std::function<bool(Index length, Index h, Index i, Index j)>& allowed) {
  using Query = std::conditional_t<std::is_same_v<Element, double>, double, float>;
  const Reference q = queries(sizes, n);
  const auto pass = attention_forward(make<Query, 4>(q), cache, score, mask);
  const Reference output = reference(pass.output), lse = reference_rows(pass.log_sum_exp);
  for (Index b = 0; b < sizes.batch; ++b) {
    SCOPED_TRACE(b);
    const Index length = lengths[static_cast<std::size_t>(b)];
    const Expected<Query> expected(
        entry(q, b), stored<Element>(entry(rows(s.key, 0, length), b)),
        stored<Element>(entry(rows(s.value, 0, length), b)), formula,
        [&](Index, Index h, Index i, Index j) { return allowed(length, h, i, j); });
    EXPECT_TRUE(near(entry(output, b), expected.output, expected.output_bound));
    EXPECT_TRUE(near(entry(lse, b), expected.log_sum_exp, expected.log_sum_exp_bound));
  }
}

inline bool causally(Index length, Index n, Index i, Index j) { return j <= length - n + i; }

}  // namespace heed::test
