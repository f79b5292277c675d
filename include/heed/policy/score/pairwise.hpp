#pragma once

#include <type_traits>
#include <utility>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"
#include "heed/simd/dual.hpp"
#include "heed/simd/lanes.hpp"

namespace heed {

template <class F>
struct Pairwise : ScorePolicy {
  F term;

  explicit Pairwise(F f) : term(std::move(f)) {}

  template <class Number>
  struct Similarity {
    static constexpr ScoreTraits traits{.vectorised = true, .features_alike = true};
    F term;
    Number scale;
    template <class T>
    EIGEN_ALWAYS_INLINE T step(const T& sum, const T& q, const T& k, Index) const {
      static_assert(!detail::is_dual<T> || std::is_invocable_v<const F&, T, T>,
                    "heed: attention_backward differentiates a pairwise score by calling it on "
                    "dual numbers: its parameters must be auto");
      if constexpr (detail::is_lanes<T> && !std::is_invocable_v<const F&, T, T>) {
        return sum + T::map(term, q, k);
      } else {
        return sum + T(term(q, k));
      }
    }
    template <class T>
    EIGEN_ALWAYS_INLINE T finish(const T& sum) const {
      return sum * scale;
    }
  };
  template <class Number, class Unit = NaturalUnit>
  auto bind(const Problem& problem) const {
    check_widths_agree(problem, "a pairwise score");
    return Similarity<Number>{term, Number(Unit::factor)};
  }
};

/// sum over features of f(q_h, k_h). With `auto` parameters f runs on vectors of numbers, with
/// arithmetic, comparisons, heed::select and abs, sqrt, exp, log, tanh, min, max called without a
/// namespace (after `using std::abs;` and the like, as f also runs on plain numbers); with
/// parameters of a number type it runs on one pair at a time. attention_backward wants `auto`: it
/// runs f on numbers that carry their derivatives, which have the same operations.
template <class F>
auto pairwise(F f) {
  return Pairwise<F>(std::move(f));
}

}  // namespace heed
