#pragma once

#include <algorithm>

#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// Keys of a tile, of which those from ends[v] on count for vectors of queries after v alone. Under
/// a causal mask these are the steps of the diagonal.
struct Stairs {
  const Index* ends;

  /// Calls body.template operator()<From>(begin, end) for runs that cover keys first .. last-1, as
  /// far as they count for any of `Vectors` vectors: those of a run do for vectors From and up.
  template <int Vectors, int From = 0>
  EIGEN_ALWAYS_INLINE void for_each(Index first, Index last, const auto& body) const {
    if constexpr (From < Vectors) {
      const Index end = std::min(last, ends[From]);
      if (first < end) body.template operator()<From>(first, end);
      for_each<Vectors, From + 1>(std::max(first, end), last, body);
    }
  }
};

/// Keys of which all count for all vectors.
struct AllVectors {
  template <int Vectors>
  EIGEN_ALWAYS_INLINE void for_each(Index first, Index last, const auto& body) const {
    if (first < last) body.template operator()<0>(first, last);
  }
};

}  // namespace heed::detail
