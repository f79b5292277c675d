#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <utility>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"

namespace heed::detail {

/// The bytes of a View: elements of `size` bytes at base + sum over axes of index * stride.
struct ByteBox {
  std::intptr_t base;
  std::array<Index, 4> shape, strides;  // strides in bytes
  Index size;
};

template <class T>
ByteBox byte_box(const View<T, 4>& x) {
  constexpr auto size = static_cast<Index>(sizeof(T));
  ByteBox box{reinterpret_cast<std::intptr_t>(x.data), x.shape, x.strides, size};
  for (Index& stride : box.strides) stride *= size;
  return box;
}

/// The sums over k of c_k * stride_k for integers 0 <= c_k <= count_k, and whether one of them lies
/// in an interval.
class AddressSums {
 public:
  /// Another term, of any sign; returns what its most negative multiple is, by which the sums are
  /// shifted so that they begin at 0.
  Index add(Index stride, Index count) {
    if (stride == 0 || count == 0) return 0;
    const Index step = stride < 0 ? -stride : stride;
    auto* const end = terms_.data() + used_;
    auto* const same =
        std::find_if(terms_.data(), end, [step](const Term& t) { return t.stride == step; });
    if (same == end) {
      terms_[used_++] = {step, count};
    } else {
      same->count += count;
    }
    return stride < 0 ? stride * count : 0;
  }

  /// Whether a sum lies in low .. high. Where the strides are nested, which those of tensors are,
  /// two or three multiples of each are possible; an answer that takes too long is true.
  bool reach(Index low, Index high) {
    std::sort(terms_.begin(), terms_.begin() + static_cast<std::ptrdiff_t>(used_),
              [](const Term& a, const Term& b) { return a.stride > b.stride; });
    for (std::size_t k = used_; k-- > 0;) {
      const Rest& less = rest_[k + 1];
      const auto& [stride, count] = terms_[k];
      Rest& rest = rest_[k];
      rest.largest = less.largest + stride * count;
      rest.divisor = std::gcd(less.divisor, stride);
      rest.complete = less.complete && (less.divisor == 0 || less.divisor == rest.divisor) &&
                      stride <= less.largest + rest.divisor;
    }
    int steps = 1 << 16;
    return reach(0, low, high, steps);
  }

 private:
  struct Term {
    Index stride, count;
  };
  /// The sums of the terms from one on: multiples of the divisor up to the largest, and all of
  /// these if complete.
  struct Rest {
    Index largest = 0, divisor = 0;
    bool complete = true;
  };

  bool reach(std::size_t k, Index low, Index high, int& steps) const {
    const Rest& all = rest_[k];
    low = std::max<Index>(low, 0);
    high = std::min(high, all.largest);
    if (low > high) return false;
    if (k == used_) return true;
    low = (low + all.divisor - 1) / all.divisor * all.divisor;
    if (low > high) return false;
    if (all.complete || --steps < 0) return true;
    const auto& [stride, count] = terms_[k];
    const Index short_of = std::max<Index>(low - rest_[k + 1].largest, 0);
    const Index last = std::min(count, high / stride);
    for (Index c = (short_of + stride - 1) / stride; c <= last; ++c) {
      if (reach(k + 1, low - c * stride, high - c * stride, steps)) return true;
    }
    return false;
  }

  std::array<Term, 8> terms_{};
  std::array<Rest, 9> rest_{};
  std::size_t used_ = 0;
};

/// Whether an element of a and one of b have a byte in common; exact, but for AddressSums's limit.
/// Views that interleave, such as the slots of one packed projection, have none.
EIGEN_DONT_INLINE inline bool share_bytes(const ByteBox& a, const ByteBox& b) {
  AddressSums sums;
  Index zero =
      static_cast<Index>(b.base - a.base);  // the sum at which both elements begin together
  for (std::size_t axis = 0; axis < 4; ++axis) {
    if (a.shape[axis] < 1 || b.shape[axis] < 1) return false;
    zero -= sums.add(a.strides[axis], a.shape[axis] - 1);
    zero -= sums.add(-b.strides[axis], b.shape[axis] - 1);
  }
  return sums.reach(zero - a.size + 1, zero + b.size - 1);
}

/// Whether two elements have a byte in common: whether a difference of indices other than 0 leads
/// to less than an element's size. Of a difference and its negative, one begins with a positive
/// index.
EIGEN_DONT_INLINE inline bool overlaps_itself(const ByteBox& x) {
  if (std::any_of(x.shape.begin(), x.shape.end(), [](Index n) { return n < 1; })) return false;
  std::array<std::pair<Index, Index>, 4> axes;  // (stride, count)
  for (std::size_t axis = 0; axis < 4; ++axis) {
    const Index count = x.shape[axis] - 1;
    axes[axis] = {count == 0 ? 0 : std::abs(x.strides[axis]), count};
  }
  std::sort(axes.begin(), axes.end());
  Index reach = x.size;
  const bool nested = std::all_of(axes.begin(), axes.end(), [&reach](const auto& axis) {
    const bool beyond = axis.second == 0 || axis.first >= reach;
    reach += axis.first * axis.second;
    return beyond;
  });
  if (nested) return false;
  for (std::size_t first = 0; first < 4; ++first) {
    if (x.shape[first] == 1) continue;
    AddressSums sums;
    Index zero = -x.strides[first];
    zero -= sums.add(x.strides[first], x.shape[first] - 2);
    for (std::size_t axis = first + 1; axis < 4; ++axis) {
      zero -= sums.add(x.strides[axis], x.shape[axis] - 1);
      zero -= sums.add(-x.strides[axis], x.shape[axis] - 1);
    }
    if (sums.reach(zero - x.size + 1, zero + x.size - 1)) return true;
  }
  return false;
}

/// Address of the first byte, and of the one behind the last.
template <class T>
EIGEN_ALWAYS_INLINE std::pair<std::intptr_t, std::intptr_t> extent(const View<T, 4>& x) {
  auto low = reinterpret_cast<std::intptr_t>(x.data), high = low;
#pragma GCC unroll 4
  for (std::size_t axis = 0; axis < 4; ++axis) {
    const Index reach = (x.shape[axis] - 1) * x.strides[axis] * static_cast<Index>(sizeof(T));
    (reach < 0 ? low : high) += reach;
  }
  return {low, high + static_cast<std::intptr_t>(sizeof(T))};
}

template <class Out, class In>
EIGEN_ALWAYS_INLINE void check_not_aliased(const char* function, const View<Out, 4>& out,
                                           const View<In, 4>& in, const char* name,
                                           const char* out_name = "the output") {
  const auto [out_begin, out_end] = extent(out);
  const auto [in_begin, in_end] = extent(in);
  if (out_end <= in_begin || in_end <= out_begin) return;
  if (share_bytes(byte_box(out), byte_box(in))) {
    fail(function, out_name, " shares elements with ", name, "; ", out_name, " ", out.shape, ", ",
         name, " ", in.shape, " (batch, heads, seq, dim)");
  }
}

/// The same elements in the same places.
template <class Out, class In>
bool same_elements(const View<Out, 4>& out, const View<In, 4>& in) {
  bool same = out.data == in.data;
  for (std::size_t axis = 0; axis < 4; ++axis) {
    same = same && (in.shape[axis] <= 1 || out.strides[axis] == in.strides[axis]);
  }
  return same;
}

/// Refuses what is written to where elements of it overlap, as those of a repeated axis do.
template <class T>
EIGEN_ALWAYS_INLINE void check_writable(const char* function, const View<T, 4>& x,
                                        const char* name) {
  // Nested as they come, which a tensor's axes are, strides overlap nothing.
  Index reach = 1;
  bool nested = true;
  for (std::size_t axis = 4; axis-- > 0;) {
    if (x.shape[axis] == 1) continue;
    const Index stride = x.strides[axis] < 0 ? -x.strides[axis] : x.strides[axis];
    nested = nested && stride >= reach;
    reach += (x.shape[axis] - 1) * stride;
  }
  if (!nested && overlaps_itself(byte_box(x))) {
    fail(function, name, " cannot be written to, for elements of it overlap; it has shape ",
         x.shape, " and strides ", x.strides, " (batch, heads, seq, dim)");
  }
}

}  // namespace heed::detail
