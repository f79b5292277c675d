#pragma once

#include <type_traits>
#include <utility>

#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"
#include "heed/simd/dual.hpp"
#include "heed/simd/lanes.hpp"

namespace heed {

template <class F>
struct ScoreMod : detail::ModifierTag {
  F function;

  explicit ScoreMod(F f) : function(std::move(f)) {}
  template <class Accumulator>
  struct Bound {
    F function;
    Accumulator operator()(const Accumulator& s, Index b, Index h, Index i, Index j) const {
      return Accumulator(function(s, b, h, i, j));
    }
    template <class L>
      requires std::is_invocable_v<const F&, L, Index, Index, L, Index>
    EIGEN_ALWAYS_INLINE L lanes(L s, Index b, Index h, L i, Index j) const {
      return L(function(s, b, h, i, j));
    }

    template <class L>
      requires(detail::is_lanes<L> &&
               std::is_invocable_v<const F&, detail::Dual<L, 1>, Index, Index, L, Index>)
    EIGEN_ALWAYS_INLINE detail::Dual<L, 1> differentiate(L s, Index b, Index h, L i,
                                                         Index j) const {
      using D = detail::Dual<L, 1>;
      return D(function(D::variable(s, 0), b, h, i, j));
    }
    detail::Dual<Accumulator, 1> differentiate(const Accumulator& s, Index b, Index h, Index i,
                                               Index j) const {
      using D = detail::Dual<Accumulator, 1>;
      static_assert(std::is_invocable_v<const F&, D, Index, Index, Index, Index>,
                    "heed: attention_backward differentiates a score_mod by calling it on dual "
                    "numbers: its first parameter must be auto");
      return D(function(D::variable(s, 0), b, h, i, j));
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem&) const {
    return Bound<Accumulator>{function};
  }
};

/// The score that f(score, batch, head, query, key) gives. Where f takes its indices as `Index` it
/// is called for one score at a time; where it takes all its arguments as `auto` it runs on vectors
/// of numbers, as described at pairwise, and `query` is then a vector of whole numbers. It is
/// called from several threads at once where a pool is given, also for pairs that the mask hides.
/// attention_backward wants the score to be `auto`, and runs f on numbers that carry their
/// derivative.
template <class F>
auto score_mod(F f) {
  return ScoreMod<F>(std::move(f));
}

}  // namespace heed
