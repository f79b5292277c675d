#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"

namespace heed::detail {

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

/// Whether the first element of a is one of b's elements. Views that interleave without sharing
/// elements, such as the slots of one packed projection, do not alias.
template <class A, class B>
bool begins_within(const View<A, 4>& a, const View<B, 4>& b) {
  const auto* base = reinterpret_cast<const char*>(b.data);
  std::array<std::pair<Index, Index>, 4> axes;  // (stride in bytes, extent), strides made positive
  for (std::size_t axis = 0; axis < 4; ++axis) {
    const Index stride = b.strides[axis] * static_cast<Index>(sizeof(B));
    if (stride < 0) base += stride * (b.shape[axis] - 1);
    axes[axis] = {stride < 0 ? -stride : stride, b.shape[axis]};
  }
  std::sort(axes.begin(), axes.end(), std::greater<>());
  Index offset = static_cast<Index>(reinterpret_cast<std::intptr_t>(a.data) -
                                    reinterpret_cast<std::intptr_t>(base));
  for (const auto& [stride, extent] : axes) {
    if (offset < 0) return false;
    if (stride > 0) offset -= std::min(offset / stride, extent - 1) * stride;
  }
  return offset >= 0 && offset < static_cast<Index>(sizeof(B));
}

template <class Out, class In>
EIGEN_ALWAYS_INLINE void check_not_aliased(const char* function, const View<Out, 4>& out,
                                           const View<In, 4>& in, const char* name,
                                           const char* out_name = "the output") {
  const auto [out_first, out_last] = extent(out);
  const auto [in_first, in_last] = extent(in);
  if (out_last < in_first || in_last < out_first) return;
  if (out.size() == 0 || in.size() == 0) return;
  if (begins_within(out, in) || begins_within(in, out)) {
    fail(function, out_name, " shares elements with ", name, "; ", out_name, " ", out.shape, ", ",
         name, " ", in.shape, " (batch, heads, seq, dim)");
  }
}

}  // namespace heed::detail
