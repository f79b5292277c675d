#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "heed/core/error.hpp"
#include "heed/core/unit.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"
#include "heed/simd/select.hpp"

/// Scores of the distance between query and key, with which attention is kernel regression.
namespace heed {
namespace detail {

/// Scores of the distance |q - k|: the squares are summed, the base `Finish` has the rest. A NaN
/// stays NaN; an infinite sum of squares, which is also what squares beyond the numbers give, is
/// infinitely far.
template <class Number, class Finish>
struct DistanceSimilarity : Finish {
  explicit DistanceSimilarity(const Finish& f) : Finish(f) {}
  template <class T>
  EIGEN_ALWAYS_INLINE T step(const T& sum, const T& q, const T& k, Index) const {
    const T difference = q - k;
    return multiply_add(difference, difference, sum);
  }
  template <class T>
  EIGEN_ALWAYS_INLINE Slopes<T> slopes(const T& q, const T& k, const T&) const {
    const T difference = q - k;
    const T twice = difference + difference;
    return {twice, T(-twice), T(Number(0.0))};
  }
};

inline double finite_width(double width) {
  if (!std::isfinite(width)) fail("gaussian", "the width is ", width);
  return width;
}

}  // namespace detail

/// Gaussian of one width.
template <class Width, class KeptGradient = detail::NoGradient>
struct Gaussian : ScorePolicy {
  Width width;
  KeptGradient gradient;

  Gaussian(Width w, KeptGradient dw) : width(std::move(w)), gradient(dw) {}

  template <class Number, class Gradient>
  struct Finish {
    static constexpr ScoreTraits traits{.vectorised = true,
                                        .features_alike = true,
                                        .parameters = Parameters::shared,
                                        .derivative = Derivative::given};
    static constexpr const char* parameter_name = "the width of the gaussian score";
    Number factor, width_factor;  // -w^2 / 2 and its derivative
    Gradient gradient;
    auto parameters() const { return View<const Number, 1>{&factor, {1}, {1}}; }
    template <class T>
    EIGEN_ALWAYS_INLINE T finish(const T& squares) const {
      return squares * T(factor);
    }
    template <class T>
    EIGEN_ALWAYS_INLINE T finish_slope(const T&) const {
      return T(factor);
    }
    template <class T>
    EIGEN_ALWAYS_INLINE T shared_slope(const T& squares) const {
      return squares * T(width_factor);
    }
  };
  template <class Number, class Unit = NaturalUnit>
  auto bind(const Problem& problem) const {
    check_widths_agree(problem, "the gaussian score");
    const auto w = static_cast<Number>(width);
    if constexpr (std::is_arithmetic_v<Width>) {
      const auto given = static_cast<double>(width);
      parameter_as<Number>(problem, "the width of the gaussian score", given);
      parameter_as<Number>(problem, "the square of the width of the gaussian score, times log2(e),",
                           given * given * BinaryUnit::factor);
    }
    const auto dw = detail::gradient_view<1>(gradient);
    using Bound = Finish<Number, std::remove_const_t<decltype(dw)>>;
    auto factor = Number(w * w * Number(-0.5 * Unit::factor));
    // An infinitely far key has no weight, also where the factor would be 0: 0 times infinity is
    // NaN, the smallest number times infinity is infinite, and times anything else as good as 0.
    if constexpr (std::is_floating_point_v<Number>) {
      factor = std::min(factor, -std::numeric_limits<Number>::denorm_min());
    }
    return detail::DistanceSimilarity<Number, Bound>(
        Bound{factor, Number(w * Number(-Unit::factor)), dw});
  }
};

/// Gaussian with a width for each feature.
template <class Kept, class KeptGradient = detail::NoGradient>
struct GaussianByFeature : ScorePolicy {
  Kept width;
  KeptGradient gradient;

  GaussianByFeature(Kept w, KeptGradient dw) : width(std::forward<Kept>(w)), gradient(dw) {}

  template <class Number, class Element, class Gradient>
  struct Similarity {
    static constexpr ScoreTraits traits{
        .vectorised = true, .parameters = Parameters::per_feature, .derivative = Derivative::given};
    static constexpr const char* parameter_name = "the widths of the gaussian score";
    Number coefficient;
    View<const Element, 1> width;
    Gradient gradient;
    template <class T>
    EIGEN_ALWAYS_INLINE T step(const T& sum, const T& q, const T& k, Index h) const {
      const T difference = (q - k) * T(Number(width(h)));
      return detail::multiply_add(difference, difference, sum);
    }
    template <class T>
    EIGEN_ALWAYS_INLINE T finish(const T& sum) const {
      return sum * T(coefficient);
    }
    const auto& parameters() const { return width; }
    Number parameter(Index h) const { return Number(width(h)); }
    template <class T>
    EIGEN_ALWAYS_INLINE Slopes<T> slopes(const T& q, const T& k, const T& w) const {
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
  template <class Number, class Unit = NaturalUnit>
  auto bind(const Problem& problem) const {
    const auto w = detail::parameter_view(width);
    const auto dw = detail::gradient_view<1>(gradient);
    using Element = typename decltype(w)::Scalar;
    check_widths_agree(problem, "the gaussian score");
    if (w.shape[0] != problem.key_dim) {
      problem.refuse("the gaussian score has ", w.shape[0], " widths for ", problem.key_dim,
                     " features (last axis of query and key); query is ", problem.query_shape(),
                     ", key is ", problem.key_shape());
    }
    if constexpr (std::is_floating_point_v<Element>) {
      for (Index h = 0; h < w.shape[0]; ++h) {
        parameter_as<Number>(problem, "a width of the gaussian score", static_cast<double>(w(h)));
      }
    }
    return Similarity<Number, Element, std::remove_const_t<decltype(dw)>>{
        Number(-0.5 * Unit::factor), w, dw};
  }
};

/// -|(q - k) width|^2 / 2, so that attention is the kernel regression of Nadaraya (1964) and Watson
/// (1964). width: one number, or a vector with one for each feature (which must outlive the score
/// unless it is a temporary). What is not finite in the number type of the call is refused.
template <class Width = double>
auto gaussian(Width&& width = 1.0) {
  using Plain = std::remove_cvref_t<Width>;
  if constexpr (std::is_arithmetic_v<Plain>) {
    return Gaussian<double>(detail::finite_width(static_cast<double>(width)), {});
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
    return Gaussian<double, To>(detail::finite_width(static_cast<double>(width)), dwidth);
  } else if constexpr (requires { detail::parameter_view(width); }) {
    return GaussianByFeature<detail::Kept<Width&&>, To>(std::forward<Width>(width), dwidth);
  } else {
    return Gaussian<Plain, To>(width, dwidth);
  }
}

/// 0 within the radius, else no weight.
struct Boxcar : ScorePolicy {
  double radius;

  explicit Boxcar(double r) : radius(r) {}

  template <class Number>
  struct Finish {
    static constexpr ScoreTraits traits{
        .vectorised = true, .features_alike = true, .derivative = Derivative::zero};
    Number limit;
    template <class T>
    EIGEN_ALWAYS_INLINE T finish(const T& squares) const {
      const T nothing(Number(-std::numeric_limits<double>::infinity()));
      // What is neither within nor beyond is NaN.
      return heed::select(squares <= T(limit), T(Number(0.0)),
                          T(heed::select(squares > T(limit), nothing, squares)));
    }
  };
  template <class Number, class Unit = NaturalUnit>
  auto bind(const Problem& problem) const {
    check_widths_agree(problem, "the boxcar score");
    return detail::DistanceSimilarity<Number, Finish<Number>>({parameter_as<Number>(
        problem, "the square of the radius of the boxcar score", radius * radius)});
  }
};

/// 0 where |q - k| <= radius, else -infinity; std::invalid_argument unless radius >= 0, and where
/// its square is not finite in the number type of the call.
inline Boxcar boxcar(double radius = 1) {
  if (!(radius >= 0) || std::isinf(radius)) detail::fail("boxcar", "the radius is ", radius);
  return Boxcar(radius);
}

/// log(1 - |q - k| / radius) within the radius, else no weight.
struct Triangular : ScorePolicy {
  double radius;

  explicit Triangular(double r) : radius(r) {}

  template <class Number>
  struct Finish {
    static constexpr ScoreTraits traits{
        .vectorised = true, .features_alike = true, .derivative = Derivative::given};
    Number radius, scale;
    template <class T>
    EIGEN_ALWAYS_INLINE T finish(const T& squares) const {
      using std::log, std::sqrt;
      const T height = T(Number(1.0)) - T(sqrt(squares)) / T(radius);
      const T zero(Number(0.0));
      // The logarithm is not taken of what is not positive, for number types that mind.
      const T inside = heed::select(height <= zero, T(Number(1.0)), height);
      return heed::select(height <= zero, T(Number(-std::numeric_limits<double>::infinity())),
                          T(T(log(inside)) * T(scale)));
    }
    /// By the square of the distance d: -1 / (2 d (radius - d)). At the tip, where there is no
    /// derivative, 0.
    template <class T>
    EIGEN_ALWAYS_INLINE T finish_slope(const T& squares) const {
      using std::sqrt;
      const T distance(sqrt(squares)), zero(Number(0.0));
      const T below = T(radius) - distance;
      const T slope = T(Number(Number(-0.5) * scale)) / T(distance * below);
      return heed::select(below <= zero, zero, T(heed::select(distance == zero, zero, slope)));
    }
  };
  template <class Number, class Unit = NaturalUnit>
  auto bind(const Problem& problem) const {
    check_widths_agree(problem, "the triangular score");
    const auto r = parameter_as<Number>(problem, "the radius of the triangular score", radius);
    if (r == Number(0.0)) {
      problem.refuse("the radius of the triangular score, ", radius, ", is 0 in its number type");
    }
    return detail::DistanceSimilarity<Number, Finish<Number>>({r, Number(Unit::factor)});
  }
};

/// log(1 - |q - k| / radius), which gives weights in proportion to a triangle;
/// std::invalid_argument unless radius is positive and finite in the number type of the call.
inline Triangular triangular(double radius = 1) {
  if (!(radius > 0) || std::isinf(radius)) detail::fail("triangular", "the radius is ", radius);
  return Triangular(radius);
}

}  // namespace heed
