#pragma once

#include <algorithm>
#include <concepts>

#include "heed/core/view.hpp"

namespace heed::detail {

/// A cache of keys and values (heed/cache.hpp).
template <class T>
concept TokenCache = requires(const T& cache, Index b) {
  typename T::Element;
  cache.extents();
  { cache.held(b).length } -> std::convertible_to<Index>;
};

/// How many tokens a cache holds of a sequence before it evicts the first; 0: it evicts none.
template <class Cache>
Index tokens_before_eviction(const Cache& cache) {
  if constexpr (requires { cache.config().window; }) {
    const auto& config = cache.config();
    return config.window > 0 ? config.window + config.sinks : 0;
  } else {
    return 0;
  }
}

/// The positions (batch, n) of the tokens that come next; returns the length of the longest
/// sequence.
template <class Cache>
Index fill_positions(const Cache& cache, const View<Index, 2>& positions) {
  Index longest = 0;
  for (Index b = 0; b < positions.shape[0]; ++b) {
    const Index length = cache.held(b).length;
    longest = std::max(longest, length);
    for (Index i = 0; i < positions.shape[1]; ++i) positions(b, i) = length + i;
  }
  return longest;
}

}  // namespace heed::detail
