#pragma once

#include <concepts>
#include <cstddef>
#include <type_traits>

#include "heed/detail/math.hpp"
#include "heed/tensor.hpp"

namespace heed::detail {

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
requires(EigenDense<T> || EigenTensorLike<T> || is_view<T> ||
         requires { typename T::value_type; }) auto parameter_view(const T& kept) {
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

}  // namespace heed::detail
