#pragma once

#include <type_traits>

#include "heed/core/view.hpp"

/// How policies hold the parameters that they are given, and the places of their gradients.
namespace heed::detail {

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
      static_assert(EigenDirect<Plain>,
                    "heed: this Eigen expression has no elements in memory; call .eval() on it");
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

/// Adds to a gradient in the precision of what is added.
template <class Element, class Number>
void add_to(Element& gradient, const Number& x) {
  gradient = static_cast<Element>(static_cast<Number>(gradient) + x);
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

}  // namespace heed::detail
