#pragma once

#include <type_traits>
#include <utility>

#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

template <class Kept>
struct Allow : MaskPolicy {
  Kept allowed;

  explicit Allow(Kept kept) : allowed(std::forward<Kept>(kept)) {}
  void for_each_tensor(const auto& visit) const { visit(view(allowed), "the tensor of allow"); }
  struct Bound {
    View<const bool, 4> allowed;
    bool allows(Index b, Index h, Index i, Index j) const { return allowed(b, h, i, j); }
  };
  auto bind(const Problem& problem) const {
    return Bound{broadcast_pairs(problem, "allow", allowed)};
  }
};

/// Pairs where the tensor of bool is true. Rank 2 is (queries, keys), 3 adds batch in front, 4 is
/// (batch, heads, queries, keys); an axis of 1 is repeated. It must outlive the mask unless it is a
/// temporary.
template <class T>
auto allow(T&& allowed) {
  static_assert(std::is_same_v<detail::ScalarOf<std::remove_reference_t<T>>, bool>,
                "heed: allow takes a tensor of bool (true = may attend); numbers belong in bias");
  static_assert(detail::rank_of<std::remove_reference_t<T>> >= 2,
                "heed: allow takes a tensor of rank 2 to 4");
  return Allow<detail::Kept<T&&>>(std::forward<T>(allowed));
}

}  // namespace heed
