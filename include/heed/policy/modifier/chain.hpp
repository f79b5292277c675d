#pragma once

#include <tuple>
#include <type_traits>
#include <utility>

#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

/// A score and what is done to it, in order.
template <class Base, class... Modifiers>
struct ModifiedScore : ScorePolicy {
  Base base;
  std::tuple<Modifiers...> modifiers;

  ModifiedScore(Base b, std::tuple<Modifiers...> m) : base(std::move(b)), modifiers(std::move(m)) {}
};

/// The score with one more change, applied after those it has.
template <class S, class M>
  requires(Score<S> && Modifier<M>)
auto operator|(S score, M modifier) {
  return ModifiedScore<S, M>(std::move(score), std::tuple<M>(std::move(modifier)));
}
template <class Base, class... Modifiers, class M>
  requires Modifier<M>
auto operator|(ModifiedScore<Base, Modifiers...> score, M modifier) {
  return ModifiedScore<Base, Modifiers..., M>(
      std::move(score.base),
      std::tuple_cat(std::move(score.modifiers), std::tuple<M>(std::move(modifier))));
}

namespace detail {

/// Modifiers want the score itself, in natural units.
template <class Number, class Unit, class Base, class... Modifiers>
auto bind_score(const ModifiedScore<Base, Modifiers...>& score, const Problem& problem) {
  auto similarity = score.base.template bind<Number>(problem);
  return std::apply(
      [&](const auto&... modifier) {
        return BoundScore<NaturalUnit, decltype(similarity),
                          decltype(modifier.template bind<Number>(problem))...>{
            std::move(similarity), {modifier.template bind<Number>(problem)...}};
      },
      score.modifiers);
}

}  // namespace detail
}  // namespace heed
