#pragma once

#include <cmath>
#include <concepts>
#include <cstddef>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/detail/check.hpp"
#include "heed/detail/math.hpp"
#include "heed/detail/problem.hpp"
#include "heed/tensor.hpp"

namespace heed {
namespace detail {

/// Base of every score. `bind<Accumulator>(problem, unit)` checks that the score fits the shapes
/// and gives a similarity whose values are the scores times unit:
///   query_factor          what a query's features are multiplied by beforehand
///   step(sum, q, k, h)    sum with feature h of a query and a key added; T is a number or Lanes
///   finish(sum)           the score
///   one_instruction       whether a step is a single multiply-add
/// A similarity may also have `transform`, a matrix M (query_dim, key_dim): then q stands for q M.
struct ScoreTag {};
/// Base of what changes a score. `bind<Accumulator>(problem)` gives a function of
/// (score, batch, head, query, key), and may give `lanes`, the same on Lanes of queries.
struct ModifierTag {};

template <class T>
concept Score = std::derived_from<std::remove_cvref_t<T>, ScoreTag>;
template <class T>
concept Modifier = std::derived_from<std::remove_cvref_t<T>, ModifierTag>;

/// A vector of parameters: std::vector, Eigen vector or tensor of rank 1.
template <class T>
auto parameter_view(const T& kept) {
  if constexpr (EigenDense<T>) {
    static_assert(T::IsVectorAtCompileTime, "heed: expected a vector");
    using Number = typename T::Scalar;
    return View<const Number, 1>{kept.data(), {kept.size()}, {kept.innerStride()}};
  } else if constexpr (EigenTensorLike<T> || is_view<T>) {
    using Number = typename decltype(view(kept))::Scalar;
    return View<const Number, 1>(view(kept));
  } else {
    using Number = typename T::value_type;
    return View<const Number, 1>{kept.data(), {static_cast<Index>(kept.size())}, {1}};
  }
}

template <class T>
EIGEN_ALWAYS_INLINE T multiply_add(const T& a, const T& b, const T& c) {
  return a * b + c;
}
template <class Scalar>
EIGEN_ALWAYS_INLINE Lanes<Scalar> multiply_add(Lanes<Scalar> a, Lanes<Scalar> b, Lanes<Scalar> c) {
  return fma(a, b, c);
}

template <class T>
inline constexpr bool is_lanes = false;
template <class Scalar>
inline constexpr bool is_lanes<Lanes<Scalar>> = true;

inline void check_widths_agree(const Problem& problem, const char* score) {
  if (problem.query_dim != problem.key_dim) {
    fail(problem.function, score, " needs queries and keys of one width, got ", problem.query_dim,
         " and ", problem.key_dim, " features (last axis)");
  }
}

}  // namespace detail

/// scale * q . k
struct DotProduct : detail::ScoreTag {
  std::optional<double> scale;  // none: 1 / sqrt(dim)

  explicit DotProduct(std::optional<double> s) : scale(s) {}

  template <class Accumulator>
  struct Similarity {
    static constexpr bool one_instruction = true;
    Accumulator query_factor;
    template <class T>
    EIGEN_ALWAYS_INLINE T step(const T& sum, const T& q, const T& k, Index) const {
      return detail::multiply_add(q, k, sum);
    }
    template <class T>
    EIGEN_ALWAYS_INLINE T finish(const T& sum) const {
      return sum;
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem& problem, double unit) const {
    detail::check_widths_agree(problem, "the dot product");
    const double by_width =
        problem.key_dim == 0 ? 1 : 1 / std::sqrt(static_cast<double>(problem.key_dim));
    return Similarity<Accumulator>{Accumulator(scale.value_or(by_width) * unit)};
  }
};

/// scale * q . k, for a scale of any sign.
inline DotProduct dot_product(double scale = 1) { return DotProduct(scale); }
/// q . k / sqrt(dim) (Vaswani et al., "Attention is all you need", 2017).
inline DotProduct scaled_dot_product() { return DotProduct(std::nullopt); }
inline DotProduct scaled_dot_product(double scale) { return DotProduct(scale); }

template <class Kept>
struct Additive : detail::ScoreTag {
  Kept weight;

  explicit Additive(Kept w) : weight(std::forward<Kept>(w)) {}

  template <class Accumulator, class Number>
  struct Similarity {
    static constexpr bool one_instruction = false;
    Accumulator query_factor, unit;
    View<const Number, 1> weight;
    template <class T>
    EIGEN_ALWAYS_INLINE T step(const T& sum, const T& q, const T& k, Index h) const {
      using std::tanh;
      const T both = q + k;
      return detail::multiply_add<Accumulator>(T(Accumulator(weight(h))), T(tanh(both)), sum);
    }
    template <class T>
    EIGEN_ALWAYS_INLINE T finish(const T& sum) const {
      return sum * T(unit);
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem& problem, double unit) const {
    const auto w = detail::parameter_view(weight);
    detail::check_widths_agree(problem, "the additive score");
    if (w.shape[0] != problem.key_dim) {
      detail::fail(problem.function, "the additive score has ", w.shape[0],
                   " weights for a width of ", problem.key_dim, " (last axis of query and key)");
    }
    return Similarity<Accumulator, typename decltype(w)::Scalar>{Accumulator(1.0),
                                                                 Accumulator(unit), w};
  }
};

/// sum over features of w_h tanh(q_h + k_h), for queries and keys that are projected already
/// (Bahdanau, Cho and Bengio, "Neural machine translation by jointly learning to align and
/// translate", 2015). w: vector of their width; it must outlive the score unless it is a temporary.
template <class Weight>
auto additive(Weight&& w) {
  return Additive<detail::Kept<Weight&&>>(std::forward<Weight>(w));
}

/// Gaussian of one width.
template <class Width>
struct Gaussian : detail::ScoreTag {
  Width width;

  explicit Gaussian(Width w) : width(std::move(w)) {}

  template <class Accumulator>
  struct Similarity {
    static constexpr bool one_instruction = false;
    Accumulator query_factor, coefficient;
    template <class T>
    EIGEN_ALWAYS_INLINE T step(const T& sum, const T& q, const T& k, Index) const {
      const T difference = q - k;
      return detail::multiply_add(difference, difference, sum);
    }
    template <class T>
    EIGEN_ALWAYS_INLINE T finish(const T& sum) const {
      return sum * T(coefficient);
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem& problem, double unit) const {
    detail::check_widths_agree(problem, "the gaussian score");
    const auto w = static_cast<Accumulator>(width);
    return Similarity<Accumulator>{Accumulator(1.0), Accumulator(w * w * Accumulator(-0.5 * unit))};
  }
};

/// Gaussian with a width for each feature.
template <class Kept>
struct GaussianByFeature : detail::ScoreTag {
  Kept width;

  explicit GaussianByFeature(Kept w) : width(std::forward<Kept>(w)) {}

  template <class Accumulator, class Number>
  struct Similarity {
    static constexpr bool one_instruction = false;
    Accumulator query_factor, coefficient;
    View<const Number, 1> width;
    template <class T>
    EIGEN_ALWAYS_INLINE T step(const T& sum, const T& q, const T& k, Index h) const {
      const T difference = (q - k) * T(Accumulator(width(h)));
      return detail::multiply_add(difference, difference, sum);
    }
    template <class T>
    EIGEN_ALWAYS_INLINE T finish(const T& sum) const {
      return sum * T(coefficient);
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem& problem, double unit) const {
    const auto w = detail::parameter_view(width);
    detail::check_widths_agree(problem, "the gaussian score");
    if (w.shape[0] != problem.key_dim) {
      detail::fail(problem.function, "the gaussian score has ", w.shape[0], " widths for ",
                   problem.key_dim, " features (last axis of query and key)");
    }
    return Similarity<Accumulator, typename decltype(w)::Scalar>{Accumulator(1.0),
                                                                 Accumulator(-0.5 * unit), w};
  }
};

/// -|(q - k) width|^2 / 2, so that attention is the kernel regression of Nadaraya (1964) and Watson
/// (1964). width: one number, or a vector with one for each feature (which must outlive the score
/// unless it is a temporary).
template <class Width = double>
auto gaussian(Width&& width = 1.0) {
  using Plain = std::remove_cvref_t<Width>;
  if constexpr (std::is_arithmetic_v<Plain>) {
    return Gaussian<double>(static_cast<double>(width));
  } else if constexpr (requires { detail::parameter_view(width); }) {
    return GaussianByFeature<detail::Kept<Width&&>>(std::forward<Width>(width));
  } else {
    return Gaussian<Plain>(width);
  }
}

namespace detail {

/// Scores of the distance |q - k|: the squares are summed, `Finish` has the rest.
template <class Accumulator, class Finish>
struct DistanceSimilarity {
  static constexpr bool one_instruction = false;
  Accumulator query_factor;
  Finish finisher;
  template <class T>
  EIGEN_ALWAYS_INLINE T step(const T& sum, const T& q, const T& k, Index) const {
    const T difference = q - k;
    return multiply_add(difference, difference, sum);
  }
  template <class T>
  EIGEN_ALWAYS_INLINE T finish(const T& sum) const {
    return finisher(sum);
  }
};

}  // namespace detail

/// 0 within the radius, else no weight.
struct Boxcar : detail::ScoreTag {
  double radius;

  explicit Boxcar(double r) : radius(r) {}
  template <class Accumulator>
  auto bind(const detail::Problem& problem, double) const {
    detail::check_widths_agree(problem, "the boxcar score");
    const auto r = static_cast<Accumulator>(radius);
    const auto finish = [limit = Accumulator(r * r)](const auto& squares) {
      using T = std::remove_cvref_t<decltype(squares)>;
      return heed::select(squares <= T(limit), T(Accumulator(0.0)),
                          T(Accumulator(-std::numeric_limits<double>::infinity())));
    };
    return detail::DistanceSimilarity<Accumulator, decltype(finish)>{Accumulator(1.0), finish};
  }
};

/// 0 where |q - k| <= radius, else -infinity; std::invalid_argument unless radius >= 0.
inline Boxcar boxcar(double radius = 1) {
  if (!(radius >= 0)) detail::fail("boxcar", "the radius is ", radius);
  return Boxcar(radius);
}

/// log(1 - |q - k| / radius) within the radius, else no weight.
struct Triangular : detail::ScoreTag {
  double radius;

  explicit Triangular(double r) : radius(r) {}
  template <class Accumulator>
  auto bind(const detail::Problem& problem, double unit) const {
    detail::check_widths_agree(problem, "the triangular score");
    const auto finish = [r = Accumulator(radius), u = Accumulator(unit)](const auto& squares) {
      using T = std::remove_cvref_t<decltype(squares)>;
      using std::log, std::sqrt;
      const T height = T(Accumulator(1.0)) - T(sqrt(squares)) / T(r);
      const T zero(Accumulator(0.0));
      // The logarithm is not taken of what is not positive, for number types that mind.
      const T inside = heed::select(height <= zero, T(Accumulator(1.0)), height);
      return heed::select(height <= zero, T(Accumulator(-std::numeric_limits<double>::infinity())),
                          T(T(log(inside)) * T(u)));
    };
    return detail::DistanceSimilarity<Accumulator, decltype(finish)>{Accumulator(1.0), finish};
  }
};

/// log(1 - |q - k| / radius), which gives weights in proportion to a triangle;
/// std::invalid_argument unless radius > 0.
inline Triangular triangular(double radius = 1) {
  if (!(radius > 0)) detail::fail("triangular", "the radius is ", radius);
  return Triangular(radius);
}

template <class Kept>
struct Bilinear : detail::ScoreTag {
  Kept matrix;

  explicit Bilinear(Kept m) : matrix(std::forward<Kept>(m)) {}

  template <class Accumulator, class Number>
  struct Similarity : DotProduct::Similarity<Accumulator> {
    View<const Number, 2> transform;
  };
  template <class Accumulator>
  auto bind(const detail::Problem& problem, double unit) const {
    const auto m = view(matrix);
    using Number = typename decltype(m)::Scalar;
    if (m.shape[0] != problem.query_dim || m.shape[1] != problem.key_dim) {
      detail::fail(problem.function, "the bilinear score has a matrix of shape ", m.shape, " for ",
                   problem.query_dim, " query and ", problem.key_dim, " key features (last axes)");
    }
    return Similarity<Accumulator, Number>{{Accumulator(unit)}, m};
  }
};

/// q^T M k (Luong, Pham and Manning, "Effective approaches to attention-based neural machine
/// translation", 2015). M: (query features, key features); it must outlive the score unless it is a
/// temporary.
template <class M>
auto bilinear(M&& matrix) {
  static_assert(detail::rank_of<std::remove_reference_t<M>> == 2,
                "heed: bilinear takes a matrix of rank 2");
  return Bilinear<detail::Kept<M&&>>(std::forward<M>(matrix));
}

template <class F>
struct Pairwise : detail::ScoreTag {
  F term;

  explicit Pairwise(F f) : term(std::move(f)) {}

  template <class Accumulator>
  struct Similarity {
    static constexpr bool one_instruction = false;
    Accumulator query_factor, unit;
    F term;
    template <class T>
    EIGEN_ALWAYS_INLINE T step(const T& sum, const T& q, const T& k, Index) const {
      if constexpr (detail::is_lanes<T> && !std::is_invocable_v<const F&, T, T>) {
        return sum + T::map(term, q, k);
      } else {
        return sum + T(term(q, k));
      }
    }
    template <class T>
    EIGEN_ALWAYS_INLINE T finish(const T& sum) const {
      return sum * T(unit);
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem& problem, double unit) const {
    detail::check_widths_agree(problem, "a pairwise score");
    return Similarity<Accumulator>{Accumulator(1.0), Accumulator(unit), term};
  }
};

/// sum over features of f(q_h, k_h). With `auto` parameters f runs on vectors of numbers, with
/// arithmetic, comparisons, heed::select and the functions abs, sqrt, exp, log, tanh, min, max ...
/// called without a namespace; with parameters of a number type it runs on one pair at a time.
template <class F>
auto pairwise(F f) {
  return Pairwise<F>(std::move(f));
}

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
