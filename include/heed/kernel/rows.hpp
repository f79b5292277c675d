#pragma once

#include <type_traits>

#include "heed/core/key_source.hpp"
#include "heed/core/view.hpp"
#include "heed/simd/convert.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// Rows of numbers, contiguous in themselves, `stride` apart.
template <class Scalar>
struct Rows {
  const Scalar* data;
  Index stride;

  const Scalar* operator[](Index row) const { return data + row * stride; }
};

/// Asks for numbers to be brought near.
template <class Scalar>
EIGEN_ALWAYS_INLINE void fetch(const Scalar* from, Index count) {
  for (Index at = 0; at < count; at += 64 / static_cast<Index>(sizeof(Scalar))) {
    __builtin_prefetch(from + at);
  }
}

/// One (batch, head) of a tensor.
template <class Scalar>
struct Slab {
  Scalar* data;
  Index row_stride, column_stride;

  /// Where a number is. Of an empty tensor, whose data is null, there is no number to refer to, but
  /// its row 0 is somewhere.
  Scalar* at(Index row, Index column) const {
    return data + (row * row_stride + column * column_stride);
  }
  Scalar& operator()(Index row, Index column) const { return *at(row, column); }
};

template <class Scalar>
Slab<Scalar> slab(const View<Scalar, 4>& x, Index batch, Index head) {
  return {x.data + batch * x.strides[0] + head * x.strides[1], x.strides[2], x.strides[3]};
}

/// Copies a run of rows, width numbers each, one after the other.
template <class Accumulator, class Element>
EIGEN_DONT_INLINE void copy_rows(const Run<Element>& run, Index width, Accumulator* to) {
  using L = Lanes<Accumulator>;
  for (Index row = 0; row < run.count; ++row, to += width) {
    Index c = 0;
    if (run.column_stride == 1) {
      const auto* const from = run.data + row * run.row_stride;
      for (; c + L::size <= width; c += L::size) {
        const L numbers = load_widened<Accumulator>(from + c);
        (std::is_same_v<Element, Quantised8> ? numbers * L(run.scale(row)) : numbers).store(to + c);
      }
    }
    for (; c < width; ++c) to[c] = run.template at<Accumulator>(row, c);
  }
}

/// count rows of a slab from `first` on, width numbers each: in place, or copied to the buffer.
template <class Accumulator, class Scalar>
Rows<Accumulator> rows_of(const Slab<const Scalar>& x, Index first, Index count, Index width,
                          bool in_place, Accumulator* buffer) {
  if constexpr (std::is_same_v<Scalar, Accumulator>) {
    if (in_place) return {x.at(first, 0), x.row_stride};
  }
  copy_rows(Run<Scalar>{x.at(first, 0), x.row_stride, x.column_stride, count}, width, buffer);
  return {buffer, width};
}

/// Whether `count` rows hold no NaN and no infinity, which times 0 are NaN.
template <Laned Scalar>
bool all_finite(const Rows<Scalar>& rows, Index count, Index width) {
  using L = Lanes<Scalar>;
  L zero[4] = {0, 0, 0, 0};
  Scalar rest = 0;
  for (Index row = 0; row < count; ++row) {
    const Scalar* const numbers = rows[row];
    Index c = 0;
    for (; c + 4 * L::size <= width; c += 4 * L::size) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        zero[v] = fma(L::load(numbers + c + v * L::size), L(0), zero[v]);
      }
    }
    for (; c + L::size <= width; c += L::size) zero[0] = fma(L::load(numbers + c), L(0), zero[0]);
    for (; c < width; ++c) rest += numbers[c] * 0;
  }
  return sum_of_lanes((zero[0] + zero[1]) + (zero[2] + zero[3])) + rest == 0;
}
template <Laned Scalar>
bool all_finite(const Scalar* row, Index width) {
  return all_finite(Rows<Scalar>{row, width}, 1, width);
}

/// sum over c of a(row, c) b(row, c).
template <class Accumulator, class A, class B>
Accumulator row_dot(const Slab<const A>& a, const Slab<const B>& b, Index row, Index width) {
  using L = Lanes<Accumulator>;
  Accumulator sum = 0;
  Index c = 0;
  if (a.column_stride == 1 && b.column_stride == 1) {
    L sums(0);
    for (; c + L::size <= width; c += L::size) {
      sums = fma(load_widened<Accumulator>(a.at(row, c)), load_widened<Accumulator>(b.at(row, c)),
                 sums);
    }
    sum = sum_of_lanes(sums);
  }
  for (; c < width; ++c) {
    sum += static_cast<Accumulator>(a(row, c)) * static_cast<Accumulator>(b(row, c));
  }
  return sum;
}

}  // namespace heed::detail
