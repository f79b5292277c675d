#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

#include "heed/core/unit.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/key_set.hpp"
#include "heed/policy/parameters.hpp"
#include "heed/policy/problem.hpp"
#include "heed/simd/dual.hpp"
#include "heed/simd/lanes.hpp"
#include "heed/simd/math.hpp"
#include "heed/simd/real_index.hpp"
#include "heed/simd/select.hpp"

/// The contract between policies (scores, modifiers, masks) and engines. A policy is a small value
/// that users write or compose; before a call computes anything it is bound to the extents and the
/// number type of the call, which is where it checks itself. What a bound policy does not say of
/// itself selects the path that is slow and right.
namespace heed {

// ---------------------------------------------------------------- scores

/// What the terms of a score are.
enum class Terms {
  any,           ///< whatever step adds
  product,       ///< q k: step is one multiply-add; the member `query_factor` scales the queries
  weighted_tanh  ///< w tanh(q + k), by the members `weight` (a View of rank 1) and `scale`
};

/// Which parameters a bound score has; `parameters()` gives them as a View, `gradient` the View to
/// which their gradient is added (NoGradient: they are not trained), `parameter_name` their name.
enum class Parameters {
  none,
  per_feature,  ///< `parameter(feature)` is what a feature's term depends on
  shared,       ///< one; `shared_slope(sum)` is the derivative of the score by it
  matrix  ///< `transform` (query_dim, key_dim): the terms are those of q M; terms are products
};

/// Where a derivative comes from.
enum class Derivative {
  automatic,  ///< from running the function on dual numbers
  given,      ///< the policy gives it
  zero        ///< there is none anywhere
};

/// What a bound score says of itself, as `static constexpr ScoreTraits traits`.
struct ScoreTraits {
  /// step and finish run on vectors of numbers as they do on numbers.
  bool vectorised = false;
  /// step does the same for every feature, so that a vector may hold features.
  bool features_alike = false;
  Terms terms = Terms::any;
  Parameters parameters = Parameters::none;
  /// given: `slopes(q, k, w)` with w = parameter(feature), or 0, and `finish_slope(sum)`.
  Derivative derivative = Derivative::automatic;
};

/// Base of every score: finish(sum over features of a term of query and key), by
/// `bind<Number>(problem)`, or `bind<Number, Unit>(problem)` for a score that can be had in another
/// unit than its own. Over a ragged batch, a score and its modifiers are bound once, with the
/// queries and keys of the longest sequences. A bound score has
///
///   T step(T sum, T query, T key, Index feature) const   the sum with one more term
///   T finish(T sum) const                                the score
///
/// where T is Number; vectors of Number, if the traits say so; and dual numbers of these, for
/// automatic derivatives.
struct ScorePolicy {};

template <class T>
concept Score = std::derived_from<std::remove_cvref_t<T>, ScorePolicy>;

/// The derivatives of a feature's term by the query's feature, the key's, and the parameter that
/// belongs to the feature.
template <class T>
struct Slopes {
  T query, key, parameter;
};

// ---------------------------------------------------------------- modifiers

/// How a modifier changes a score.
enum class Effect {
  maps,   ///< to whatever it gives
  shifts  ///< by a number that does not depend on the score, so that the derivative is 1
};

/// What a bound modifier says of itself, as `static constexpr ModifierTraits traits`.
struct ModifierTraits {
  /// Runs on vectors of scores, whose queries are then a vector of whole numbers.
  bool vectorised = false;
  /// Does not look at the pair, so that a vector may hold keys as well.
  bool ignores_pair = false;
  Effect effect = Effect::maps;
  /// Adds the member `added`, a View of (batch, heads, queries, keys).
  bool adds_tensor = false;
  /// Has `parameters()`, `parameter_name` and `gradient`, as a score has (for modifiers that
  /// shift), and with them
  ///   partials()                        how many numbers a piece of work sums up for it
  ///   add_gradient(tile, partial)       adds what the gradients of a tile of scores give, to these
  ///                                     numbers, or, where there are none, to `gradient`
  ///   add_partial(n, sum)               adds number n of all pieces to `gradient`
  ///   shared_axes(problem)              axes along which add_gradient meets the same numbers of
  ///                                     `gradient`: one piece of work at a time goes along these
  bool has_parameters = false;
  /// Leaves scores alone, and has `logit(head)`, a Number that joins the sum of the softmax.
  bool is_sink = false;
};

/// Base of every modifier. `bind<Number>(problem)` gives
///
///   T operator()(T score, batch, head, query, key) const
///
/// where T is Number; vectors of Number, if the traits say so (then with `query` a vector); and
/// dual numbers of these, unless the modifier shifts. Indices take part as real numbers, or convert
/// to Index. A score of -infinity, which has no weight, keeps it.
struct ModifierPolicy {};

template <class T>
concept Modifier = std::derived_from<std::remove_cvref_t<T>, ModifierPolicy>;

/// Gradients by the scores of a tile: `at(key, query)`, counted from the tile's first.
template <class Number>
struct PairTile {
  const Number* data;  // [key][lane]; lanes that are no queries hold 0
  Index lanes;
  Index batch, head, query, queries, key, keys;

  Number at(Index j, Index i) const { return data[j * lanes + i]; }
};

/// Axes of the scores.
struct ScoreAxes {
  bool batch = false, head = false, query = false;
};

// ---------------------------------------------------------------- masks

/// What a bound mask says of itself, as `static constexpr MaskTraits traits`.
struct MaskTraits {
  bool hides_nothing = false;
};

/// Base of every mask. `bind(problem)` gives
///
///   bool allows(Index batch, Index head, Index query, Index key) const
///   KeySet<n> row(Index batch, Index head, Index query) const
///
/// where row is what the query may see at most (all that it may see, if the set is exact) and may
/// be left out: then every pair is asked for. A mask that refers to tensors may say so by
///
///   void for_each_tensor(const auto& visit) const        visit(View, name) for each of them
///
/// so that results which share elements with one are refused. Over a ragged batch, a mask is bound
/// to each sequence, with the sequence's own queries and keys, and `batch` is always the sequence's
/// number; binding may take place in several threads at once.
struct MaskPolicy {};

template <class T>
concept Mask = std::derived_from<std::remove_cvref_t<T>, MaskPolicy>;

namespace detail {

// ---------------------------------------------------------------- what engines ask

template <class T>
inline constexpr ScoreTraits score_traits{};
template <class T>
  requires requires {
    { T::traits } -> std::convertible_to<ScoreTraits>;
  }
inline constexpr ScoreTraits score_traits<T> = T::traits;

template <class T>
inline constexpr ModifierTraits modifier_traits{};
template <class T>
  requires requires {
    { T::traits } -> std::convertible_to<ModifierTraits>;
  }
inline constexpr ModifierTraits modifier_traits<T> = T::traits;

template <class T>
inline constexpr MaskTraits mask_traits{};
template <class T>
  requires requires {
    { T::traits } -> std::convertible_to<MaskTraits>;
  }
inline constexpr MaskTraits mask_traits<T> = T::traits;

template <class T>
inline constexpr bool is_lanes = false;
template <class Number>
inline constexpr bool is_lanes<Lanes<Number>> = true;

template <class T>
EIGEN_ALWAYS_INLINE T multiply_add(const T& a, const T& b, const T& c) {
  return a * b + c;
}
template <class Number>
EIGEN_ALWAYS_INLINE Lanes<Number> multiply_add(Lanes<Number> a, Lanes<Number> b, Lanes<Number> c) {
  return fma(a, b, c);
}

/// The similarity of every matrix product.
template <class Number>
struct Product {
  static constexpr ScoreTraits traits{
      .vectorised = true, .features_alike = true, .terms = Terms::product};
  Number query_factor;
  template <class T>
  EIGEN_ALWAYS_INLINE T step(const T& sum, const T& q, const T& k, Index) const {
    return multiply_add(q, k, sum);
  }
  template <class T>
  EIGEN_ALWAYS_INLINE T finish(const T& sum) const {
    return sum;
  }
};

template <class S>
inline constexpr bool is_product = score_traits<S>.terms == Terms::product;
/// A matrix stands between query and key.
template <class S>
inline constexpr bool transforms = score_traits<S>.parameters == Parameters::matrix;

template <class T>
inline constexpr bool has_parameters =
    score_traits<T>.parameters != Parameters::none || modifier_traits<T>.has_parameters;

/// Whether a bound score or modifier has parameters that are trained.
template <class T>
constexpr bool is_trained() {
  if constexpr (has_parameters<T>) {
    return !std::is_same_v<std::remove_cvref_t<decltype(T::gradient)>, NoGradient>;
  } else {
    return false;
  }
}
template <class T>
inline constexpr bool trained = is_trained<T>();

/// What the features of a query are multiplied by before they meet keys.
template <class Number, class S>
EIGEN_ALWAYS_INLINE Number query_factor(const S& score) {
  if constexpr (is_product<S>) {
    return score.query_factor;
  } else {
    return Number(1.0);
  }
}

/// The parameter of a feature, or 0.
template <class Number, class S>
EIGEN_ALWAYS_INLINE Number feature_parameter(const S& score, Index feature) {
  if constexpr (score_traits<S>.parameters == Parameters::per_feature) {
    return score.parameter(feature);
  } else {
    return Number(0.0);
  }
}

/// A query's features as the score meets them: features[c] for c < key_dim, from raw(c).
template <class Number, class S>
void prepare_query(const S& score, const Problem& problem, const auto& raw, Number* features) {
  for (Index c = 0; c < problem.key_dim; ++c) {
    Number feature(0.0);
    if constexpr (transforms<S>) {
      for (Index r = 0; r < problem.query_dim; ++r) {
        feature += raw(r) * static_cast<Number>(score.transform(r, c));
      }
    } else {
      feature = raw(c);
    }
    features[c] = feature * query_factor<Number>(score);
  }
}

/// The derivatives of the term of feature `first`, or, where T is a vector, of `count` features
/// from there on.
template <class T, class S>
EIGEN_ALWAYS_INLINE Slopes<T> term_slopes(const S& score, const T& q, const T& k,
                                          const T& parameter, Index first, Index count) {
  constexpr ScoreTraits traits = score_traits<S>;
  if constexpr (traits.derivative == Derivative::given) {
    return score.slopes(q, k, parameter);
  } else if constexpr (traits.features_alike || !is_lanes<T>) {
    using D = Dual<T, 2>;
    const D sum(score.step(D(T(0.0)), D::variable(q, 0), D::variable(k, 1), first));
    return {sum.slopes[0], sum.slopes[1], T(0.0)};
  } else {
    using Number = typename T::Scalar;
    alignas(64) Number query[T::size], key[T::size], by_query[T::size] = {}, by_key[T::size] = {};
    q.store(query);
    k.store(key);
    for (Index lane = 0; lane < count; ++lane) {
      const auto one = term_slopes(score, query[lane], key[lane], Number(0), first + lane, 1);
      by_query[lane] = one.query;
      by_key[lane] = one.key;
    }
    return {T::load(by_query), T::load(by_key), T(0.0)};
  }
}

/// The derivative of the score by the sum of its terms.
template <class T, class S>
EIGEN_ALWAYS_INLINE T finish_slope(const S& score, const T& sum) {
  if constexpr (score_traits<S>.derivative == Derivative::given) {
    return score.finish_slope(sum);
  } else {
    return score.finish(Dual<T, 1>::variable(sum, 0)).slopes[0];
  }
}

/// Whether a modifier takes vectors of scores of the queries that lie side by side.
template <class M>
inline constexpr bool on_lanes = modifier_traits<M>.vectorised;

/// -infinity where the score is, else what it is changed to.
template <class Number, class T>
EIGEN_ALWAYS_INLINE T without_weight(const T& score, const T& changed) {
  return heed::select(score == T(Number(-std::numeric_limits<double>::infinity())), score, changed);
}

/// The score, a number, a vector or a dual number, as a modifier changes it. `query` is an Index or
/// a vector of whole numbers.
template <class Number, class M, class T, class I>
EIGEN_ALWAYS_INLINE T modified(const M& modifier, const T& score, Index b, Index h, const I& query,
                               Index j) {
  using Real = RealIndex<Number>;
  const auto change = [&](const auto& i) __attribute__((always_inline)) {
    return T(modifier(score, Real{b}, Real{h}, i, Real{j}));
  };
  const auto changed = [&]() __attribute__((always_inline)) -> T {
    if constexpr (is_lanes<I>) {
      return change(query);
    } else {
      return change(Real{query});
    }
  };
  if constexpr (modifier_traits<M>.effect == Effect::shifts) {
    return changed();
  } else {
    T result = changed();
    // The derivative of a score without weight is never looked at.
    if constexpr (is_dual<T>) {
      result.value = without_weight<Number>(score.value, result.value);
    } else {
      result = without_weight<Number>(score, result);
    }
    return result;
  }
}

/// The same with its derivative by the score.
template <class Number, class M, class T, class I>
EIGEN_ALWAYS_INLINE Dual<T, 1> differentiated(const M& modifier, const T& score, Index b, Index h,
                                              const I& query, Index j) {
  return modified<Number>(modifier, Dual<T, 1>::variable(score, 0), b, h, query, j);
}

/// body(logit) for what joins the softmax's sum beside the keys.
template <class... Modifiers>
EIGEN_ALWAYS_INLINE void for_each_sink(const std::tuple<Modifiers...>& modifiers, Index head,
                                       const auto& body) {
  [[maybe_unused]] const auto one = [&](const auto& modifier) {
    if constexpr (modifier_traits<std::remove_cvref_t<decltype(modifier)>>.is_sink) {
      body(modifier.logit(head));
    }
  };
  std::apply([&](const auto&... modifier) { (one(modifier), ...); }, modifiers);
}

/// A score and its modifiers, bound.
template <class Unit_, class Similarity_, class... Modifiers_>
struct BoundScore {
  using Unit = Unit_;
  using Similarity = Similarity_;
  using Modifiers = std::tuple<Modifiers_...>;
  static constexpr bool modified = sizeof...(Modifiers_) > 0;
  /// All modifiers run on vectors of scores or add a tensor, so that a tile is gone through once.
  static constexpr bool modified_on_lanes =
      ((on_lanes<Modifiers_> || modifier_traits<Modifiers_>.adds_tensor) && ...);
  static constexpr bool trains_modifiers = (trained<Modifiers_> || ...);
  Similarity similarity;
  Modifiers modifiers;
};

/// The score for one call, in the unit wanted where the score can be had in it, else in its own.
template <class Number, class Unit, class S>
auto bind_score(const S& score, const Problem& problem) {
  if constexpr (requires { score.template bind<Number, Unit>(problem); }) {
    auto similarity = score.template bind<Number, Unit>(problem);
    return BoundScore<Unit, decltype(similarity)>{std::move(similarity), {}};
  } else {
    auto similarity = score.template bind<Number>(problem);
    return BoundScore<NaturalUnit, decltype(similarity)>{std::move(similarity), {}};
  }
}

/// Masks that only know the answer for a pair.
template <class Pairs>
struct AskedPairs {
  Pairs pairs;
  Index keys;

  KeySet<1> row(Index, Index, Index) const { return KeySet<1>::of({0, keys}, false); }
  bool allows(Index b, Index h, Index i, Index j) const { return pairs.allows(b, h, i, j); }
};

/// The mask for one call.
template <class M>
auto bind_mask(const M& mask, const Problem& problem) {
  auto bound = mask.bind(problem);
  if constexpr (requires { bound.row(Index(), Index(), Index()); }) {
    return bound;
  } else {
    return AskedPairs<decltype(bound)>{std::move(bound), problem.keys};
  }
}

/// visit(view, name) for the tensors that a mask says it refers to.
void for_each_mask_tensor(const auto& mask, const auto& visit) {
  if constexpr (requires { mask.for_each_tensor(visit); }) mask.for_each_tensor(visit);
}

template <class M>
using BoundMaskOf = decltype(bind_mask(std::declval<const M&>(), std::declval<const Problem&>()));

/// What a bound mask gives for a query.
template <class M>
using KeySetOf = std::remove_cvref_t<decltype(std::declval<const M&>().row(0, 0, 0))>;

}  // namespace detail
}  // namespace heed
