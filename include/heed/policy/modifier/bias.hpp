#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

template <class Kept, class KeptGradient = detail::NoGradient>
struct Bias : detail::ModifierTag {
  Kept tensor;
  KeptGradient gradient;

  Bias(Kept t, KeptGradient dt) : tensor(std::forward<Kept>(t)), gradient(dt) {}
  template <class Accumulator, class Number, class Gradient>
  struct Bound {
    static constexpr bool shifts = true;
    static constexpr const char* parameter_name = "the tensor of bias";
    View<const Number, 4> added;  // an axis that repeats has stride 0
    Gradient gradient;            // likewise
    const auto& parameters() const { return added; }
    Accumulator operator()(const Accumulator& s, Index b, Index h, Index i, Index j) const {
      return s + Accumulator(added(b, h, i, j));
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem& problem) const {
    const auto view = detail::broadcast_pairs(problem, "bias", tensor);
    using Number = typename decltype(view)::Scalar;
    if constexpr (std::is_same_v<KeptGradient, detail::NoGradient>) {
      return Bound<Accumulator, Number, KeptGradient>{view, {}};
    } else {
      constexpr int rank = detail::rank_of<std::remove_reference_t<Kept>>;
      auto dt = detail::expand<4, 2>(detail::gradient_view<rank>(gradient));
      for (std::size_t axis = 0; axis < 4; ++axis) {
        if (dt.shape[axis] == 1) dt.strides[axis] = 0;
      }
      return Bound<Accumulator, Number, decltype(dt)>{view, dt};
    }
  }
};

/// Adds a tensor to the scores. Rank 2 is (queries, keys), 3 adds batch in front, 4 is (batch,
/// heads, queries, keys); an axis of 1 is repeated. It must outlive the modifier unless temporary.
template <class T>
auto bias(T&& tensor) {
  static_assert(
      !std::is_same_v<detail::ScalarOf<std::remove_reference_t<T>>, bool>,
      "heed: bias takes numbers; a tensor of bool (true = may attend) belongs in allow()");
  static_assert(detail::rank_of<std::remove_reference_t<T>> >= 2,
                "heed: bias takes a tensor of rank 2 to 4");
  return Bias<detail::Kept<T&&>>(std::forward<T>(tensor), {});
}
/// attention_backward adds the gradient of the tensor to dtensor, of its shape, summed over the
/// axes that are repeated; it outlives the modifier or is a View.
template <class T, class Gradient>
auto bias(T&& tensor, Gradient&& dtensor) {
  detail::check_gradient_type<Gradient&&>();
  static_assert(detail::rank_of<std::remove_reference_t<T>> >= 2,
                "heed: bias takes a tensor of rank 2 to 4");
  return Bias<detail::Kept<T&&>, detail::KeptGradient<Gradient&&>>(std::forward<T>(tensor),
                                                                   dtensor);
}

}  // namespace heed
