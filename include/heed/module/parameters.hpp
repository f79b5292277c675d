#pragma once

#include <array>
#include <type_traits>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"

namespace heed {

/// Calls f(value, gradient) for each parameter of a Linear, AdditiveAttention or
/// MultiHeadAttention, a Matrix or a Vector, in the order of the members, with its gradient as the
/// module's backward gives it; a bias that is absent is left out. std::invalid_argument, before any
/// call, where the shapes differ.
template <class Module, class Gradients, class F>
  requires(std::is_same_v<std::remove_const_t<Module>, Gradients>)
void for_each_parameter(Module& module, const Gradients& gradients, F&& f) {
  Gradients::visit(module, gradients, [](const auto& value, const auto& gradient) {
    detail::check_gradient_shape("for_each_parameter", "the parameter",
                                 std::array<Index, 2>{value.rows(), value.cols()},
                                 std::array<Index, 2>{gradient.rows(), gradient.cols()});
  });
  Gradients::visit(module, gradients, [&f](auto& value, const auto& gradient) {
    if (value.size() > 0) f(value, gradient);
  });
}

}  // namespace heed
