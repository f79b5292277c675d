#pragma once

#include <algorithm>
#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/core/view.hpp"

namespace heed::detail {

/// Where the rows of a tensor lie, for loops over numbers side by side.
template <class Element>
struct RowsOf {
  View<Element, 4> x;

  bool side_by_side() const { return x.strides[3] == 1 || x.shape[3] <= 1; }
  Element* operator[](Index row) const {
    const Index i = row % x.shape[2], h = row / x.shape[2] % x.shape[1],
                b = row / x.shape[2] / x.shape[1];
    return x.data + b * x.strides[0] + h * x.strides[1] + i * x.strides[2];
  }
};

/// Two tensors with the rows of all batches and heads as those of one, where they lie evenly in
/// both.
template <class A, class B>
auto rows_together(const View<A, 4>& a, const View<B, 4>& b) {
  const auto together = [](auto x) {
    for (const std::size_t axis : {1U, 0U}) {
      if (x.shape[axis] != 1 && x.strides[axis] != x.shape[2] * x.strides[2]) break;
      x.shape[2] *= x.shape[axis];
      x.shape[axis] = 1;
    }
    return x;
  };
  const std::pair result(together(a), together(b));
  return result.first.shape[2] == result.second.shape[2] ? result : std::pair(a, b);
}

/// body(numbers...) with one row of each tensor: where it lies, or its copy where its numbers are
/// apart. Copies of what may be written to are put back.
template <class Number, class Body>
EIGEN_ALWAYS_INLINE void with_row(Index, Number*, const Body& body) {
  body();
}
template <class Number, class Body, class First, class... Rest>
EIGEN_ALWAYS_INLINE void with_row(Index row, Number* copy, const Body& body,
                                  const RowsOf<First>& first, const RowsOf<Rest>&... rest) {
  First* const place = first[row];
  const Index width = first.x.shape[3], stride = first.x.strides[3];
  if (first.side_by_side()) {
    return with_row(row, copy, [&](auto*... others) { body(place, others...); }, rest...);
  }
  if constexpr (std::is_const_v<First>) {
    for (Index c = 0; c < width; ++c) copy[c] = static_cast<Number>(place[c * stride]);
    const Number* const read = copy;
    with_row(row, copy + width, [&](auto*... others) { body(read, others...); }, rest...);
  } else {
    with_row(row, copy + width, [&](auto*... others) { body(copy, others...); }, rest...);
    for (Index c = 0; c < width; ++c) place[c * stride] = static_cast<First>(copy[c]);
  }
}

/// body(row, numbers...) for every row of (batch, heads, seq), counted through, with that row of
/// each tensor, all of one shape; runs of `run` rows are one thread's. Tensors that are not const
/// are written to only.
template <class Number, class Body, class... Elements>
void over_rows(Eigen::ThreadPoolInterface* pool, Index run, const Body& body,
               const View<Elements, 4>&... tensors) {
  const auto shape = std::get<0>(std::tie(tensors...)).shape;
  const Index rows = shape[0] * shape[1] * shape[2], width = shape[3];
  const bool copies = !(RowsOf<Elements>{tensors}.side_by_side() && ...);
  // Less is done before another thread has woken up.
  if (rows * width < (Index(1) << 14)) pool = nullptr;
  parallel_for(pool, (rows + run - 1) / run, [&](Index first, Index last) {
    Number* copy = nullptr;
    const Scratch scratch([&](Layout& layout) {
      copy = layout.take<Number>(copies ? static_cast<Index>(sizeof...(tensors)) * width : 0);
    });
    for (Index row = first * run; row < std::min(last * run, rows); ++row) {
      with_row(
          row, copy, [&](auto*... numbers) { body(row, numbers...); },
          RowsOf<Elements>{tensors}...);
    }
  });
}

/// The numbers as they are, or widened into `copy`, which has room for widened_room(count).
template <class Number, class Scalar>
const Number* widened(const Scalar* from, Index count, Number* copy) {
  if constexpr (std::is_same_v<Number, Scalar>) {
    return from;
  } else {
    if (from == nullptr) return nullptr;
    for (Index c = 0; c < count; ++c) copy[c] = static_cast<Number>(from[c]);
    return copy;
  }
}
template <class Number, class Scalar>
constexpr Index widened_room(Index count) {
  return std::is_same_v<Number, Scalar> ? 0 : count;
}

}  // namespace heed::detail
