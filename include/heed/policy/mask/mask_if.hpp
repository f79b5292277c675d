#pragma once

#include <type_traits>
#include <utility>

#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

template <class F>
struct MaskIf : MaskPolicy {
  F predicate;

  explicit MaskIf(F f) : predicate(std::move(f)) {}
  struct Bound {
    F predicate;
    bool allows(Index b, Index h, Index i, Index j) const {
      return static_cast<bool>(predicate(b, h, i, j));
    }
  };
  auto bind(const Problem&) const { return Bound{predicate}; }
};

/// Pairs where f(batch, head, query, key) is true. f is called from several threads at once where
/// a pool is given, and at most for the pairs that the rest of an && lets through.
template <class F>
auto mask_if(F f) {
  static_assert(
      std::is_invocable_r_v<bool, const F&, Index, Index, Index, Index>,
      "heed: mask_if takes a function bool(Index batch, Index head, Index query, Index key)");
  return MaskIf<F>(std::move(f));
}

}  // namespace heed
