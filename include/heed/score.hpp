#pragma once

#include <cmath>
#include <optional>
#include <type_traits>
#include <utility>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/detail/policy.hpp"
#include "heed/detail/problem.hpp"

namespace heed {

/// scale * q . k
struct DotProduct : detail::ScoreTag {
  std::optional<double> scale;  // none: 1 / sqrt(dim)

  explicit DotProduct(std::optional<double> s) : scale(s) {}

  template <class Accumulator>
  using Similarity = detail::Product<Accumulator>;
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

template <class Kept, class KeptGradient = detail::NoGradient>
struct Additive : detail::ScoreTag {
  Kept weight;
  KeptGradient gradient;

  Additive(Kept w, KeptGradient dw) : weight(std::forward<Kept>(w)), gradient(dw) {}

  template <class Accumulator, class Number, class Gradient>
  struct Similarity {
    static constexpr bool one_instruction = false;
    static constexpr const char* parameter_name = "the weights of the additive score";
    Accumulator query_factor, unit;
    View<const Number, 1> weight;
    Gradient gradient;
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
    const auto& parameters() const { return weight; }
    Accumulator parameter(Index h) const { return Accumulator(weight(h)); }
    template <class T>
    EIGEN_ALWAYS_INLINE detail::Slopes<T> slopes(const T& q, const T& k, const T& w) const {
      using std::tanh;
      const T both = q + k;
      const T t(tanh(both));
      const T slope = w * T(T(Accumulator(1.0)) - T(t * t));
      return {slope, slope, t};
    }
    template <class T>
    EIGEN_ALWAYS_INLINE T finish_slope(const T&) const {
      return T(unit);
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem& problem, double unit) const {
    const auto w = detail::parameter_view(weight);
    const auto dw = detail::gradient_view<1>(gradient);
    detail::check_widths_agree(problem, "the additive score");
    if (w.shape[0] != problem.key_dim) {
      detail::fail(problem.function, "the additive score has ", w.shape[0],
                   " weights for a width of ", problem.key_dim, " (last axis of query and key)");
    }
    return Similarity<Accumulator, typename decltype(w)::Scalar, std::remove_const_t<decltype(dw)>>{
        Accumulator(1.0), Accumulator(unit), w, dw};
  }
};

/// sum over features of w_h tanh(q_h + k_h), for queries and keys that are projected already
/// (Bahdanau, Cho and Bengio, "Neural machine translation by jointly learning to align and
/// translate", 2015). w: vector of their width; it must outlive the score unless it is a temporary.
template <class Weight>
auto additive(Weight&& w) {
  return Additive<detail::Kept<Weight&&>>(std::forward<Weight>(w), {});
}
/// attention_backward adds the gradient of the weights to dw, a vector of their length that
/// outlives the score, or a View.
template <class Weight, class Gradient>
auto additive(Weight&& w, Gradient&& dw) {
  detail::check_gradient_type<Gradient&&>();
  return Additive<detail::Kept<Weight&&>, detail::KeptGradient<Gradient&&>>(std::forward<Weight>(w),
                                                                            dw);
}

template <class Kept, class KeptGradient = detail::NoGradient>
struct Bilinear : detail::ScoreTag {
  Kept matrix;
  KeptGradient gradient;

  Bilinear(Kept m, KeptGradient dm) : matrix(std::forward<Kept>(m)), gradient(dm) {}

  template <class Accumulator, class Number, class Gradient>
  struct Similarity : detail::Product<Accumulator> {
    static constexpr const char* parameter_name = "the matrix of the bilinear score";
    View<const Number, 2> transform;
    Gradient gradient;
    const auto& parameters() const { return transform; }
  };
  template <class Accumulator>
  auto bind(const detail::Problem& problem, double unit) const {
    const auto m = view(matrix);
    const auto dm = detail::gradient_view<2>(gradient);
    using Number = typename decltype(m)::Scalar;
    if (m.shape[0] != problem.query_dim || m.shape[1] != problem.key_dim) {
      detail::fail(problem.function, "the bilinear score has a matrix of shape ", m.shape, " for ",
                   problem.query_dim, " query and ", problem.key_dim,
                   " key features (last axes); query is ", problem.query_shape(), ", key is ",
                   problem.key_shape());
    }
    return Similarity<Accumulator, Number, std::remove_const_t<decltype(dm)>>{
        {Accumulator(unit)}, m, dm};
  }
};

/// q^T M k (Luong, Pham and Manning, "Effective approaches to attention-based neural machine
/// translation", 2015). M: (query features, key features); it must outlive the score unless it is a
/// temporary.
template <class M>
auto bilinear(M&& matrix) {
  static_assert(detail::rank_of<std::remove_reference_t<M>> == 2,
                "heed: bilinear takes a matrix of rank 2");
  return Bilinear<detail::Kept<M&&>>(std::forward<M>(matrix), {});
}
/// attention_backward adds the gradient of the matrix to dmatrix, of its shape, which outlives the
/// score or is a View.
template <class M, class Gradient>
auto bilinear(M&& matrix, Gradient&& dmatrix) {
  static_assert(detail::rank_of<std::remove_reference_t<M>> == 2,
                "heed: bilinear takes a matrix of rank 2");
  detail::check_gradient_type<Gradient&&>();
  return Bilinear<detail::Kept<M&&>, detail::KeptGradient<Gradient&&>>(std::forward<M>(matrix),
                                                                       dmatrix);
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
    template <class T>
    EIGEN_ALWAYS_INLINE detail::Slopes<T> slopes(const T& q, const T& k, const T&) const {
      using D = detail::Dual<T, 2>;
      static_assert(std::is_invocable_v<const F&, D, D>,
                    "heed: attention_backward differentiates a pairwise score by calling it on "
                    "dual numbers: its parameters must be auto");
      const D both(term(D::variable(q, 0), D::variable(k, 1)));
      return {both.slopes[0], both.slopes[1], T(Accumulator(0.0))};
    }
    template <class T>
    EIGEN_ALWAYS_INLINE T finish_slope(const T&) const {
      return T(unit);
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem& problem, double unit) const {
    detail::check_widths_agree(problem, "a pairwise score");
    return Similarity<Accumulator>{Accumulator(1.0), Accumulator(unit), term};
  }
};

/// sum over features of f(q_h, k_h). With `auto` parameters f runs on vectors of numbers, with
/// arithmetic, comparisons, heed::select and abs, sqrt, exp, log, tanh, min, max called without a
/// namespace (after `using std::abs;` and the like, as f also runs on plain numbers); with
/// parameters of a number type it runs on one pair at a time. attention_backward wants `auto`: it
/// runs f on numbers that carry their derivatives, which have the same operations.
template <class F>
auto pairwise(F f) {
  return Pairwise<F>(std::move(f));
}

}  // namespace heed
