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
struct Bias : ModifierPolicy {
  Kept tensor;
  KeptGradient gradient;

  Bias(Kept t, KeptGradient dt) : tensor(std::forward<Kept>(t)), gradient(dt) {}
  template <class Number, class Element, class Gradient>
  struct Bound {
    static constexpr ModifierTraits traits{
        .effect = Effect::shifts, .adds_tensor = true, .has_parameters = true};
    static constexpr const char* parameter_name = "the tensor of bias";
    View<const Element, 4> added;  // an axis that repeats has stride 0
    Gradient gradient;             // likewise
    const auto& parameters() const { return added; }
    Number operator()(const Number& s, Index b, Index h, Index i, Index j) const {
      return s + Number(added(b, h, i, j));
    }
    Index partials() const { return 0; }
    ScoreAxes shared_axes(const Problem& problem) const {
      const auto& shape = gradient.shape;
      return {shape[0] == 1 && problem.batch > 1, shape[1] == 1 && problem.kv_heads > 1,
              shape[2] == 1 && problem.queries > 1};
    }
    void add_gradient(const PairTile<Number>& tile, Number*) const {
      for (Index i = 0; i < tile.queries; ++i) {
        auto* to = &gradient(tile.batch, tile.head, tile.query + i, tile.key);
        for (Index j = 0; j < tile.keys; ++j, to += gradient.strides[3]) {
          detail::add_to(*to, tile.at(j, i));
        }
      }
    }
    void add_partial(Index, const Number&) const {}
  };
  template <class Number>
  auto bind(const Problem& problem) const {
    const auto view = broadcast_pairs(problem, "bias", tensor);
    using Element = typename decltype(view)::Scalar;
    if constexpr (std::is_same_v<KeptGradient, detail::NoGradient>) {
      return Bound<Number, Element, KeptGradient>{view, {}};
    } else {
      constexpr int rank = detail::rank_of<std::remove_reference_t<Kept>>;
      auto dt = detail::expand<4, 2>(detail::gradient_view<rank>(gradient));
      for (std::size_t axis = 0; axis < 4; ++axis) {
        if (dt.shape[axis] == 1) dt.strides[axis] = 0;
      }
      problem.index_by_query(dt);
      return Bound<Number, Element, decltype(dt)>{view, dt};
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
