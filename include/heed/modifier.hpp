#pragma once

#include <cmath>
#include <initializer_list>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/detail/policy.hpp"
#include "heed/detail/problem.hpp"

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
    template <class T>
    EIGEN_ALWAYS_INLINE detail::Dual<T, 1> differentiate(const T& s, Index, Index, const auto&,
                                                         Index) const {
      using std::tanh;
      const T t(tanh(T(s * T(inverse))));
      return {T(T(cap) * t), {T(T(Accumulator(1.0)) - T(t * t))}};
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

template <class Kept, class KeptGradient = detail::NoGradient>
struct Alibi : detail::ModifierTag {
  Kept slopes;
  KeptGradient gradient;

  Alibi(Kept s, KeptGradient ds) : slopes(std::forward<Kept>(s)), gradient(ds) {}
  template <class Accumulator, class Number, class Gradient>
  struct Bound {
    static constexpr bool shifts = true;
    static constexpr const char* parameter_name = "the slopes of alibi";
    View<const Number, 1> slopes;
    Gradient gradient;
    const auto& parameters() const { return slopes; }
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
    const auto ds = detail::gradient_view<1>(gradient);
    if (view.shape[0] != problem.heads) {
      detail::fail(problem.function, "alibi has ", view.shape[0], " slopes for ", problem.heads,
                   " query heads; the scores are ", problem.score_shape());
    }
    return Bound<Accumulator, typename decltype(view)::Scalar, std::remove_const_t<decltype(ds)>>{
        view, ds};
  }
};

/// Adds slope_h (j - i) for query i and key j of head h (Press, Smith and Lewis, "Train short, test
/// long", 2022). slopes: one for each query head; they must outlive the modifier unless temporary.
template <class Slopes>
auto alibi(Slopes&& slopes) {
  return Alibi<detail::Kept<Slopes&&>>(std::forward<Slopes>(slopes), {});
}
/// attention_backward adds the gradient of the slopes to dslopes, a vector of their length that
/// outlives the modifier, or a View.
template <class Slopes, class Gradient>
auto alibi(Slopes&& slopes, Gradient&& dslopes) {
  detail::check_gradient_type<Gradient&&>();
  return Alibi<detail::Kept<Slopes&&>, detail::KeptGradient<Gradient&&>>(
      std::forward<Slopes>(slopes), dslopes);
}
inline auto alibi(std::initializer_list<double> slopes) {
  return alibi(std::vector<double>(slopes));
}

template <class Kept, class KeptGradient = detail::NoGradient>
struct Bias : detail::ModifierTag {
  Kept tensor;
  KeptGradient gradient;

  Bias(Kept t, KeptGradient dt) : tensor(std::forward<Kept>(t)), gradient(dt) {}
  template <class Accumulator, class Number, class Gradient>
  struct Bound {
    static constexpr bool shifts = true;
    static constexpr const char* parameter_name = "the tensor of bias";
    View<const Number, 4> added;  // an axis that repeats has stride 0
    Gradient gradient;            // likewise
    const auto& parameters() const { return added; }
    Accumulator operator()(const Accumulator& s, Index b, Index h, Index i, Index j) const {
      return s + Accumulator(added(b, h, i, j));
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem& problem) const {
    const auto view = detail::broadcast_pairs(problem, "bias", tensor);
    using Number = typename decltype(view)::Scalar;
    if constexpr (std::is_same_v<KeptGradient, detail::NoGradient>) {
      return Bound<Accumulator, Number, KeptGradient>{view, {}};
    } else {
      constexpr int rank = detail::rank_of<std::remove_reference_t<Kept>>;
      auto dt = detail::expand<4, 2>(detail::gradient_view<rank>(gradient));
      for (std::size_t axis = 0; axis < 4; ++axis) {
        if (dt.shape[axis] == 1) dt.strides[axis] = 0;
      }
      return Bound<Accumulator, Number, decltype(dt)>{view, dt};
    }
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
  return Bias<detail::Kept<T&&>>(std::forward<T>(tensor), {});
}
/// attention_backward adds the gradient of the tensor to dtensor, of its shape, summed over the
/// axes that are repeated; it outlives the modifier or is a View.
template <class T, class Gradient>
auto bias(T&& tensor, Gradient&& dtensor) {
  detail::check_gradient_type<Gradient&&>();
  static_assert(detail::rank_of<std::remove_reference_t<T>> >= 2,
                "heed: bias takes a tensor of rank 2 to 4");
  return Bias<detail::Kept<T&&>, detail::KeptGradient<Gradient&&>>(std::forward<T>(tensor),
                                                                   dtensor);
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

    template <class L>
    requires(detail::is_lanes<L>&&
                 std::is_invocable_v<const F&, detail::Dual<L, 1>, Index, Index, L, Index>)
        EIGEN_ALWAYS_INLINE detail::Dual<L, 1> differentiate(L s, Index b, Index h, L i, Index j)
    const {
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
