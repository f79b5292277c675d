#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>

#include "heed/detail/check.hpp"
#include "heed/detail/policy.hpp"
#include "heed/detail/problem.hpp"
#include "heed/tensor.hpp"

namespace heed {
namespace detail {

inline void check_widths_agree(const Problem& problem, const char* score) {
  if (problem.query_dim != problem.key_dim) {
    fail(problem.function, score, " needs queries and keys of one width, got ", problem.query_dim,
         " and ", problem.key_dim, " features (last axis); query is ", problem.query_shape(),
         ", key is ", problem.key_shape());
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

namespace detail {

/// Scores of the distance |q - k|: the squares are summed, the base `Finish` has the rest.
template <class Accumulator, class Finish>
struct DistanceSimilarity : Finish {
  static constexpr bool one_instruction = false;
  Accumulator query_factor;

  explicit DistanceSimilarity(const Finish& f) : Finish(f), query_factor(1.0) {}
  template <class T>
  EIGEN_ALWAYS_INLINE T step(const T& sum, const T& q, const T& k, Index) const {
    const T difference = q - k;
    return multiply_add(difference, difference, sum);
  }
  template <class T>
  EIGEN_ALWAYS_INLINE Slopes<T> slopes(const T& q, const T& k, const T&) const {
    const T difference = q - k;
    const T twice = difference + difference;
    return {twice, T(-twice), T(Accumulator(0.0))};
  }
};

}  // namespace detail

/// Gaussian of one width.
template <class Width, class KeptGradient = detail::NoGradient>
struct Gaussian : detail::ScoreTag {
  Width width;
  KeptGradient gradient;

  Gaussian(Width w, KeptGradient dw) : width(std::move(w)), gradient(dw) {}

  template <class Accumulator, class Gradient>
  struct Finish {
    static constexpr const char* parameter_name = "the width of the gaussian score";
    Accumulator factor, width_factor;  // -w^2 / 2 and its derivative
    Gradient gradient;
    auto parameters() const { return View<const Accumulator, 1>{&factor, {1}, {1}}; }
    template <class T>
    EIGEN_ALWAYS_INLINE T finish(const T& squares) const {
      return squares * T(factor);
    }
    template <class T>
    EIGEN_ALWAYS_INLINE T finish_slope(const T&) const {
      return T(factor);
    }
    template <class T>
    EIGEN_ALWAYS_INLINE T width_slope(const T& squares) const {
      return squares * T(width_factor);
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem& problem, double unit) const {
    detail::check_widths_agree(problem, "the gaussian score");
    const auto w = static_cast<Accumulator>(width);
    const auto dw = detail::gradient_view<1>(gradient);
    using Bound = Finish<Accumulator, std::remove_const_t<decltype(dw)>>;
    return detail::DistanceSimilarity<Accumulator, Bound>(Bound{
        Accumulator(w * w * Accumulator(-0.5 * unit)), Accumulator(w * Accumulator(-unit)), dw});
  }
};

/// Gaussian with a width for each feature.
template <class Kept, class KeptGradient = detail::NoGradient>
struct GaussianByFeature : detail::ScoreTag {
  Kept width;
  KeptGradient gradient;

  GaussianByFeature(Kept w, KeptGradient dw) : width(std::forward<Kept>(w)), gradient(dw) {}

  template <class Accumulator, class Number, class Gradient>
  struct Similarity {
    static constexpr bool one_instruction = false;
    static constexpr const char* parameter_name = "the widths of the gaussian score";
    Accumulator query_factor, coefficient;
    View<const Number, 1> width;
    Gradient gradient;
    template <class T>
    EIGEN_ALWAYS_INLINE T step(const T& sum, const T& q, const T& k, Index h) const {
      const T difference = (q - k) * T(Accumulator(width(h)));
      return detail::multiply_add(difference, difference, sum);
    }
    template <class T>
    EIGEN_ALWAYS_INLINE T finish(const T& sum) const {
      return sum * T(coefficient);
    }
    const auto& parameters() const { return width; }
    Accumulator parameter(Index h) const { return Accumulator(width(h)); }
    template <class T>
    EIGEN_ALWAYS_INLINE detail::Slopes<T> slopes(const T& q, const T& k, const T& w) const {
      const T difference = q - k;
      const T slope = T(difference + difference) * w;  // by the width; w / difference as much by q
      const T by_query = slope * w;
      return {by_query, T(-by_query), T(slope * difference)};
    }
    template <class T>
    EIGEN_ALWAYS_INLINE T finish_slope(const T&) const {
      return T(coefficient);
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem& problem, double unit) const {
    const auto w = detail::parameter_view(width);
    const auto dw = detail::gradient_view<1>(gradient);
    detail::check_widths_agree(problem, "the gaussian score");
    if (w.shape[0] != problem.key_dim) {
      detail::fail(problem.function, "the gaussian score has ", w.shape[0], " widths for ",
                   problem.key_dim, " features (last axis of query and key); query is ",
                   problem.query_shape(), ", key is ", problem.key_shape());
    }
    return Similarity<Accumulator, typename decltype(w)::Scalar, std::remove_const_t<decltype(dw)>>{
        Accumulator(1.0), Accumulator(-0.5 * unit), w, dw};
  }
};

/// -|(q - k) width|^2 / 2, so that attention is the kernel regression of Nadaraya (1964) and Watson
/// (1964). width: one number, or a vector with one for each feature (which must outlive the score
/// unless it is a temporary).
template <class Width = double>
auto gaussian(Width&& width = 1.0) {
  using Plain = std::remove_cvref_t<Width>;
  if constexpr (std::is_arithmetic_v<Plain>) {
    return Gaussian<double>(static_cast<double>(width), {});
  } else if constexpr (requires { detail::parameter_view(width); }) {
    return GaussianByFeature<detail::Kept<Width&&>>(std::forward<Width>(width), {});
  } else {
    return Gaussian<Plain>(width, {});
  }
}
/// attention_backward adds the gradient of the width to dwidth: a number beside one width, a vector
/// of their length beside many. It outlives the score, or is a View.
template <class Width, class Gradient>
auto gaussian(Width&& width, Gradient&& dwidth) {
  detail::check_gradient_type<Gradient&&>();
  using Plain = std::remove_cvref_t<Width>;
  using To = detail::KeptGradient<Gradient&&>;
  if constexpr (std::is_arithmetic_v<Plain>) {
    return Gaussian<double, To>(static_cast<double>(width), dwidth);
  } else if constexpr (requires { detail::parameter_view(width); }) {
    return GaussianByFeature<detail::Kept<Width&&>, To>(std::forward<Width>(width), dwidth);
  } else {
    return Gaussian<Plain, To>(width, dwidth);
  }
}

/// 0 within the radius, else no weight.
struct Boxcar : detail::ScoreTag {
  double radius;

  explicit Boxcar(double r) : radius(r) {}

  template <class Accumulator>
  struct Finish {
    static constexpr bool flat = true;
    Accumulator limit;
    template <class T>
    EIGEN_ALWAYS_INLINE T finish(const T& squares) const {
      return heed::select(squares <= T(limit), T(Accumulator(0.0)),
                          T(Accumulator(-std::numeric_limits<double>::infinity())));
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem& problem, double) const {
    detail::check_widths_agree(problem, "the boxcar score");
    const auto r = static_cast<Accumulator>(radius);
    return detail::DistanceSimilarity<Accumulator, Finish<Accumulator>>({Accumulator(r * r)});
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
  struct Finish {
    Accumulator radius, unit;
    template <class T>
    EIGEN_ALWAYS_INLINE T finish(const T& squares) const {
      using std::log, std::sqrt;
      const T height = T(Accumulator(1.0)) - T(sqrt(squares)) / T(radius);
      const T zero(Accumulator(0.0));
      // The logarithm is not taken of what is not positive, for number types that mind.
      const T inside = heed::select(height <= zero, T(Accumulator(1.0)), height);
      return heed::select(height <= zero, T(Accumulator(-std::numeric_limits<double>::infinity())),
                          T(T(log(inside)) * T(unit)));
    }
    /// By the square of the distance d: -1 / (2 d (radius - d)). At the tip, where there is no
    /// derivative, 0.
    template <class T>
    EIGEN_ALWAYS_INLINE T finish_slope(const T& squares) const {
      using std::sqrt;
      const T distance(sqrt(squares)), zero(Accumulator(0.0));
      const T below = T(radius) - distance;
      const T slope = T(Accumulator(Accumulator(-0.5) * unit)) / T(distance * below);
      return heed::select(below <= zero, zero, T(heed::select(distance == zero, zero, slope)));
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem& problem, double unit) const {
    detail::check_widths_agree(problem, "the triangular score");
    return detail::DistanceSimilarity<Accumulator, Finish<Accumulator>>(
        {static_cast<Accumulator>(radius), static_cast<Accumulator>(unit)});
  }
};

/// log(1 - |q - k| / radius), which gives weights in proportion to a triangle;
/// std::invalid_argument unless radius > 0.
inline Triangular triangular(double radius = 1) {
  if (!(radius > 0)) detail::fail("triangular", "the radius is ", radius);
  return Triangular(radius);
}

template <class Kept, class KeptGradient = detail::NoGradient>
struct Bilinear : detail::ScoreTag {
  Kept matrix;
  KeptGradient gradient;

  Bilinear(Kept m, KeptGradient dm) : matrix(std::forward<Kept>(m)), gradient(dm) {}

  template <class Accumulator, class Number, class Gradient>
  struct Similarity : DotProduct::Similarity<Accumulator> {
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
    static constexpr bool arbitrary = true;
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
