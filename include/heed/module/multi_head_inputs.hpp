#pragma once

#include <array>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/module/multi_head_config.hpp"
#include "heed/module/pass.hpp"

namespace heed::detail {

/// Width of all heads of queries, and of keys or values.
inline Index query_width(const MultiHeadConfig& c) { return c.num_heads * c.head_dim; }
inline Index key_width(const MultiHeadConfig& c) { return c.num_kv_heads * c.head_dim; }

/// Refuses an input, (batch, seq, features) or (seq, features), whose own shape does not fit.
template <class X>
void check_input(const char* function, const MultiHeadConfig& config, const char* what, const X& x,
                 Index features) {
  static_assert(rank_of<X> >= 2 && rank_of<X> <= 3,
                "heed: MultiHeadAttention takes (batch, seq, dim) or (seq, dim)");
  check_not_integers<X>();
  check_extents(function, what, view(x).shape);
  if (view(x).shape.back() != features) {
    fail(function, what, " of shape ", view(x).shape, " does not fit a width of ", features,
         " (last axis)");
  }
  const auto wide = as_batch(view(x));
  check_extents(function, "the projection",
                std::array{wide.shape[0], wide.shape[1], query_width(config)});
}

/// Refuses inputs that do not fit the configuration or one another.
template <class Q, class K, class V>
void check_inputs(const char* function, const MultiHeadConfig& config, const Q& q, const K& k,
                  const V& v) {
  static_assert(rank_of<Q> >= 2 && rank_of<Q> <= 3,
                "heed: MultiHeadAttention takes (batch, seq, dim) or (seq, dim)");
  check_extents(function, "query", view(q).shape);
  check_extents(function, "key", view(k).shape);
  check_extents(function, "value", view(v).shape);
  const auto query = as_batch(view(q));
  const auto key = as_batch(view(k));
  const auto value = as_batch(view(v));
  const auto require = [&](bool fits, const char* what, const auto& given, Index needed) {
    if (!fits) {
      fail(function, what, " of shape ", given.shape, " does not fit a width of ", needed,
           " (last axis) and the other inputs; query is ", query.shape, ", key ", key.shape,
           ", value ", value.shape, " (batch, seq, dim)");
    }
  };
  require(query.shape[2] == config.embed_dim, "query", query, config.embed_dim);
  require(key.shape[2] == config.key_dim && key.shape[0] == query.shape[0], "key", key,
          config.key_dim);
  require(value.shape[2] == config.value_dim && value.shape[0] == query.shape[0] &&
              value.shape[1] == key.shape[1],
          "value", value, config.value_dim);
  const auto projected = [&](const char* name, const auto& x, Index features) {
    check_extents(function, name, std::array{x.shape[0], x.shape[1], features});
  };
  projected("the projected query", query, query_width(config));
  projected("the projected key", key, key_width(config));
}

/// Refuses a cache that is not one of `batch` sequences of such heads.
template <class Cache>
void check_cache(const char* function, const MultiHeadConfig& config, const Cache& cache,
                 Index batch) {
  const auto has = cache.extents();
  const std::array<Index, 4> shape{has.batch, has.kv_heads, has.key_dim, has.value_dim};
  const std::array<Index, 4> needed{batch, config.num_kv_heads, config.head_dim, config.head_dim};
  if (shape != needed) {
    fail(function, "the cache has a batch, heads, and widths of keys and values of ", shape,
         ", but the module and its input need ", needed);
  }
}

}  // namespace heed::detail
