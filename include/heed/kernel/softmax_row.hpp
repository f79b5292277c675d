#pragma once

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "heed/simd/convert.hpp"
#include "heed/simd/lanes.hpp"
#include "heed/simd/math.hpp"

namespace heed::detail {

/// to = e^from / sum of e^from over a row, by way of `row`, which has room for as many numbers.
/// `from` may be `row`, and `row` may be `to`. Entries of -infinity get 0; a row of nothing else
/// becomes zeros.
template <class Accumulator, class From, class To>
void softmax_row(const From* from, Accumulator* row, To* to, Index count) {
  using std::exp;
  const Accumulator infinity(std::numeric_limits<double>::infinity()), zero(0.0);
  Accumulator largest = -infinity;
  for (Index j = 0; j < count; ++j) {
    const auto score = static_cast<Accumulator>(from[j]);
    if (score > largest) largest = score;
  }
  const Accumulator shift = largest > -infinity ? largest : zero;
  Accumulator sum = zero;
  for (Index j = 0; j < count; ++j) {
    row[j] = exp(Accumulator(static_cast<Accumulator>(from[j]) - shift));
    sum += row[j];
  }
  const Accumulator factor = sum == zero ? zero : Accumulator(Accumulator(1.0) / sum);
  for (Index j = 0; j < count; ++j) to[j] = static_cast<To>(row[j] * factor);
}

/// A vector of the first `count` numbers, and `rest` in the other lanes.
template <class Accumulator, class From>
EIGEN_ALWAYS_INLINE Lanes<Accumulator> load_some(const From* from, Index count, Accumulator rest) {
  Accumulator lanes[Lanes<Accumulator>::size];
  std::fill(std::begin(lanes), std::end(lanes), rest);
  for (Index lane = 0; lane < count; ++lane) lanes[lane] = static_cast<Accumulator>(from[lane]);
  return Lanes<Accumulator>::load(lanes);
}

template <class Accumulator, class To>
EIGEN_ALWAYS_INLINE void store_some(Lanes<Accumulator> x, To* to, Index count) {
  Accumulator lanes[Lanes<Accumulator>::size];
  x.store(lanes);
  for (Index lane = 0; lane < count; ++lane) to[lane] = static_cast<To>(lanes[lane]);
}

template <Laned Accumulator, class From, class To>
void softmax_row(const From* from, Accumulator* row, To* to, Index count) {
  using L = Lanes<Accumulator>;
  constexpr int vectors = 4;  // side by side, as the exponential and the sum are chains of steps
  constexpr Index stride = vectors * L::size;
  constexpr auto infinity = std::numeric_limits<Accumulator>::infinity();
  const Index whole = count / L::size * L::size;
  const bool edge = whole < count;
  L tail(-infinity);
  if (edge) tail = load_some(from + whole, count - whole, -infinity);

  L most[vectors] = {-infinity, -infinity, -infinity, -infinity};
  Index j = 0;
  for (; j + stride <= count; j += stride) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      most[v] = max(most[v], load_widened<Accumulator>(from + j + v * L::size));
    }
  }
  for (; j < whole; j += L::size) most[0] = max(most[0], load_widened<Accumulator>(from + j));
  most[1] = max(most[1], tail);
  const Accumulator largest = largest_lane(max(max(most[0], most[1]), max(most[2], most[3])));
  const L shift(largest > -infinity ? largest : 0);

  L sums[vectors] = {0, 0, 0, 0};
  const auto exponentials = [&](const auto& parts) __attribute__((always_inline)) {
    const auto of_one = [&](L one) __attribute__((always_inline)) {
      L x[1] = {one};
      exp2_of_parts(x, parts);
      return x[0];
    };
    Index at = 0;
    while (at + stride <= count) {
      // 64 at a time, as a chain of additions has an error that grows with its length.
      L part[vectors] = {0, 0, 0, 0};
      for (const Index end = at + 64 * stride; at < end && at + stride <= count; at += stride) {
        L x[vectors];
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) {
          x[v] = load_widened<Accumulator>(from + at + v * L::size);
        }
        exp2_of_parts(x, parts);
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) {
          x[v].store(row + at + v * L::size);
          part[v] += x[v];
        }
      }
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sums[v] += part[v];
    }
    for (; at < whole; at += L::size) {
      const L x = of_one(load_widened<Accumulator>(from + at));
      x.store(row + at);
      sums[1] += x;
    }
    if (edge) {
      tail = of_one(tail);
      sums[2] += tail;
    }
  };
  // The largest score in binary digits, rounded to a whole number, takes the place of the largest
  // score: no difference is rounded, and the sum takes the factor of up to sqrt(2) back. Without a
  // fused multiply-add, or where the whole number would not be exact, the difference comes first.
  using Parts = Split<Accumulator>;
  constexpr auto digits = static_cast<Accumulator>(log2_e);
  if (fused_multiply_add && std::abs(largest) <= 1024) {
    const Accumulator whole_shift = (largest * digits + Parts::magic) - Parts::magic;
    const L anchor(Parts::magic - whole_shift);
    const L lowest((whole_shift - Parts::bias) * static_cast<Accumulator>(ln_2));
    exponentials([=](L x) __attribute__((always_inline)) {
      return Parts::of_product(max(x, lowest), L(digits), anchor);
    });
  } else {
    const L lowest(-Parts::bias * ln_2);
    exponentials([=](L x) __attribute__((always_inline)) {
      return Parts::of_natural(max(x - shift, lowest));
    });
  }
  const Accumulator sum = sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  const L factor(sum == 0 ? 0 : 1 / sum);
#pragma GCC unroll 4
  for (j = 0; j < whole; j += L::size) store_narrowed(L::load(row + j) * factor, to + j);
  if (edge) store_some(tail * factor, to + whole, count - whole);
}

/// d = p (g - sum of p g) over a row, and 0 where p is 0, whatever g is there.
template <class Scalar>
void softmax_backward_row(const Scalar* p, const Scalar* g, Scalar* d, Index count) {
  const Scalar zero(0.0);
  Scalar sum = zero;
  Index j = 0;
  if constexpr (Laned<Scalar>) {
    using L = Lanes<Scalar>;
    L sums[2] = {0, 0};
    const auto add = [&](L& to, Index at) {
      const L weight = L::load(p + at);
      to += select(weight == L(0), L(0), weight * L::load(g + at));
    };
    for (; j + 2 * L::size <= count; j += 2 * L::size) {
      add(sums[0], j);
      add(sums[1], j + L::size);
    }
    sum = sum_of_lanes(sums[0] + sums[1]);
  }
  for (; j < count; ++j) {
    if (p[j] != zero) sum += p[j] * g[j];
  }
  j = 0;
  if constexpr (Laned<Scalar>) {
    using L = Lanes<Scalar>;
    for (; j + L::size <= count; j += L::size) {
      const L weight = L::load(p + j);
      select(weight == L(0), L(0), weight * (L::load(g + j) - L(sum))).store(d + j);
    }
  }
  for (; j < count; ++j) d[j] = p[j] == zero ? zero : Scalar(p[j] * Scalar(g[j] - sum));
}

}  // namespace heed::detail
