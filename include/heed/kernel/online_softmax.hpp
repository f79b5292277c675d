#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "heed/core/unit.hpp"
#include "heed/kernel/register_tile.hpp"
#include "heed/kernel/stairs.hpp"
#include "heed/simd/math.hpp"

namespace heed::detail {

/// What turns differences of scores, which are at most 0, into weights: e^x within a rounding of 1,
/// as weights meet in sums, and exactly 1 for 0.
template <class Unit, class Scalar, std::size_t N>
EIGEN_ALWAYS_INLINE void weigh(Lanes<Scalar> (&x)[N]) {
  using L = Lanes<Scalar>;
  if constexpr (Unit::binary == 1) {
    exp2_nonpositive(x);
  } else {
    static_assert(Unit::binary == log2_e);
    // x e^x is no more than 0.37, so that 1.3e-8 of x is a tenth of a rounding.
    exp2_of_parts(x, [](L y) __attribute__((always_inline)) {
      return Split<Scalar>::of_natural_nearly(max(y, L(-Split<Scalar>::bias * ln_2)));
    });
  }
}

/// What a score is multiplied by to be in natural units.
template <class Unit>
inline constexpr double natural_unit = Unit::binary == 1 ? ln_2 : 1;

/// The step of OnlineSoftmax for Vectors vectors of queries: count keys, whose largest scores are
/// tile_max.
template <class Unit, int Vectors, class Scalar, class Steps>
EIGEN_DONT_INLINE void absorb_scores(Scalar* scores, Index count, const Scalar* tile_max,
                                     const Steps& steps, Scalar* largest, Scalar* sum,
                                     Scalar* correction) {
  using L = Lanes<Scalar>;
  constexpr Scalar infinity = std::numeric_limits<Scalar>::infinity();
  L shift[length(Vectors)], fade[length(Vectors)], total[length(Vectors)];
#pragma GCC unroll 16
  for (int v = 0; v < Vectors; ++v) {
    const Index at = v * L::size;
    const L before = L::load(largest + at);
    const L after = max(before, L::load(tile_max + at));
    // -inf - (-inf) is NaN, so a query that has seen no key subtracts 0.
    shift[v] = select(after == L(-infinity), L(0), after);
    fade[v] = before - shift[v];
    after.store(largest + at);
    total[v] = L(0);
  }
  weigh<Unit>(fade);
#pragma GCC unroll 16
  for (int v = 0; v < Vectors; ++v) fade[v].store(correction + v * L::size);
  steps.template for_each<Vectors>(
      0, count, [&]<int From>(Index begin, Index end) __attribute__((always_inline)) {
        constexpr int vectors = Vectors - From;
        constexpr Index run = 16;
        for (Index first = begin; first < end; first += run) {
          L part[length(vectors)];
#pragma GCC unroll 16
          for (int v = 0; v < vectors; ++v) part[v] = L(0);
          // Three or four vectors at a time: enough to fill the units, and they stay in
          // registers.
          for_each_tile<4 / vectors>(
              std::min(first + run, end),
              [&]<int Keys>(Index key) __attribute__((always_inline)) {
                L weight[length(Keys * vectors)];
                Scalar* at = scores + key * Vectors * L::size + From * L::size;
#pragma GCC unroll 16
                for (int i = 0; i < Keys * vectors; ++i) {
                  weight[i] = L::load(at + (i / vectors * Vectors + i % vectors) * L::size) -
                              shift[From + i % vectors];
                }
                weigh<Unit>(weight);
#pragma GCC unroll 16
                for (int i = 0; i < Keys * vectors; ++i) {
                  weight[i].store(at + (i / vectors * Vectors + i % vectors) * L::size);
                  part[i % vectors] += weight[i];
                }
              },
              first);
#pragma GCC unroll 16
          for (int v = 0; v < vectors; ++v) total[From + v] += part[v];
        }
      });
#pragma GCC unroll 16
  for (int v = 0; v < Vectors; ++v) {
    const Index at = v * L::size;
    fma(L::load(correction + at), L::load(sum + at), total[v]).store(sum + at);
  }
}

/// Softmax over keys that arrive tile by tile, for up to Widest * L::size queries side by side
/// (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). After each tile
///   sum = sum over keys so far of e^(score - largest),
/// and what was accumulated with the previous `largest` has to be multiplied by `correction`.
/// `Unit` is that of the scores.
///
/// Sums are taken in runs of 16 keys, these in tiles, these over all keys: a chain of n equal
/// additions has a relative error of about sqrt(n / 3) roundings, three short chains of far less.
template <class Scalar, int Widest, class Unit>
struct OnlineSoftmax {
  using L = Lanes<Scalar>;
  static constexpr Index lanes = Widest * L::size;
  static constexpr Scalar infinity = std::numeric_limits<Scalar>::infinity();

  alignas(64) Scalar largest[length(lanes)];
  alignas(64) Scalar sum[length(lanes)];
  alignas(64) Scalar correction[length(lanes)];

  OnlineSoftmax() {
#pragma GCC unroll 16
    for (int v = 0; v < Widest; ++v) {
      L(-infinity).store(largest + v * L::size);
      L(Scalar(0)).store(sum + v * L::size);
    }
  }

  /// Takes in count keys of Vectors vectors of queries, whose largest scores are tile_max, and
  /// turns the scores into e^(score - largest). Scores of -infinity give exactly 0. Keys that do
  /// not count for a vector, see Stairs, are not looked at.
  template <int Vectors = Widest, class Steps = AllVectors>
  void absorb(Scalar* scores, Index count, const Scalar* tile_max, const Steps& steps = {}) {
    absorb_scores<Unit, Vectors>(scores, count, tile_max, steps, largest, sum, correction);
  }

  /// Takes in one score more, the same for the lanes of a vector. Returns what was accumulated has
  /// to be multiplied by.
  L absorb_score(int v, Scalar score) {
    const Index at = v * L::size;
    const L before = L::load(largest + at);
    const L after = max(before, L(score));
    const L shift = select(after == L(-infinity), L(0), after);
    L factors[2] = {before - shift, L(score) - shift};
    weigh<Unit>(factors);
    after.store(largest + at);
    fma(factors[0], L::load(sum + at), factors[1]).store(sum + at);
    return factors[0];
  }

  /// What turns accumulated values into the output: scale / sum, and 0 for a query without keys.
  L normaliser(int v, Scalar scale) const {
    const L total = L::load(sum + v * L::size);
    return select(total == L(0), L(0), L(scale) / total);
  }

  /// log of the sum over keys of e^score; -infinity for a query without keys.
  L log_sum_exp(int v) const {
    const L total = L::load(sum + v * L::size);
    // The logarithm of the total's mantissa, then the parts in order of size: rounded once at the
    // size of the result.
    const Exponent<Scalar> split(total);
    const L small = fma(L::load(largest + v * L::size), L(natural_unit<Unit>), log(split.mantissa));
    return select(total == L(0), L(-infinity), fma(split.exponent, L(ln_2), small));
  }
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
      L weight[1] = {L::load(scores + v * L::size) - L(shift())};
      weigh<Unit>(weight);
      weight[0].store(scores + v * L::size);
      total += weight[0];
    }
    *sum = *sum * fade + sum_of_lanes(total);
    return fade;
  }

  /// Takes in one score more. Returns what was accumulated has to be multiplied by.
  Scalar absorb_score(Scalar score) const {
    const Scalar fade = raise(score);
    *sum = *sum * fade + weight(score - shift());
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
    const double natural = static_cast<double>(*largest) * natural_unit<Unit>;
    return static_cast<Scalar>(natural + std::log(static_cast<double>(*sum)));
  }

 private:
  static Scalar weight(Scalar difference) {
    return Unit::binary == 1 ? std::exp2(difference) : std::exp(difference);
  }

  /// -inf - (-inf) is NaN, so a query that has seen no key subtracts 0.
  Scalar shift() const { return *largest == -infinity ? 0 : *largest; }

  /// Raises `largest` to the score given; returns what was accumulated before has to be multiplied
  /// by.
  Scalar raise(Scalar score) const {
    const Scalar before = *largest;
    if (!(score > before)) return 1;
    *largest = score;
    return weight(before - shift());
  }
};

}  // namespace heed::detail
