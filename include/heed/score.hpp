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
    return T(finisher(sum));
  }
};

}  // namespace detail

/// Gaussian of one width.
template <class Width>
struct Gaussian : detail::ScoreTag {
  Width width;

  explicit Gaussian(Width w) : width(std::move(w)) {}

  template <class Accumulator>
  auto bind(const detail::Problem& problem, double unit) const {
    detail::check_widths_agree(problem, "the gaussian score");
    const auto w = static_cast<Accumulator>(width);
    const auto finish = [c = Accumulator(w * w * Accumulator(-0.5 * unit))](const auto& squares) {
      // A T at once: expressions of some number types refer to their operands.
      using T = std::remove_cvref_t<decltype(squares)>;
      return T(squares * T(c));
    };
    return detail::DistanceSimilarity<Accumulator, decltype(finish)>{Accumulator(1.0), finish};
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
                   problem.key_dim, " features (last axis of query and key); query is ",
                   problem.query_shape(), ", key is ", problem.key_shape());
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
                   problem.query_dim, " query and ", problem.key_dim,
                   " key features (last axes); query is ", problem.query_shape(), ", key is ",
                   problem.key_shape());
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
/// arithmetic, comparisons, heed::select and abs, sqrt, exp, log, tanh, min, max called without a
/// namespace (after `using std::abs;` and the like, as f also runs on plain numbers); with
/// parameters of a number type it runs on one pair at a time.
template <class F>
auto pairwise(F f) {
  return Pairwise<F>(std::move(f));
}

}  // namespace heed
