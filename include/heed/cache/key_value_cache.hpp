#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <initializer_list>
#include <limits>
#include <type_traits>
#include <vector>

#include "heed/cache/attention.hpp"
#include "heed/cache/held.hpp"
#include "heed/cache/new_rows.hpp"
#include "heed/cache/row_store.hpp"
#include "heed/core/error.hpp"
#include "heed/core/integers.hpp"
#include "heed/core/key_source.hpp"
#include "heed/core/view.hpp"

namespace heed {

/// A KeyValueCache of `batch` sequences, with key_dim and value_dim features for each of kv_heads.
struct CacheConfig {
  Index batch = 1, kv_heads = 1, key_dim = 0, value_dim = 0;
  /// Tokens that there is room for. With a window, sequences go on for ever; room beyond
  /// sinks + window keeps evicted tokens at hand for truncate.
  Index capacity = 0;
  Index window = 0;  ///< above 0: all but the last `window` tokens are evicted, save the first
  Index sinks = 0;   ///< so many, which are kept (Xiao et al., "Efficient streaming language
                     ///< models with attention sinks", 2024)
};

namespace detail {

/// How much of a sequence a cache has. `lost`: tokens from `sinks` up to there are overwritten.
struct SequenceState {
  Index length = 0, lost = 0;
};

/// Slots of a cache: the sinks, then a ring.
struct CacheSlots {
  Index sinks = 0, window = 0, count = 0;

  Index ring() const { return count - sinks; }
  Index of(Index position) const {
    return position < count ? position : sinks + (position - sinks) % ring();
  }
  HeldTokens held(const SequenceState& state) const {
    const Index evicted = window > 0 ? state.length - window : 0;
    const Index first = std::max({sinks, state.lost, evicted});
    return {state.length, sinks, std::min(first, std::max(state.length, sinks)) - sinks};
  }
};

/// Rows of a cache (batch, heads, slots, dim).
template <class Element_>
struct CacheRows {
  using Element = Element_;
  const RowStore<Element>& rows;
  Index heads;
  CacheSlots slots;
  const SequenceState* states;
  Index most_even;  // a run from the first key on is no longer, so that it says of every sequence
                    // whether all of its keys lie evenly

  Index width() const { return rows.dim(); }
  Run<Element> run(Index b, Index h, Index first, Index most) const {
    const Index position = slots.held(states[b]).position(first);
    const Index slot = slots.of(position);
    // Sinks lie evenly with what follows as long as nothing in between is gone.
    const bool gap = first < slots.sinks && slots.held(states[b]).skipped > 0;
    const Index end = gap ? slots.sinks : slots.count;
    return rows.run((b * heads + h) * slots.count + slot,
                    std::min({most, end - slot, first == 0 ? most_even : most}));
  }
};

}  // namespace detail

/// Keys and values of the tokens so far, as (batch, kv_heads, tokens, dim), for attention of the
/// next ones. All memory is taken at once: append moves nothing and allocates nothing. Element:
/// float, double, Eigen::half, Eigen::bfloat16 or Quantised8; what is appended is rounded to it.
///
///   KeyValueCache<float> cache({.batch = 2, .kv_heads = 8, .key_dim = 64, .value_dim = 64,
///                               .capacity = 4096});
///   cache.append(k, v);
///   const auto out = attention(q, cache, scaled_dot_product(), causal());
///
/// Bad input is std::invalid_argument, and leaves the cache as it was.
template <class Element_>
class KeyValueCache {
 public:
  using Element = Element_;

  explicit KeyValueCache(const CacheConfig& config)
      : config_(config), slots_(check(config)), states_(at(config.batch)) {
    for (auto& state : states_) state.lost = slots_.sinks;
    const Index rows = config.batch * config.kv_heads * slots_.count;
    keys_.assign(rows, config.key_dim);
    values_.assign(rows, config.value_dim);
  }

  /// k (batch, kv_heads, n, key_dim) and v (batch, kv_heads, n, value_dim): n tokens at the end of
  /// every sequence. The axes left out of a tensor of rank 3 or a matrix have extent 1, as in
  /// attention.
  template <class K, class V>
  void append(const K& k, const V& v) {
    const auto rows = detail::rows_of_all(k, v, extents());
    for (Index b = 0; b < config_.batch; ++b) check_room(b, rows.tokens());
    for (Index b = 0; b < config_.batch; ++b) write(b, rows, b);
  }
  /// k (kv_heads, n, key_dim) and v (kv_heads, n, value_dim): n tokens at the end of sequence b.
  template <class K, class V>
  void append(Index b, const K& k, const V& v) {
    const auto rows = detail::rows_of_one(b, k, v, extents());
    check_room(b, rows.tokens());
    write(b, rows, 0);
  }

  /// Tokens of a sequence, with those that are evicted.
  Index length(Index b = 0) const {
    detail::check_sequence("length", b, config_.batch);
    return states_[at(b)].length;
  }

  /// Takes tokens back until n are left. What a window has evicted comes back where it has not been
  /// overwritten, which `capacity` beyond sinks + window prevents for so many tokens.
  void truncate(Index b, Index n) {
    detail::check_sequence("truncate", b, config_.batch);
    auto& state = states_[at(b)];
    detail::check_truncation(b, n, state.length);
    state.length = n;
    state.lost = std::max(slots_.sinks, std::min(state.lost, n));
  }

  /// Sequence b becomes what sequence indices[b] was: beams. One may be taken more than once.
  template <class Indices>
    requires detail::Integers<Indices>
  void reorder(const Indices& indices) {
    const auto order = detail::integer_view(indices);
    static_assert(decltype(order)::Rank == 1, "heed: reorder takes one index for each sequence");
    detail::check_order(order, config_.batch);
    const auto from = [&](Index b) { return static_cast<Index>(order(b)); };
    std::vector<Index> readers(at(config_.batch), 0), free;
    free.reserve(at(config_.batch));
    for (Index b = 0; b < config_.batch; ++b) {
      if (from(b) != b) ++readers[at(from(b))];
    }
    std::vector<bool> done(at(config_.batch), false);
    for (Index b = 0; b < config_.batch; ++b) {
      if (from(b) == b) {
        done[at(b)] = true;
      } else if (readers[at(b)] == 0) {
        free.push_back(b);
      }
    }
    // Nobody waits for what these hold.
    while (!free.empty()) {
      const Index b = free.back(), source = from(b);
      free.pop_back();
      copy(source, b);
      done[at(b)] = true;
      if (--readers[at(source)] == 0 && !done[at(source)]) free.push_back(source);
    }
    // What is left are cycles.
    for (Index first = 0; first < config_.batch; ++first) {
      for (Index b = first; !done[at(b)]; b = from(b)) {
        done[at(b)] = true;
        if (from(b) != first) exchange(b, from(b));
      }
    }
  }
  void reorder(std::initializer_list<Index> indices) { reorder(std::vector<Index>(indices)); }

  /// All sequences become empty.
  void clear() {
    for (auto& state : states_) state = {0, slots_.sinks};
  }
  void clear(Index b) {
    detail::check_sequence("clear", b, config_.batch);
    states_[at(b)] = {0, slots_.sinks};
  }

  const CacheConfig& config() const { return config_; }

  // What attention reads.
  detail::CacheExtents extents() const {
    return {config_.batch, config_.kv_heads, config_.key_dim, config_.value_dim};
  }
  HeldTokens held(Index b) const { return slots_.held(states_[at(b)]); }
  detail::CacheRows<Element> key_rows(Index keys) const { return rows(keys_, keys); }
  detail::CacheRows<Element> value_rows(Index keys) const { return rows(values_, keys); }

 private:
  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }

  static detail::CacheSlots check(const CacheConfig& config) {
    const auto refuse_negative = [](const char* what, Index n) {
      if (n < 0) detail::fail("KeyValueCache", what, " is ", n);
    };
    refuse_negative("capacity", config.capacity);
    refuse_negative("window", config.window);
    refuse_negative("sinks", config.sinks);
    if (config.sinks > 0 && config.window == 0) {
      detail::fail("KeyValueCache", config.sinks, " sinks need a window, which is 0");
    }
    constexpr Index most = std::numeric_limits<Index>::max() / 4;
    if (config.window > most || config.sinks > most) {
      detail::fail("KeyValueCache", "a window of ", config.window, " and ", config.sinks,
                   " sinks are too many");
    }
    const Index slots = std::max(config.capacity, config.window + config.sinks);
    for (const Index dim : {config.key_dim, config.value_dim}) {
      detail::check_extents("KeyValueCache", "the cache (batch, kv_heads, capacity, dim)",
                            std::array<Index, 4>{config.batch, config.kv_heads, slots, dim});
    }
    return {config.sinks, config.window, slots};
  }

  void check_room(Index b, Index tokens) const {
    const Index length = states_[at(b)].length;
    const Index most =
        config_.window > 0 ? std::numeric_limits<Index>::max() / 64 : config_.capacity;
    if (tokens > most - length) {
      detail::fail("append", tokens, " tokens (axis 2) do not fit into sequence ", b,
                   ", which has ", length, " of a capacity of ", most);
    }
  }

  /// Tokens `from_batch` of the rows at the end of sequence b.
  template <class Rows>
  void write(Index b, const Rows& rows, Index from_batch) {
    auto& [length, lost] = states_[at(b)];
    const Index end = length + rows.tokens();
    // Of more tokens than the ring has slots, the last stay.
    const Index first_kept = slots_.window > 0 ? end - slots_.ring() : 0;
    for (Index h = 0; h < config_.kv_heads; ++h) {
      const Index head = (b * config_.kv_heads + h) * slots_.count;
      for (Index t = 0; t < rows.tokens(); ++t) {
        const Index position = length + t;
        if (position >= slots_.sinks && position < first_kept) continue;
        const Index row = head + slots_.of(position);
        keys_.write(row, rows.key, from_batch, h, t);
        values_.write(row, rows.value, from_batch, h, t);
      }
    }
    length = end;
    lost = std::max(lost, first_kept);
  }

  /// body(first row of a head of sequence a, of b, rows): no more slots are in use by so many
  /// tokens.
  template <class Body>
  void for_each_head(Index a, Index b, Index tokens, const Body& body) {
    for (Index h = 0; h < config_.kv_heads; ++h) {
      body((a * config_.kv_heads + h) * slots_.count, (b * config_.kv_heads + h) * slots_.count,
           std::min(tokens, slots_.count));
    }
  }
  void copy(Index from, Index to) {
    for_each_head(from, to, states_[at(from)].length, [this](Index a, Index b, Index count) {
      keys_.copy(a, b, count);
      values_.copy(a, b, count);
    });
    states_[at(to)] = states_[at(from)];
  }
  void exchange(Index first, Index second) {
    for_each_head(first, second, std::max(states_[at(first)].length, states_[at(second)].length),
                  [this](Index a, Index b, Index count) {
                    keys_.exchange(a, b, count);
                    values_.exchange(a, b, count);
                  });
    std::swap(states_[at(first)], states_[at(second)]);
  }

  detail::CacheRows<Element> rows(const detail::RowStore<Element>& store, Index keys) const {
    Index most_even = std::numeric_limits<Index>::max();
    for (Index b = 0; b < config_.batch; ++b) {
      // Also where a sequence has fewer keys than the longest: all so many are asked for.
      const HeldTokens tokens = held(b);
      if (tokens.skipped > 0) most_even = std::max<Index>(1, keys - 1);
    }
    return {store, config_.kv_heads, slots_, states_.data(), most_even};
  }

  CacheConfig config_;
  detail::CacheSlots slots_;
  std::vector<detail::SequenceState> states_;
  detail::RowStore<Element> keys_, values_;
};

}  // namespace heed
