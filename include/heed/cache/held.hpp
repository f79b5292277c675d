#pragma once

#include <algorithm>
#include <concepts>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/core/key_source.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/key_set.hpp"
#include "heed/policy/problem.hpp"
#include "heed/simd/real_index.hpp"

namespace heed {

/// What a cache holds of a sequence of `length` tokens: positions 0 .. sinks-1 and
/// sinks+skipped .. length-1. These are the keys that an engine sees, counted without a gap; masks
/// and modifiers go by the position.
struct HeldTokens {
  Index length = 0, sinks = 0, skipped = 0;

  Index count() const { return length - skipped; }
  Index position(Index key) const { return key < sinks ? key : key + skipped; }
  /// How many held tokens stand before a position.
  Index before(Index position) const {
    return position <= sinks ? position : std::max(sinks, position - skipped);
  }
};

namespace detail {

/// The extents of a cache.
struct CacheExtents {
  Index batch, kv_heads, key_dim, value_dim;
};

/// Keys and values that attention can read: held(b) says which tokens of a sequence there are,
/// key_rows(keys) and value_rows(keys) are key sources of so many of them, the most that any
/// sequence holds.
template <class T>
concept KeyValueStore = requires(const T& cache, Index n) {
  typename T::Element;
  { cache.extents() } -> std::same_as<CacheExtents>;
  { cache.held(n) } -> std::same_as<HeldTokens>;
  { cache.key_rows(n) } -> KeySource;
  { cache.value_rows(n) } -> KeySource;
};

/// A vector whose memory the thread keeps for the next one of its type.
template <class T>
class Recycled {
 public:
  Recycled() : items_(std::move(kept())) { items_.clear(); }
  ~Recycled() {
    items_.clear();
    if (items_.capacity() > kept().capacity()) kept() = std::move(items_);
  }
  Recycled(const Recycled&) = delete;
  Recycled& operator=(const Recycled&) = delete;

  std::vector<T>& operator*() { return items_; }
  const std::vector<T>& operator*() const { return items_; }

 private:
  static std::vector<T>& kept() {
    static thread_local std::vector<T> items;
    return items;
  }
  std::vector<T> items_;
};

/// The user's mask over what each sequence holds: bound to the length of the sequence, so that the
/// last query stands at its end, and asked by position.
template <class M>
class HeldMask {
  using Bound = BoundMaskOf<M>;
  struct Sequence {
    HeldTokens held;
    std::size_t mask;
  };

 public:
  /// `problem` is the call over whole sequences, with the longest's keys: a tensor over positions
  /// has as many, and those behind the end of a shorter one are not asked for. Neighbours of one
  /// length share a bound mask.
  template <class Cache>
  HeldMask(const M& mask, const Cache& cache, const Problem& problem) {
    (*sequences_).reserve(static_cast<std::size_t>(problem.batch));
    (*masks_).reserve(static_cast<std::size_t>(problem.batch));
    Problem own = problem;
    for (Index b = 0; b < problem.batch; ++b) {
      const HeldTokens held = cache.held(b);
      if (b == 0 || held.length != own.keys) {
        own.keys = held.length;
        own.ragged = held.length < problem.keys;
        (*masks_).push_back(bind_mask(mask, own));
      }
      (*sequences_).push_back({held, (*masks_).size() - 1});
    }
  }

  auto row(Index b, Index h, Index i) const {
    const auto& [held, mask] = (*sequences_)[static_cast<std::size_t>(b)];
    const auto seen = (*masks_)[mask].row(b, h, i);
    std::remove_const_t<decltype(seen)> keys;
    keys.exact = seen.exact;
    for (int n = 0; n < seen.count; ++n) {
      keys.append({held.before(seen[n].begin), held.before(std::min(seen[n].end, held.length))});
    }
    return keys;
  }
  bool allows(Index b, Index h, Index i, Index key) const {
    const auto& [held, mask] = (*sequences_)[static_cast<std::size_t>(b)];
    return key < held.count() && (*masks_)[mask].allows(b, h, i, held.position(key));
  }
  const HeldTokens& held(Index b) const { return (*sequences_)[static_cast<std::size_t>(b)].held; }

 private:
  Recycled<Sequence> sequences_;
  Recycled<Bound> masks_;
};

/// A modifier that looks at the key, given the position of a held one.
template <class Number, class Modifier, class Mask>
struct ByPosition {
  static constexpr ModifierTraits traits{.vectorised = modifier_traits<Modifier>.vectorised,
                                         .effect = modifier_traits<Modifier>.effect,
                                         .is_sink = modifier_traits<Modifier>.is_sink};
  const Modifier& modifier;
  const Mask& mask;

  Number logit(Index head) const
    requires(modifier_traits<Modifier>.is_sink)
  {
    return modifier.logit(head);
  }

  template <class T>
  EIGEN_ALWAYS_INLINE T operator()(const T& score, Index b, Index h, const auto& i, Index j) const {
    using Real = RealIndex<Number>;
    return T(modifier(score, Real{b}, Real{h}, i, Real{mask.held(b).position(j)}));
  }
};

/// body(score) with a score that goes by positions where its modifiers do.
template <class Number, class Mask, class Body, class Unit, class Similarity, class... Modifiers>
void by_position(const BoundScore<Unit, Similarity, Modifiers...>& score, const Mask& mask,
                 const Body& body) {
  if constexpr ((modifier_traits<Modifiers>.ignores_pair && ...)) {
    body(score);
  } else {
    std::apply(
        [&](const auto&... modifier) {
          body(BoundScore<Unit, Similarity, ByPosition<Number, Modifiers, Mask>...>{
              score.similarity, {ByPosition<Number, Modifiers, Mask>{modifier, mask}...}});
        },
        score.modifiers);
  }
}

}  // namespace detail
}  // namespace heed
