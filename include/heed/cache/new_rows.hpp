#pragma once

#include <array>
#include <cstddef>
#include <utility>

#include "heed/cache/held.hpp"
#include "heed/core/error.hpp"
#include "heed/core/view.hpp"

namespace heed::detail {

/// Keys and values on their way into a cache, as (batch, kv_heads, tokens, dim), checked against
/// it.
template <class Key, class Value>
struct NewRows {
  View<const Key, 4> key;
  View<const Value, 4> value;

  Index tokens() const { return key.shape[2]; }
};

/// `batch` is that of the cache, or 1 for a single sequence of it.
template <class Key, class Value>
NewRows<Key, Value> check_new_rows(const char* function, const View<const Key, 4>& key,
                                   const View<const Value, 4>& value, Index batch,
                                   const CacheExtents& cache) {
  const auto check = [&](const char* name, const auto& rows, Index dim) {
    check_extents(function, name, rows.shape);
    const std::array<Index, 4> expected{batch, cache.kv_heads, rows.shape[2], dim};
    constexpr std::array<const char*, 4> axes{"batch", "heads", "tokens", "width"};
    for (std::size_t axis = 0; axis < 4; ++axis) {
      if (rows.shape[axis] != expected[axis]) {
        fail(function, name, " and the cache differ in ", axes[axis], " (axis ",
             static_cast<Index>(axis), " of batch, heads, tokens, width): ", rows.shape[axis],
             " and ", expected[axis], "; ", name, " is ", rows.shape);
      }
    }
  };
  check("key", key, cache.key_dim);
  check("value", value, cache.value_dim);
  if (key.shape[2] != value.shape[2]) {
    fail(function, "key and value differ in tokens (axis 2): ", key.shape[2], " and ",
         value.shape[2], "; key is ", key.shape, ", value is ", value.shape);
  }
  return {key, value};
}

/// (batch, kv_heads, tokens, dim) of what is appended to every sequence.
template <class K, class V>
auto rows_of_all(const K& k, const V& v, const CacheExtents& cache) {
  check_not_integers<K, V>();
  return check_new_rows<ScalarOf<K>, ScalarOf<V>>("append", rank4(k), rank4(v), cache.batch, cache);
}

/// The same of (kv_heads, tokens, dim), or (tokens, dim) for one head, for sequence b.
template <class K, class V>
auto rows_of_one(Index b, const K& k, const V& v, const CacheExtents& cache) {
  static_assert(rank_of<K> <= 3 && rank_of<V> <= 3,
                "heed: keys and values of one sequence are (kv_heads, tokens, dim)");
  check_not_integers<K, V>();
  if (b < 0 || b >= cache.batch) {
    fail("append", "there is no sequence ", b, " in a cache of batch ", cache.batch);
  }
  const auto one = [](const auto& x) { return expand<4, 3>(expand<3, 2>(view(x))); };
  return check_new_rows<ScalarOf<K>, ScalarOf<V>>("append", one(k), one(v), 1, cache);
}

/// Refuses a sequence that is not there, or a length that it does not have.
inline void check_sequence(const char* function, Index b, Index batch) {
  if (b < 0 || b >= batch) {
    fail(function, "there is no sequence ", b, " in a cache of batch ", batch);
  }
}
inline void check_truncation(Index b, Index n, Index length) {
  if (n < 0 || n > length) {
    fail("truncate", "sequence ", b, " has ", length, " tokens and cannot keep ", n);
  }
}

/// Refuses an order that is not one old sequence for every new one.
template <class Integer>
void check_order(const View<const Integer, 1>& order, Index batch) {
  if (order.shape[0] != batch) {
    fail("reorder", order.shape[0], " indices (axis 0) for a cache of batch ", batch);
  }
  for (Index b = 0; b < batch; ++b) {
    if (std::cmp_less(order(b), 0) || std::cmp_greater_equal(order(b), batch)) {
      fail("reorder", "index ", b, " is ", static_cast<Index>(order(b)),
           ", but the cache has a batch of ", batch);
    }
  }
}

}  // namespace heed::detail
