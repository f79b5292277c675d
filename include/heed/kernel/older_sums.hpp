#pragma once

#include <algorithm>

#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// Sums of many tiles of keys that are set apart, since a chain of additions has a rounding error
/// that grows with its length: older = factor * older + output, and likewise the sums of weights,
/// after which the factor is 1. Laid out as [factor, sum of weights, output...][lane], for `width`
/// features and whole vectors of lanes; with nothing joined before, what is there is not read.
template <class Number>
EIGEN_DONT_INLINE void join_sums(Number* older, const Number* output, const Number* sum,
                                 Index lanes, Index width, bool joined) {
  using L = Lanes<Number>;
  const auto add = [&](Number* to, const Number* from) __attribute__((always_inline)) {
    for (Index lane = 0; lane < lanes; lane += L::size) {
      const L x = L::load(from + lane);
      (joined ? fma(L::load(to + lane), L::load(older + lane), x) : x).store(to + lane);
    }
  };
  add(older + lanes, sum);
  for (Index c = 0; c < width; ++c) add(older + (2 + c) * lanes, output + c * lanes);
  std::fill(older, older + lanes, Number(1));
}

/// The largest score of some lanes may have changed.
template <class Number>
void fade_sums(Number* factor, const Number* correction, Index lanes) {
  using L = Lanes<Number>;
  for (Index lane = 0; lane < lanes; lane += L::size) {
    (L::load(factor + lane) * L::load(correction + lane)).store(factor + lane);
  }
}

}  // namespace heed::detail
