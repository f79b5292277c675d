#pragma once

#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"
#include "heed/simd/select.hpp"

/// Scores of the distance between query and key, with which attention is kernel regression.
namespace heed {
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

}  // namespace heed
