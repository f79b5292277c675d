#pragma once

#include <tuple>
#include <type_traits>
#include <utility>

#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

/// A score and what is done to it, in order.
template <class Base, class... Modifiers>
struct ModifiedScore : detail::ScoreTag {
  Base base;
  std::tuple<Modifiers...> modifiers;

  ModifiedScore(Base b, std::tuple<Modifiers...> m) : base(std::move(b)), modifiers(std::move(m)) {}
};

/// The score with one more change, applied after those it has.
template <class S, class M>
  requires(detail::Score<S> && detail::Modifier<M>)
auto operator|(S score, M modifier) {
  return ModifiedScore<S, M>(std::move(score), std::tuple<M>(std::move(modifier)));
}
template <class Base, class... Modifiers, class M>
  requires detail::Modifier<M>
auto operator|(ModifiedScore<Base, Modifiers...> score, M modifier) {
  return ModifiedScore<Base, Modifiers..., M>(
      std::move(score.base),
      std::tuple_cat(std::move(score.modifiers), std::tuple<M>(std::move(modifier))));
}

namespace detail {

template <class Similarity_, class... Modifiers>
struct BoundScore {
  using Similarity = Similarity_;
  static constexpr bool modified = sizeof...(Modifiers) > 0;
  Similarity similarity;
  std::tuple<Modifiers...> modifiers;
};

/// The score for one problem. The similarity gives scores times `unit`, unless there are modifiers,
/// which want the score itself.
template <class Accumulator, class S>
auto bind_score(const S& score, const Problem& problem, double unit) {
  const auto similarity = score.template bind<Accumulator>(problem, unit);
  return BoundScore<std::remove_const_t<decltype(similarity)>>{similarity, {}};
}
template <class Accumulator, class Base, class... Modifiers>
auto bind_score(const ModifiedScore<Base, Modifiers...>& score, const Problem& problem, double) {
  const auto similarity = score.base.template bind<Accumulator>(problem, 1.0);
  return std::apply(
      [&](const auto&... modifier) {
        return BoundScore<std::remove_const_t<decltype(similarity)>,
                          decltype(modifier.template bind<Accumulator>(problem))...>{
            similarity, {modifier.template bind<Accumulator>(problem)...}};
      },
      score.modifiers);
}

}  // namespace detail

}  // namespace heed
