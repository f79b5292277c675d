#pragma once

#include <cmath>
#include <initializer_list>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/detail/check.hpp"
#include "heed/detail/policy.hpp"
#include "heed/detail/problem.hpp"
#include "heed/tensor.hpp"

namespace heed {

/// A score and what is done to it, in order.
template <class Base, class... Modifiers>
struct ModifiedScore : detail::ScoreTag {
  Base base;
  std::tuple<Modifiers...> modifiers;

  ModifiedScore(Base b, std::tuple<Modifiers...> m) : base(std::move(b)), modifiers(std::move(m)) {}
};

struct Softcap : detail::ModifierTag {
  double cap;

  explicit Softcap(double c) : cap(c) {}
  template <class Accumulator>
  struct Bound {
    Accumulator cap, inverse;
    template <class T>
    EIGEN_ALWAYS_INLINE T apply(const T& s) const {
      using std::tanh;
      return T(cap) * T(tanh(T(s * T(inverse))));
    }
    Accumulator operator()(const Accumulator& s, Index, Index, Index, Index) const {
      return apply(s);
    }
    template <class L>
    EIGEN_ALWAYS_INLINE L lanes(L s, Index, Index, L, Index) const {
      return apply(s);
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem&) const {
    return Bound<Accumulator>{Accumulator(cap), Accumulator(1 / cap)};
  }
};

/// cap * tanh(score / cap): scores stay within the cap (Bello et al., 2016; Gemma 2, 2024).
/// std::invalid_argument unless the cap is positive.
inline Softcap softcap(double cap) {
  if (!(cap > 0)) detail::fail("softcap", "the cap is ", cap);
  return Softcap(cap);
}

template <class Kept>
struct Alibi : detail::ModifierTag {
  Kept slopes;

  explicit Alibi(Kept s) : slopes(std::forward<Kept>(s)) {}
  template <class Accumulator, class Number>
  struct Bound {
    View<const Number, 1> slopes;
    Accumulator operator()(const Accumulator& s, Index, Index h, Index i, Index j) const {
      return s + Accumulator(slopes(h)) * Accumulator(static_cast<double>(j - i));
    }
    template <class L>
    EIGEN_ALWAYS_INLINE L lanes(L s, Index, Index h, L i, Index j) const {
      return fma(L(slopes(h)), L(j) - i, s);
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem& problem) const {
    const auto view = detail::parameter_view(slopes);
    if (view.shape[0] != problem.heads) {
      detail::fail(problem.function, "alibi has ", view.shape[0], " slopes for ", problem.heads,
                   " query heads; the scores are ", problem.score_shape());
    }
    return Bound<Accumulator, typename decltype(view)::Scalar>{view};
  }
};

/// Adds slope_h (j - i) for query i and key j of head h (Press, Smith and Lewis, "Train short, test
/// long", 2022). slopes: one for each query head; they must outlive the modifier unless temporary.
template <class Slopes>
auto alibi(Slopes&& slopes) {
  return Alibi<detail::Kept<Slopes&&>>(std::forward<Slopes>(slopes));
}
inline auto alibi(std::initializer_list<double> slopes) {
  return alibi(std::vector<double>(slopes));
}

template <class Kept>
struct Bias : detail::ModifierTag {
  Kept tensor;

  explicit Bias(Kept t) : tensor(std::forward<Kept>(t)) {}
  template <class Accumulator, class Number>
  struct Bound {
    View<const Number, 4> added;  // an axis that repeats has stride 0
    Accumulator operator()(const Accumulator& s, Index b, Index h, Index i, Index j) const {
      return s + Accumulator(added(b, h, i, j));
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem& problem) const {
    const auto view = detail::broadcast_pairs(problem, "bias", tensor);
    return Bound<Accumulator, typename decltype(view)::Scalar>{view};
  }
};

/// Adds a tensor to the scores. Rank 2 is (queries, keys), 3 adds batch in front, 4 is (batch,
/// heads, queries, keys); an axis of 1 is repeated. It must outlive the modifier unless temporary.
template <class T>
auto bias(T&& tensor) {
  static_assert(
      !std::is_same_v<detail::ScalarOf<std::remove_reference_t<T>>, bool>,
      "heed: bias takes numbers; a tensor of bool (true = may attend) belongs in allow()");
  static_assert(detail::rank_of<std::remove_reference_t<T>> >= 2,
                "heed: bias takes a tensor of rank 2 to 4");
  return Bias<detail::Kept<T&&>>(std::forward<T>(tensor));
}

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
    requires std::is_invocable_v<const F&, L, Index, Index, L, Index> EIGEN_ALWAYS_INLINE L
    lanes(L s, Index b, Index h, L i, Index j)
    const { return L(function(s, b, h, i, j)); }
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
template <class F>
auto score_mod(F f) {
  return ScoreMod<F>(std::move(f));
}

/// The score with one more change, applied after those it has.
template <class S, class M>
requires(detail::Score<S>&& detail::Modifier<M>) auto operator|(S score, M modifier) {
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
