#pragma once

#include <type_traits>
#include <utility>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/key_set.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

namespace detail {

/// Masks that only know the answer for a pair.
template <class Allows>
struct BoundPairs : BoundMaskTag {
  Index keys;
  Allows predicate;

  BoundPairs(Index keys_in, Allows p) : keys(keys_in), predicate(std::move(p)) {}
  KeySet<1> row(Index, Index, Index) const { return KeySet<1>::of({0, keys}, false); }
  bool allows(Index b, Index h, Index i, Index j) const { return predicate(b, h, i, j); }
};

}  // namespace detail

template <class F>
struct MaskIf : detail::MaskTag {
  F predicate;

  explicit MaskIf(F f) : predicate(std::move(f)) {}
  auto bind(const detail::Problem& problem) const {
    return detail::BoundPairs(problem.keys, [f = predicate](Index b, Index h, Index i, Index j) {
      return static_cast<bool>(f(b, h, i, j));
    });
  }
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
