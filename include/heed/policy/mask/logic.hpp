#pragma once

#include <type_traits>
#include <utility>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/key_set.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

struct Both {
  static auto row(const auto& a, const auto& b) { return intersection(a, b); }
  static bool allows(const auto& a, const auto& b, Index n, Index h, Index i, Index j) {
    return a.allows(n, h, i, j) && b.allows(n, h, i, j);
  }
};
struct Either {
  static auto row(const auto& a, const auto& b) { return set_union(a, b); }
  static bool allows(const auto& a, const auto& b, Index n, Index h, Index i, Index j) {
    return a.allows(n, h, i, j) || b.allows(n, h, i, j);
  }
};

/// Two masks as one, by `How` of Both and Either.
template <class A, class B, class How>
struct CombinedMask : MaskPolicy {
  A a;
  B b;

  CombinedMask(A a_in, B b_in) : a(std::move(a_in)), b(std::move(b_in)) {}
  void for_each_tensor(const auto& visit) const {
    detail::for_each_mask_tensor(a, visit);
    detail::for_each_mask_tensor(b, visit);
  }
  struct Combined {
    detail::BoundMaskOf<A> a;
    detail::BoundMaskOf<B> b;

    Combined(detail::BoundMaskOf<A> a_in, detail::BoundMaskOf<B> b_in)
        : a(std::move(a_in)), b(std::move(b_in)) {}
    auto row(Index n, Index h, Index i) const { return How::row(a.row(n, h, i), b.row(n, h, i)); }
    bool allows(Index n, Index h, Index i, Index j) const { return How::allows(a, b, n, h, i, j); }
  };
  auto bind(const Problem& problem) const {
    return Combined(detail::bind_mask(a, problem), detail::bind_mask(b, problem));
  }
};

template <class A>
struct NotMask : MaskPolicy {
  A a;

  explicit NotMask(A a_in) : a(std::move(a_in)) {}
  void for_each_tensor(const auto& visit) const { detail::for_each_mask_tensor(a, visit); }
  struct Neither {
    detail::BoundMaskOf<A> a;
    Index keys;

    Neither(detail::BoundMaskOf<A> a_in, Index keys_in) : a(std::move(a_in)), keys(keys_in) {}
    auto row(Index n, Index h, Index i) const { return complement(a.row(n, h, i), keys); }
    bool allows(Index n, Index h, Index i, Index j) const { return !a.allows(n, h, i, j); }
  };
  auto bind(const Problem& problem) const {
    return Neither(detail::bind_mask(a, problem), problem.keys);
  }
};

/// Pairs that both masks allow.
template <class A, class B>
  requires(Mask<A> && Mask<B>)
auto operator&&(A a, B b) {
  return CombinedMask<A, B, Both>(std::move(a), std::move(b));
}

/// Pairs that either mask allows.
template <class A, class B>
  requires(Mask<A> && Mask<B>)
auto operator||(A a, B b) {
  return CombinedMask<A, B, Either>(std::move(a), std::move(b));
}

/// Pairs that the mask hides.
template <class A>
  requires(Mask<A>)
auto operator!(A a) {
  return NotMask<A>(std::move(a));
}

}  // namespace heed
