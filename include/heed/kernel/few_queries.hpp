#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>

#include "heed/core/key_source.hpp"
#include "heed/core/quantised.hpp"
#include "heed/kernel/register_tile.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/kernel/softmax_row.hpp"
#include "heed/simd/convert.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// The keys and values that come next. They are asked of the memory while others are worked on, at
/// an even pace, as a core waits for a dozen lines at most: row by row in order of address, keys
/// and values in turn, as two streams are faster than one, and far faster than lines in the order
/// in which the kernels come to them.
struct Ahead {
  const char *key = nullptr, *value = nullptr;
  Index key_stride = 0, value_stride = 0, key_bytes = 0, value_bytes = 0;
  Index count = 0;  // rows
  Index work = 1;   // after which all will have been asked for
  Index asked = 0, owed = 0;

  /// Asks for the share of so much work.
  EIGEN_ALWAYS_INLINE void ask(Index done) {
    for (owed += done * count; owed >= work && asked < count; owed -= work, ++asked) {
      fetch(key + asked * key_stride, key_bytes);
      fetch(value + asked * value_stride, value_bytes);
    }
  }
};

/// In lanes whose number has the bit `step`, b and its neighbour `step` lanes before, in the others
/// a and the neighbour behind.
template <std::size_t step, class Scalar, std::size_t... lane>
EIGEN_ALWAYS_INLINE Lanes<Scalar> add_neighbours(Lanes<Scalar> a, Lanes<Scalar> b,
                                                 std::index_sequence<lane...>) {
  using L = Lanes<Scalar>;
  constexpr std::size_t n = sizeof...(lane);
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
  const auto x = a.ints(), y = b.ints();
  return L::from_ints(__builtin_shufflevector(
             x, y, static_cast<int>((lane & step) != 0 ? n + lane : lane)...)) +
         L::from_ints(__builtin_shufflevector(
             x, y, static_cast<int>(((lane & step) != 0 ? n + lane : lane) ^ step)...));
#else
  Scalar x[2 * n], sums[n];
  a.store(x);
  b.store(x + n);
  ((sums[lane] = (lane & step) != 0 ? x[n + lane] + x[n + lane - step] : x[lane] + x[lane + step]),
   ...);
  return L::load(sums);
#endif
}

/// Lane i of the result is the sum of the lanes of x[i]: of pairs of vectors the sums of pairs of
/// lanes, of these pairs and so on, so that a vector costs less than one exchange of lanes.
template <std::size_t step = 1, class Scalar, std::size_t N>
EIGEN_ALWAYS_INLINE Lanes<Scalar> sums_across(const Lanes<Scalar> (&x)[N]) {
  if constexpr (N == 1) {
    return x[0];
  } else {
    Lanes<Scalar> half[N / 2];
#pragma GCC unroll 16
    for (std::size_t i = 0; i < N / 2; ++i) {
      half[i] = add_neighbours<step>(x[2 * i], x[2 * i + 1],
                                     std::make_index_sequence<length(Lanes<Scalar>::size)>());
    }
    return sums_across<2 * step>(half);
  }
}

/// Scores of one query and the first count keys of a run, lanes over the features, as many keys at
/// once as a vector has lanes. Scales of keys multiply sums, which is right where terms are
/// products.
template <class Scalar, class Similarity, class Key>
EIGEN_DONT_INLINE void score_keys(const Similarity& similarity, const Scalar* query,
                                  const Run<Key>& keys, Index count, Index width, Ahead& ahead,
                                  Scalar* scores) {
  using L = Lanes<Scalar>;
  constexpr Index n = L::size;
  for (Index j = 0; j < count; j += n) {
    ahead.ask(n);
    const Stored<Key>* key[length(n)];
    L sum[length(n)];
#pragma GCC unroll 16
    for (Index k = 0; k < n; ++k) {
      key[k] = keys.data + std::min(j + k, count - 1) * keys.row_stride;
      sum[k] = L(0);
    }
    for (Index c = 0; c < width; c += n) {
      const L q = L::load(query + c).pinned();
#pragma GCC unroll 16
      for (Index k = 0; k < n; ++k) {
        sum[k] = similarity.step(sum[k], q, load_widened<Scalar>(key[k] + c), c);
      }
    }
    L sums = sums_across(sum);
    if constexpr (std::is_same_v<Key, Quantised8>) {
      sums = sums * (count - j >= n ? L::load(keys.scales + j)
                                    : load_some<Scalar>(keys.scales + j, count - j, Scalar(0)));
    }
    similarity.finish(sums).store(scores + j);
  }
}

/// The time that the scores of a key and a block of queries take, as multiples of what the scores
/// or the weighted values of a key and one query do.
inline constexpr Index block_score_work = 4;

/// The same of a block of queries, a vector of them, that lie as panel[feature][query]:
/// scores[key][query], and the largest of each query. Keys are read one broadcast number at a time,
/// so that no sum goes across lanes.
template <class Scalar, class Similarity>
EIGEN_DONT_INLINE void score_block(const Similarity& similarity, const Scalar* panel,
                                   const Run<Scalar>& keys, Index count, Index width, Ahead& ahead,
                                   Scalar* scores, Scalar* largest) {
  using L = Lanes<Scalar>;
  L most(-std::numeric_limits<Scalar>::infinity());
  // As many rows as there are general registers to find them with.
  for_each_tile<std::min(8, accumulator_registers)>(
      count, [&]<int Keys>(Index j) __attribute__((always_inline)) {
        ahead.ask(block_score_work * Keys);
        RegisterTile<Scalar, Keys, 1> tile;
        tile.accumulate(panel, keys.data + j * keys.row_stride, keys.row_stride,
                        std::integral_constant<Index, 1>(), width,
                        [&](L sum, L query, L key, Index c) __attribute__((always_inline)) {
                          return similarity.step(sum, query, key, c);
                        });
#pragma GCC unroll 16
        for (int k = 0; k < Keys; ++k) {
          const L score = similarity.finish(tile.sum[k][0]);
          score.store(scores + (j + k) * L::size);
          most = max(most, score);
        }
      });
  most.store(largest);
}

/// output = fade * output + sum over the first count rows of a run of weight x value, for `Queries`
/// queries: weights[query * query_stride + key * key_stride], outputs output_stride apart. The sum
/// starts at 0 and the output is added last: a chain of additions over all tiles would add up their
/// rounding errors.
template <int Queries, class Scalar, class Value>
EIGEN_DONT_INLINE void add_weighted(const Scalar* weights, Index query_stride, Index key_stride,
                                    const Run<Value>& values, Index count, Index width,
                                    const Scalar* fade, Ahead& ahead, Scalar* output,
                                    Index output_stride) {
  using L = Lanes<Scalar>;
  // Powers of two, as common widths are.
  constexpr int most_sums = accumulator_registers / 3 * 2;
  constexpr Index block_keys = 8;  // what is asked for at once
  const auto add = [&]<int Vectors>(Index v) __attribute__((always_inline)) {
    // Keys in turn, where a vector of each alone would wait for its last multiply-add.
    constexpr int chains = std::max(1, most_sums / 2 / (Queries * Vectors));
    Scalar* const to = output + v * L::size;
    L sum[length(chains)][length(Queries)][length(Vectors)];
#pragma GCC unroll 16
    for (auto& chain : sum) {
#pragma GCC unroll 16
      for (auto& query : chain) {
#pragma GCC unroll 16
        for (L& vector : query) vector = L(0);
      }
    }
    const auto add_key = [&](Index j, int chain) __attribute__((always_inline)) {
      const auto* const from = values.data + j * values.row_stride + v * L::size;
      L value[length(Vectors)];
#pragma GCC unroll 16
      for (int i = 0; i < Vectors; ++i) {
        value[i] = load_widened<Scalar>(from + i * L::size);
        if constexpr (Queries > 1) value[i] = value[i].pinned();
      }
#pragma GCC unroll 16
      for (int q = 0; q < Queries; ++q) {
        const Scalar number = weights[q * query_stride + j * key_stride];
        const L weight(std::is_same_v<Value, Quantised8> ? number * values.scale(j) : number);
#pragma GCC unroll 16
        for (int i = 0; i < Vectors; ++i) {
          sum[chain][q][i] = fma(weight, value[i], sum[chain][q][i]);
        }
      }
    };
    for (Index block = 0; block < count; block += block_keys) {
      const Index end = std::min(block + block_keys, count);
      if (v == 0) ahead.ask(end - block);
      Index j = block;
      for (; j + chains <= end; j += chains) {
#pragma GCC unroll 16
        for (int chain = 0; chain < chains; ++chain) add_key(j + chain, chain);
      }
      if constexpr (chains > 1) {
        for (; j < end; ++j) add_key(j, 0);
      }
    }
#pragma GCC unroll 16
    for (int q = 0; q < Queries; ++q) {
#pragma GCC unroll 16
      for (int i = 0; i < Vectors; ++i) {
#pragma GCC unroll 16
        for (int chain = 1; chain < chains; ++chain) sum[0][q][i] += sum[chain][q][i];
        Scalar* const at = to + q * output_stride + i * L::size;
        fma(L(fade[q]), L::load(at), sum[0][q][i]).store(at);
      }
    }
  };
  const Index vectors = width / L::size;
  Index v = 0;
  const auto add_all = [&]<int Vectors>(const auto& self) __attribute__((always_inline)) {
    for (; v + Vectors <= vectors; v += Vectors) add.template operator()<Vectors>(v);
    if constexpr (Vectors > 1) self.template operator()<Vectors / 2>(self);
  };
  add_all.template operator()<std::max(1, most_sums / Queries)>(add_all);
}

}  // namespace heed::detail
