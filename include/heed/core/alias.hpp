#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"

namespace heed::detail {

/// Whether there are integers x_n, each within its range, with low <= sum of stride_n x_n <= high:
/// how it is decided whether two lattices of elements, or one and itself, meet.
class Lattice {
 public:
  /// Adds a variable; those of one stride are one variable, whose range is the sum of the ranges.
  void add(Index stride, Index lowest, Index highest) {
    if (stride < 0) {
      stride = -stride;
      lowest = -std::exchange(highest, -lowest);
    }
    for (std::size_t n = 0; n < count_; ++n) {
      if (axes_[n].stride != stride) continue;
      axes_[n].lowest += lowest;
      axes_[n].highest += highest;
      return;
    }
    axes_[count_++] = {stride, lowest, highest};
  }

  /// Goes down from the largest stride: where the smaller ones reach no further than it, which is
  /// what nested axes do, two or three values of a variable are left to try. After too many steps
  /// the answer is yes. With `not_all_zero`, all x_n = 0 does not count.
  bool reaches(Index low, Index high, bool not_all_zero = false) {
    std::sort(axes_.begin(), axes_.begin() + static_cast<std::ptrdiff_t>(count_),
              [](const Axis& a, const Axis& b) { return a.stride > b.stride; });
    steps_ = 0;
    return search(0, low, high, not_all_zero);
  }

 private:
  struct Axis {
    Index stride, lowest, highest;
  };
  static constexpr Index most_steps = 4096;

  static Index floor_divide(Index a, Index b) { return a / b - (a % b < 0 ? 1 : 0); }

  bool search(std::size_t n, Index low, Index high, bool not_all_zero) {
    if (n == count_) return low <= 0 && 0 <= high && !not_all_zero;
    if (++steps_ > most_steps) return true;
    Index least = 0, most = 0;
    for (std::size_t rest = n + 1; rest < count_; ++rest) {
      least += axes_[rest].stride * axes_[rest].lowest;
      most += axes_[rest].stride * axes_[rest].highest;
    }
    const auto [stride, lowest, highest] = axes_[n];
    if (stride == 0) {
      return search(n + 1, low, high, not_all_zero && lowest == 0 && highest == 0);
    }
    const Index first = std::max(lowest, -floor_divide(most - low, stride));
    const Index last = std::min(highest, floor_divide(high - least, stride));
    for (Index x = first; x <= last; ++x) {
      if (search(n + 1, low - stride * x, high - stride * x, not_all_zero && x == 0)) return true;
    }
    return false;
  }

  std::array<Axis, 8> axes_;
  std::size_t count_ = 0;
  Index steps_ = 0;
};

/// Addresses of the lowest and the highest element.
template <class T>
EIGEN_ALWAYS_INLINE std::pair<std::intptr_t, std::intptr_t> extent(const View<T, 4>& x) {
  auto low = reinterpret_cast<std::intptr_t>(x.data), high = low;
#pragma GCC unroll 4
  for (std::size_t axis = 0; axis < 4; ++axis) {
    const Index reach = (x.shape[axis] - 1) * x.strides[axis] * static_cast<Index>(sizeof(T));
    (reach < 0 ? low : high) += reach;
  }
  return {low, high};
}

/// Whether an element of a and an element of b have a byte in common. Views that interleave without
/// sharing elements, such as the slots of one packed projection, do not.
template <class A, class B>
EIGEN_DONT_INLINE bool share_elements(const View<A, 4>& a, const View<B, 4>& b) {
  Lattice difference;  // of the addresses
  for (std::size_t axis = 0; axis < 4; ++axis) {
    difference.add(a.strides[axis] * static_cast<Index>(sizeof(A)), 0, a.shape[axis] - 1);
    difference.add(b.strides[axis] * static_cast<Index>(sizeof(B)), 1 - b.shape[axis], 0);
  }
  const auto offset = static_cast<Index>(reinterpret_cast<std::intptr_t>(a.data) -
                                         reinterpret_cast<std::intptr_t>(b.data));
  return difference.reaches(1 - static_cast<Index>(sizeof(A)) - offset,
                            static_cast<Index>(sizeof(B)) - 1 - offset);
}

/// Whether two elements of x have a byte in common, as where an axis is repeated by a stride of 0.
template <class T>
EIGEN_DONT_INLINE bool overlaps_itself(const View<T, 4>& x) {
  Lattice difference;
  for (std::size_t axis = 0; axis < 4; ++axis) {
    const Index last = x.shape[axis] - 1, stride = x.strides[axis];
    if (last == 0) continue;
    if (stride == 0) return true;
    for (std::size_t other = 0; other < axis; ++other) {
      // A step along one and none along the other, or the other way round.
      if (x.shape[other] > 1 && std::abs(x.strides[other]) == std::abs(stride)) return true;
    }
    difference.add(stride * static_cast<Index>(sizeof(T)), -last, last);
  }
  const auto size = static_cast<Index>(sizeof(T));
  return difference.reaches(1 - size, size - 1, true);
}

template <class Out, class In>
EIGEN_ALWAYS_INLINE void check_not_aliased(const char* function, const View<Out, 4>& out,
                                           const View<In, 4>& in, const char* name,
                                           const char* out_name = "the output") {
  if (out.size() == 0 || in.size() == 0) return;
  const auto [out_first, out_last] = extent(out);
  const auto [in_first, in_last] = extent(in);
  if (out_last + static_cast<Index>(sizeof(Out)) <= in_first ||
      in_last + static_cast<Index>(sizeof(In)) <= out_first) {
    return;
  }
  if (share_elements(out, in)) {
    fail(function, out_name, " shares elements with ", name, "; ", out_name, " ", out.shape, ", ",
         name, " ", in.shape, " (batch, heads, seq, dim)");
  }
}

/// Refuses an output of which two elements are one, as by a stride of 0.
template <class Out>
EIGEN_ALWAYS_INLINE void check_writable(const char* function, const View<Out, 4>& out,
                                        const char* name) {
  if (out.size() == 0) return;
  // Axes within one another, as most are.
  bool nested = true;
  Index reach = 1;
#pragma GCC unroll 4
  for (std::size_t step = 0; step < 4; ++step) {
    const std::size_t axis = 3 - step;
    if (out.shape[axis] == 1) continue;
    nested = nested && out.strides[axis] >= reach;
    reach = out.strides[axis] * out.shape[axis];
  }
  if (!nested && overlaps_itself(out)) {
    fail(function, name, " has elements that overlap one another: shape ", out.shape, ", strides ",
         out.strides, " (batch, heads, seq, dim)");
  }
}

}  // namespace heed::detail
