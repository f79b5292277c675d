#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "heed/core/unit.hpp"
#include "heed/kernel/register_tile.hpp"
#include "heed/simd/math.hpp"

namespace heed::detail {

/// Softmax over keys that arrive tile by tile, for Vectors * L::size queries side by side (Milakov
/// and Gimelshein, "Online normalizer calculation for softmax", 2018). After each tile
///   sum = sum over keys so far of e^(score - largest),
/// and what was accumulated with the previous `largest` has to be multiplied by `correction`.
/// `Unit` is that of the scores.
///
/// Sums are taken in runs of 16 keys, these in tiles, these over all keys: a chain of n equal
/// additions has a relative error of about sqrt(n / 3) roundings, three short chains of far less.
template <class Scalar, int Vectors, class Unit>
struct OnlineSoftmax {
  using L = Lanes<Scalar>;
  static constexpr Index lanes = Vectors * L::size;
  static constexpr Scalar infinity = std::numeric_limits<Scalar>::infinity();

  alignas(64) Scalar largest[length(lanes)];
  alignas(64) Scalar sum[length(lanes)];
  alignas(64) Scalar correction[length(lanes)];

  OnlineSoftmax() {
    for (Index lane = 0; lane < lanes; ++lane) {
      largest[lane] = -infinity;
      sum[lane] = 0;
    }
  }

  /// Takes in count keys, whose largest scores are tile_max, and turns the scores into
  /// e^(score - largest). Scores of -infinity give exactly 0.
  void absorb(Scalar* scores, Index count, const Scalar* tile_max) {
    L shift[length(Vectors)], faded[length(Vectors)], total[length(Vectors)];
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) {
      const Index at = v * L::size;
      const L before = L::load(largest + at);
      const L after = max(before, L::load(tile_max + at));
      // -inf - (-inf) is NaN, so a query that has seen no key subtracts 0.
      shift[v] = select(after == L(-infinity), L(0), after);
      const L fade = exp2_nonpositive((before - shift[v]) * L(binary));
      after.store(largest + at);
      fade.store(correction + at);
      faded[v] = fade * L::load(sum + at);
      total[v] = L(0);
    }
    constexpr Index run = 16;
    for (Index first = 0; first < count; first += run) {
      L part[length(Vectors)];
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) part[v] = L(0);
      // Three or four vectors at a time: enough to fill the units, and they stay in registers.
      for_each_tile<4 / Vectors>(
          std::min(first + run, count),
          [&]<int Keys>(Index key) __attribute__((always_inline)) {
            L weight[length(Keys * Vectors)];
            Scalar* at = scores + key * lanes;
#pragma GCC unroll 16
            for (int i = 0; i < Keys * Vectors; ++i) {
              weight[i] = L::load(at + i * L::size) - shift[i % Vectors];
              if constexpr (binary != 1) weight[i] *= L(binary);
            }
            exp2_nonpositive(weight);
#pragma GCC unroll 16
            for (int i = 0; i < Keys * Vectors; ++i) {
              weight[i].store(at + i * L::size);
              part[i % Vectors] += weight[i];
            }
          },
          first);
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) total[v] += part[v];
    }
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) (faded[v] + total[v]).store(sum + v * L::size);
  }

  /// Takes in one score more, the same for the lanes of a vector. Returns what was accumulated has
  /// to be multiplied by.
  L absorb_score(int v, Scalar score) {
    const Index at = v * L::size;
    const L before = L::load(largest + at);
    const L after = max(before, L(score));
    const L shift = select(after == L(-infinity), L(0), after);
    const L fade = exp2_nonpositive((before - shift) * L(binary));
    const L weight = exp2_nonpositive((L(score) - shift) * L(binary));
    after.store(largest + at);
    fma(fade, L::load(sum + at), weight).store(sum + at);
    return fade;
  }

  /// What turns accumulated values into the output: scale / sum, and 0 for a query without keys.
  L normaliser(int v, Scalar scale) const {
    const L total = L::load(sum + v * L::size);
    return select(total == L(0), L(0), L(scale) / total);
  }

  /// log of the sum over keys of e^score; -infinity for a query without keys.
  L log_sum_exp(int v) const {
    const L total = L::load(sum + v * L::size);
    const L natural = fma(L::load(largest + v * L::size), L(ln_2 * binary), log(total));
    return select(total == L(0), L(-infinity), natural);
  }

 private:
  static constexpr double binary = Unit::binary;
};

/// What one query has summed up over some keys: the largest score, the sum of e^(score - largest),
/// and with these weights the sum of the values.
template <class Scalar, class Unit>
struct QuerySums {
  using L = Lanes<Scalar>;
  static constexpr Scalar infinity = std::numeric_limits<Scalar>::infinity();
  Scalar *largest, *sum, *output;
  Index width;

  static Index size(Index value_width) { return value_width + L::size; }
  QuerySums(Scalar* memory, Index value_width)
      : largest(memory + value_width), sum(largest + 1), output(memory), width(value_width) {}

  void clear() const {
    *largest = -infinity;
    *sum = 0;
    std::fill_n(output, width, Scalar(0));
  }

  /// Takes in count keys and turns their scores, up to a whole vector, into e^(score - largest).
  /// Returns what the accumulated output has to be multiplied by. The online softmax of
  /// OnlineSoftmax, with keys in the lanes.
  EIGEN_DONT_INLINE Scalar absorb(Scalar* scores, Index count) const {
    const Index vectors = (count + L::size - 1) / L::size;
    std::fill(scores + count, scores + vectors * L::size, -infinity);
    L most = L::load(scores);
    for (Index v = 1; v < vectors; ++v) most = max(most, L::load(scores + v * L::size));
    const Scalar fade = raise(largest_lane(most));
    L total(0);
    for (Index v = 0; v < vectors; ++v) {
      const L weight =
          exp2_nonpositive((L::load(scores + v * L::size) - L(shift())) * L(Unit::binary));
      weight.store(scores + v * L::size);
      total += weight;
    }
    *sum = *sum * fade + sum_of_lanes(total);
    return fade;
  }

  /// Takes in one score more. Returns what was accumulated has to be multiplied by.
  Scalar absorb_score(Scalar score) const {
    const Scalar fade = raise(score);
    *sum = *sum * fade + std::exp2((score - shift()) * static_cast<Scalar>(Unit::binary));
    return fade;
  }

  /// Adds sums over other keys. Both are faded to the larger of the two largest scores.
  void merge(const QuerySums& other) const {
    const Scalar mine = raise(*other.largest), theirs = other.raise(*largest);
    *sum = *sum * mine + *other.sum * theirs;
    for (Index c = 0; c < width; ++c) output[c] = output[c] * mine + other.output[c] * theirs;
  }

  Scalar log_sum_exp() const {
    if (*sum == 0) return -infinity;
    return *largest * static_cast<Scalar>(ln_2 * Unit::binary) + std::log(*sum);
  }

 private:
  /// -inf - (-inf) is NaN, so a query that has seen no key subtracts 0.
  Scalar shift() const { return *largest == -infinity ? 0 : *largest; }

  /// Raises `largest` to the score given; returns what was accumulated before has to be multiplied
  /// by.
  Scalar raise(Scalar score) const {
    const Scalar before = *largest;
    *largest = std::max(before, score);
    return std::exp2((before - shift()) * static_cast<Scalar>(Unit::binary));
  }
};

}  // namespace heed::detail
