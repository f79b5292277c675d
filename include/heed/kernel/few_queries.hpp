#pragma once

#include <algorithm>

#include "heed/kernel/register_tile.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/simd/convert.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// The keys and values that come next. They are asked of the memory while others are worked on: row
/// by row in order of address, keys and values in turn, as two streams are faster than one, and far
/// faster than lines in the order in which the kernels come to them.
struct Ahead {
  const char *key = nullptr, *value = nullptr;
  Index key_stride = 0, value_stride = 0, key_bytes = 0, value_bytes = 0;
  Index count = 0;

  EIGEN_ALWAYS_INLINE void ask(Index first, Index last) const {
    for (Index row = first; row < std::min(last, count); ++row) {
      fetch(key + row * key_stride, key_bytes);
      fetch(value + row * value_stride, value_bytes);
    }
  }
};

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // of a vector type as template argument
/// Lane i of the result is the sum of the lanes of x[i].
template <class Scalar>
EIGEN_ALWAYS_INLINE Lanes<Scalar> sums_across(const Lanes<Scalar> (&x)[Lanes<Scalar>::size]) {
  using L = Lanes<Scalar>;
  constexpr Index n = L::size;
  if constexpr (n == 1) {
    return x[0];
  } else {
    Eigen::internal::PacketBlock<typename L::Packet, static_cast<int>(n)> block;
#pragma GCC unroll 16
    for (Index i = 0; i < n; ++i) block.packet[i] = x[i].packet;
    Eigen::internal::ptranspose(block);
    // In pairs, then pairs of pairs: a chain of additions would be as long as there are lanes.
#pragma GCC unroll 16
    for (Index step = 1; step < n; step *= 2) {
#pragma GCC unroll 16
      for (Index i = 0; i < n; i += 2 * step) {
        block.packet[i] = Eigen::internal::padd(block.packet[i], block.packet[i + step]);
      }
    }
    return L::of(block.packet[0]);
  }
}
#pragma GCC diagnostic pop

/// Scores of one query and count keys, lanes over the features, as many keys at once as a vector
/// has lanes; -infinity from there to a whole vector. Returns the largest.
template <class Scalar, class Similarity, class Key>
EIGEN_DONT_INLINE void score_keys(const Similarity& similarity, const Scalar* query,
                                  const Rows<Key>& keys, Index count, Index width,
                                  const Ahead& ahead, Scalar* scores) {
  using L = Lanes<Scalar>;
  constexpr Index n = L::size;
  for (Index j = 0; j < count; j += n) {
    ahead.ask(j / 2, (j + n) / 2);
    const Key* key[length(n)];
    L sum[length(n)];
#pragma GCC unroll 16
    for (Index k = 0; k < n; ++k) {
      key[k] = keys[std::min(j + k, count - 1)];
      sum[k] = L(0);
    }
    for (Index c = 0; c < width; c += n) {
      const L q = L::load(query + c).pinned();
#pragma GCC unroll 16
      for (Index k = 0; k < n; ++k) {
        sum[k] = similarity.step(sum[k], q, load_widened<Scalar>(key[k] + c), c);
      }
    }
    similarity.finish(sums_across(sum)).store(scores + j);
  }
}

/// output = fade * output + sum over keys of weight x value. The sum starts at 0 and the output is
/// added last: a chain of additions over all tiles would add up their rounding errors.
template <class Scalar, class Value>
EIGEN_DONT_INLINE void add_weighted(const Scalar* weights, const Rows<Value>& values, Index count,
                                    Index width, Scalar fade, const Ahead& ahead, Scalar* output) {
  using L = Lanes<Scalar>;
  // A power of two, as common widths are, and enough sums to hide the latency of a multiply-add.
  constexpr int sums = accumulator_registers / 3 * 2;
  constexpr Index block_keys = 8;  // what is asked for at once
  const auto add = [&]<int Vectors>(Index v) __attribute__((always_inline)) {
    Scalar* const to = output + v * L::size;
    L sum[length(Vectors)];
#pragma GCC unroll 16
    for (int i = 0; i < Vectors; ++i) sum[i] = L(0);
    for (Index block = 0; block < count; block += block_keys) {
      const Index end = std::min(block + block_keys, count);
      if (v == 0) ahead.ask((count + block) / 2, (count + end) / 2);
      for (Index j = block; j < end; ++j) {
        const Value* const from = values[j] + v * L::size;
        const L weight(weights[j]);
#pragma GCC unroll 16
        for (int i = 0; i < Vectors; ++i) {
          sum[i] = fma(weight, load_widened<Scalar>(from + i * L::size), sum[i]);
        }
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < Vectors; ++i) {
      fma(L(fade), L::load(to + i * L::size), sum[i]).store(to + i * L::size);
    }
  };
  const Index vectors = width / L::size;
  Index v = 0;
  for (; v + sums <= vectors; v += sums) add.template operator()<sums>(v);
  for (; v < vectors; ++v) add.template operator()<1>(v);
}

}  // namespace heed::detail
