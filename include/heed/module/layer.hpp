#pragma once

#include <type_traits>

#include "heed/core/error.hpp"
#include "heed/core/parallel.hpp"
#include "heed/core/view.hpp"

namespace heed {

/// What the backward pass of a layer of one input gives; the parameters' gradients are a layer.
template <class Input, class Parameters>
struct LayerGradients {
  Input input;
  Parameters parameters;
};

/// What a pass through such a layer gives, and what backward needs: a view of the input, which must
/// outlive the pass.
template <class X, class Output>
struct LayerPass {
  detail::ViewOf<const X> input;
  Output output;
  Eigen::ThreadPoolInterface* pool = nullptr;
};

namespace detail {

/// Weights of Scalar go with inputs T of the same type of sums.
template <class Scalar, class... T>
constexpr void check_layer_types() {
  check_not_integers<std::remove_cvref_t<T>...>();
  static_assert(
      (std::is_same_v<Accumulator<Scalar>, Accumulator<ScalarOf<std::remove_cvref_t<T>>>> && ...),
      "heed: a layer and its input are of one number type (half, bfloat16 and float mix)");
}

/// A vector of `value` throughout.
template <class Scalar>
Vector<Scalar> filled(const char* function, Index dim, double value) {
  if (dim < 0) fail(function, "a width of ", dim);
  return Vector<Scalar>::Constant(dim, static_cast<Scalar>(value));
}

}  // namespace detail
}  // namespace heed
