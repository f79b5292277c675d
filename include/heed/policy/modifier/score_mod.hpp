#pragma once

#include <type_traits>
#include <utility>

#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"
#include "heed/simd/dual.hpp"
#include "heed/simd/lanes.hpp"
#include "heed/simd/real_index.hpp"

namespace heed {

template <class F>
struct ScoreMod : ModifierPolicy {
  F function;

  explicit ScoreMod(F f) : function(std::move(f)) {}
  template <class Number>
  struct Bound {
    using Real = detail::RealIndex<Number>;
    /// The function runs on vectors of scores where all its parameters but batch, head and key are
    /// auto.
    static constexpr bool takes_lanes = [] {
      if constexpr (detail::Laned<Number>) {
        using L = detail::Lanes<Number>;
        return std::is_invocable_v<const F&, L, Real, Real, L, Real>;
      } else {
        return false;
      }
    }();
    static constexpr ModifierTraits traits{.vectorised = takes_lanes};
    F function;
    template <class T>
    EIGEN_ALWAYS_INLINE T operator()(const T& s, Real b, Real h, const auto& i, Real j) const {
      static_assert(
          !detail::is_dual<T> ||
              std::is_invocable_v<const F&, T, Real, Real, std::remove_cvref_t<decltype(i)>, Real>,
          "heed: attention_backward differentiates a score_mod by calling it on dual "
          "numbers: its first parameter must be auto");
      return T(function(s, b, h, i, j));
    }
  };
  template <class Number>
  auto bind(const Problem&) const {
    return Bound<Number>{function};
  }
};

/// The score that f(score, batch, head, query, key) gives. Indices take part as real numbers, so
/// that (key - query) / 2 has one meaning, and convert to Index, as for table[head];
/// heed::modulo(key - query, 2) is for remainders. Where f takes its score, query and key as `auto`
/// it runs on vectors of numbers, as described at pairwise, and `query` is then a vector of whole
/// numbers; where it takes them as `Index` it is called for one score at a time. It is called from
/// several threads at once where a pool is given, also for pairs that the mask hides. A score of
/// -infinity stays what it is. attention_backward wants the score to be `auto`, and runs f on
/// numbers that carry their derivative.
template <class F>
auto score_mod(F f) {
  return ScoreMod<F>(std::move(f));
}

}  // namespace heed
