#pragma once

#include <concepts>
#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

#include "heed/core/view.hpp"
#include "heed/policy/key_set.hpp"
#include "heed/policy/problem.hpp"
#include "heed/simd/dual.hpp"
#include "heed/simd/math.hpp"

namespace heed::detail {

/// Base of every score. `bind<Accumulator>(problem, unit)` checks that the score fits the shapes
/// and gives a similarity whose values are the scores times unit:
///   query_factor          what a query's features are multiplied by beforehand
///   step(sum, q, k, h)    sum with feature h of a query and a key added; T is a number or Lanes
///   finish(sum)           the score
///   one_instruction       whether a step is a single multiply-add
/// A similarity may also have `transform`, a matrix M (query_dim, key_dim): then q stands for q M.
/// For the backward pass, unless the score is a product (one_instruction):
///   slopes(q, k, w)       derivatives of a feature's term, where w is parameter(h), if there is
///                         one for each feature, and else 0
///   finish_slope(sum)     derivative of the score by the sum
///   width_slope(sum)      derivative of the score by the parameter that all features share, if any
///   flat                  declared where the score has no slope anywhere
///   gradient              View to which the gradient of parameters() is added, or NoGradient
struct ScoreTag {};
/// Base of what changes a score. `bind<Accumulator>(problem)` gives a function of
/// (score, batch, head, query, key), and may give `lanes`, the same on Lanes of queries.
/// For the backward pass either `shifts` is declared (the derivative by the score is 1), or
/// differentiate(score, batch, head, query, key) gives a Dual, on numbers and maybe on Lanes.
struct ModifierTag {};

/// Base of every mask. A mask has `bind(problem)`, which checks that it fits the shapes and gives
/// what answers for them:
///   row(b, h, i)            KeySet of what query i of query head h may see
///   allows(b, h, i, j)      the pair's own answer
struct MaskTag {};
struct BoundMaskTag {};

template <class T>
concept Mask = std::derived_from<std::remove_cvref_t<T>, MaskTag>;

template <class M>
using Bound = decltype(std::declval<const M&>().bind(std::declval<const Problem&>()));

template <class T>
concept Score = std::derived_from<std::remove_cvref_t<T>, ScoreTag>;
template <class T>
concept Modifier = std::derived_from<std::remove_cvref_t<T>, ModifierTag>;

/// A vector of parameters: std::vector, Eigen vector or tensor of rank 1.
template <class T>
  requires(EigenDense<std::remove_const_t<T>> || EigenTensorLike<std::remove_const_t<T>> ||
           is_view<std::remove_const_t<T>> || requires { typename T::value_type; })
auto parameter_view(T& kept) {
  using Plain = std::remove_const_t<T>;
  if constexpr (EigenTensorLike<Plain> || is_view<Plain>) {
    return view(kept);
  } else {
    using Element = std::remove_pointer_t<decltype(kept.data())>;
    Index stride = 1;
    if constexpr (EigenDense<Plain>) {
      static_assert(Plain::IsVectorAtCompileTime, "heed: expected a vector");
      stride = kept.innerStride();
    }
    return View<Element, 1>{kept.data(), {static_cast<Index>(kept.size())}, {stride}};
  }
}

/// In place of the gradient of a parameter that is not trained.
struct NoGradient {};

/// How a policy keeps where a gradient is added: a View by value, anything else is referred to and
/// must outlive the policy.
template <class T>
using KeptGradient = std::conditional_t<is_view<std::remove_cvref_t<T>>, std::remove_cvref_t<T>,
                                        std::remove_reference_t<T>&>;

template <class T>
constexpr void check_gradient_type() {
  using Plain = std::remove_cvref_t<T>;
  static_assert(is_view<Plain> || std::is_lvalue_reference_v<T>,
                "heed: the gradient of a parameter is added to a tensor, vector or number that "
                "outlives the score, or to a View");
  static_assert(is_view<Plain> || !std::is_const_v<std::remove_reference_t<T>>,
                "heed: the gradient of a parameter cannot be written to");
}

/// The gradient as a View of `Rank`: of a number, of a vector of parameters, or of a tensor.
template <int Rank, class T>
auto gradient_view(T& kept) {
  using Plain = std::remove_const_t<T>;
  if constexpr (std::is_same_v<Plain, NoGradient>) {
    return NoGradient{};
  } else {
    const auto result = [&kept] {
      if constexpr (Rank == 1) {
        if constexpr (requires { parameter_view(kept); }) {
          return parameter_view(kept);
        } else {
          return View<T, 1>{&kept, {1}, {1}};
        }
      } else {
        return view(kept);
      }
    }();
    using Element = std::remove_pointer_t<decltype(result.data)>;
    static_assert(!std::is_const_v<Element>,
                  "heed: the gradient of a parameter cannot be written to");
    static_assert(std::remove_const_t<decltype(result)>::Rank == Rank,
                  "heed: the gradient of a parameter has the rank of the parameter");
    return result;
  }
}

/// A similarity with a matrix between query and key.
template <class Similarity>
concept Transforms = requires(const Similarity& s) { s.transform; };
/// A similarity with a parameter for each feature.
template <class Similarity>
concept ByFeature = requires(const Similarity& s) { s.parameter(0); };
/// A bound similarity or modifier whose parameters are trained.
template <class T>
concept Trained = requires(const T& x) { x.gradient.data; };
template <class Modifiers>
inline constexpr bool any_trained = false;
template <class... Modifiers>
inline constexpr bool any_trained<std::tuple<Modifiers...>> = (Trained<Modifiers> || ...);

/// The derivatives of a feature's term of a score by the query's feature, the key's, and the
/// parameter that belongs to the feature.
template <class T>
struct Slopes {
  T query, key, parameter;
};

template <class T>
EIGEN_ALWAYS_INLINE T multiply_add(const T& a, const T& b, const T& c) {
  return a * b + c;
}
template <class Scalar>
EIGEN_ALWAYS_INLINE Lanes<Scalar> multiply_add(Lanes<Scalar> a, Lanes<Scalar> b, Lanes<Scalar> c) {
  return fma(a, b, c);
}

/// The similarity of every matrix product.
template <class Accumulator>
struct Product {
  static constexpr bool one_instruction = true;
  Accumulator query_factor;
  template <class T>
  EIGEN_ALWAYS_INLINE T step(const T& sum, const T& q, const T& k, Index) const {
    return multiply_add(q, k, sum);
  }
  template <class T>
  EIGEN_ALWAYS_INLINE T finish(const T& sum) const {
    return sum;
  }
};

template <class T>
inline constexpr bool is_lanes = false;
template <class Scalar>
inline constexpr bool is_lanes<Lanes<Scalar>> = true;

}  // namespace heed::detail
