#pragma once

#include <algorithm>
#include <array>
#include <initializer_list>
#include <type_traits>
#include <vector>

#include "heed/core/view.hpp"
#include "heed/kernel/softmax_row.hpp"
#include "heed/policy/mask/lengths.hpp"
#include "heed/policy/mask/range.hpp"
#include "heed/policy/problem.hpp"

namespace heed {
namespace detail {

template <class T, class M>
auto softmax_under(const char* function, const T& scores, const M& mask) {
  static_assert(rank_of<T> >= 2 && rank_of<T> <= 4, "heed: scores have a rank from 2 to 4");
  check_not_integers<T>();
  check_extents(function, "scores", view(scores).shape);
  using Scalar = ScalarOf<T>;
  using Accumulate = Accumulator<Scalar>;
  const View<const Scalar, 4> from = rank4(scores);
  const Problem problem{
      function, from.shape[0], from.shape[1], from.shape[1], from.shape[2], from.shape[3], 0, 0, 0};
  const auto bound = bind_mask(mask, problem);
  auto result = make_result<Scalar, T>(view(scores).shape);
  const auto to = rank4(result);
  if (from.size() == 0) return result;
  const bool contiguous = from.strides[3] == 1 && to.strides[3] == 1;
  std::vector<Accumulate> buffer(static_cast<std::size_t>(problem.keys), Accumulate(0.0));
  for_each_row(from.shape, [&](Index b, Index h, Index i) {
    const auto keys = bound.row(b, h, i);
    if (contiguous && keys.exact && keys.count == 1) {
      const auto [begin, end] = keys[0];
      Scalar* target = &to(b, h, i, 0);
      std::fill(target, target + begin, static_cast<Scalar>(Accumulate(0.0)));
      if constexpr (std::is_same_v<Scalar, Accumulate>) {
        softmax_row(&from(b, h, i, begin), target + begin, target + begin, end - begin);
      } else {
        softmax_row(&from(b, h, i, begin), buffer.data(), target + begin, end - begin);
      }
      std::fill(target + end, target + problem.keys, static_cast<Scalar>(Accumulate(0.0)));
      return;
    }
    // The visible scores side by side, then back to their places.
    const auto for_each_key = [&](const auto& body) {
      for_each_visible(bound, keys, b, h, i, 0, problem.keys, body);
    };
    Accumulate* row = buffer.data();
    Index count = 0;
    for_each_key([&](Index j) { row[count++] = static_cast<Accumulate>(from(b, h, i, j)); });
    softmax_row(row, row, row, count);
    for (Index j = 0; j < problem.keys; ++j) to(b, h, i, j) = static_cast<Scalar>(Accumulate(0.0));
    count = 0;
    for_each_key([&](Index j) { to(b, h, i, j) = static_cast<Scalar>(row[count++]); });
  });
  return result;
}

}  // namespace detail

/// e^score / sum of e^score over the last axis; scores of rank 2 to 4. A row of -infinity alone
/// becomes zeros.
template <class T>
auto softmax(const T& scores) {
  return detail::softmax_under("softmax", scores, no_mask());
}

/// softmax over the entries that the mask allows, 0 at the others, whose value never matters; zeros
/// where it allows none. Scores are (queries, keys), (batch, queries, keys) or (batch, heads,
/// queries, keys). In place of a mask, lengths as for valid_lens. std::invalid_argument where the
/// mask does not fit the scores.
template <class T, class M>
auto masked_softmax(const T& scores, const M& mask) {
  if constexpr (Mask<M>) {
    return detail::softmax_under("masked_softmax", scores, mask);
  } else {
    return detail::softmax_under("masked_softmax", scores, valid_lens(mask));
  }
}
template <class T>
auto masked_softmax(const T& scores, std::initializer_list<Index> lens) {
  return masked_softmax(scores, valid_lens(lens));
}
template <class T>
auto masked_softmax(const T& scores, detail::NestedLists lens) {
  return masked_softmax(scores, valid_lens(lens));
}

/// Gradient of the scores of softmax and of masked_softmax: P (dP - sum over the row of P dP), for
/// weights P and the gradient dP of the same shape and of any storage order. Where a weight is 0,
/// as at every entry that a mask hides, it is 0, and dP there never matters. Storage order of the
/// weights; std::invalid_argument where the shapes differ.
template <class P, class G>
auto softmax_backward(const P& weights, const G& grad_weights) {
  static_assert(detail::rank_of<P> >= 2 && detail::rank_of<P> <= 4,
                "heed: weights have a rank from 2 to 4");
  static_assert(detail::rank_of<P> == detail::rank_of<G>,
                "heed: weights and their gradient have one rank");
  detail::check_not_integers<P, G>();
  using Scalar = detail::ScalarOf<P>;
  using Accumulate = detail::Accumulator<Scalar>;
  static_assert(std::is_same_v<Accumulate, detail::Accumulator<detail::ScalarOf<G>>>,
                "heed: weights and their gradient are of one number type");
  detail::check_extents("softmax_backward", "the weights", view(weights).shape);
  detail::check_gradient_shape("softmax_backward", "the weights", view(weights).shape,
                               view(grad_weights).shape);
  auto result = detail::make_result<Scalar, P>(view(weights).shape);
  const auto p = detail::rank4(weights);
  const auto g = detail::rank4(grad_weights);
  const auto d = detail::rank4(result);
  const Index keys = p.shape[3];
  if (p.size() == 0) return result;
  std::vector<Accumulate> buffer(static_cast<std::size_t>(3 * keys), Accumulate(0.0));
  detail::for_each_row(p.shape, [&](Index b, Index h, Index i) {
    // Rows where they lie, or copied.
    const auto row = [&](const auto& x, Accumulate* copy) -> const Accumulate* {
      if constexpr (std::is_same_v<typename std::remove_cvref_t<decltype(x)>::Scalar, Accumulate>) {
        if (x.strides[3] == 1) return &x(b, h, i, 0);
      }
      for (Index j = 0; j < keys; ++j) copy[j] = static_cast<Accumulate>(x(b, h, i, j));
      return copy;
    };
    const Accumulate* const from = row(p, buffer.data());
    const Accumulate* const grad = row(g, buffer.data() + keys);
    if constexpr (std::is_same_v<Scalar, Accumulate>) {
      if (d.strides[3] == 1) {
        return detail::softmax_backward_row(from, grad, &d(b, h, i, 0), keys);
      }
    }
    Accumulate* to = buffer.data() + 2 * keys;
    detail::softmax_backward_row(from, grad, to, keys);
    for (Index j = 0; j < keys; ++j) d(b, h, i, j) = static_cast<Scalar>(to[j]);
  });
  return result;
}

}  // namespace heed
