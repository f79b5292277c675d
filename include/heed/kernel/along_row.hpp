#pragma once

#include <array>
#include <cstddef>
#include <type_traits>

#include "heed/kernel/softmax_row.hpp"
#include "heed/simd/convert.hpp"
#include "heed/simd/lanes.hpp"
#include "heed/simd/select.hpp"

namespace heed::detail {

/// What along_row hands to its body: load(from) gives the numbers that stand at one place of a row,
/// widened, and store(x, to) puts them there; whole vectors, or the last `count` with zeros behind.
template <class Number>
struct WholeVector {
  Index at;
  template <class From>
  EIGEN_ALWAYS_INLINE Lanes<Number> load(const From* from) const {
    return load_widened<Number>(from + at);
  }
  template <class To>
  EIGEN_ALWAYS_INLINE void store(Lanes<Number> x, To* to) const {
    store_narrowed(x, to + at);
  }
};
template <class Number>
struct PartOfVector {
  Index at, count;
  template <class From>
  EIGEN_ALWAYS_INLINE Lanes<Number> load(const From* from) const {
    return load_some<Number>(from + at, count, Number(0));
  }
  template <class To>
  EIGEN_ALWAYS_INLINE void store(Lanes<Number> x, To* to) const {
    store_some(x, to + at, count);
  }
};
template <class Number>
struct OneNumber {
  Index at;
  template <class From>
  Number load(const From* from) const {
    return static_cast<Number>(from[at]);
  }
  template <class To>
  void store(const Number& x, To* to) const {
    to[at] = static_cast<To>(x);
  }
};

/// The numbers that a body of along_row computes with.
template <class Number>
struct AlongType {
  using type = Number;
};
template <Laned Number>
struct AlongType<Number> {
  using type = Lanes<Number>;
};
template <class Number>
using Along = typename AlongType<Number>::type;

/// body(place) for every place of a row of `count` numbers: vector by vector, or number by number
/// where the numbers have no Lanes.
template <class Number, class Body>
EIGEN_ALWAYS_INLINE void along_row(Index count, const Body& body) {
  Index at = 0;
  if constexpr (Laned<Number>) {
    constexpr Index size = Lanes<Number>::size;
    for (; at + size <= count; at += size) body(WholeVector<Number>{at});
    if (at < count) body(PartOfVector<Number>{at, count - at});
  } else {
    for (; at < count; ++at) body(OneNumber<Number>{at});
  }
}

/// The sums over a row of the N numbers that f(place) gives.
template <class Number, std::size_t N, class F>
EIGEN_ALWAYS_INLINE std::array<Number, N> sums_along_row(Index count, const F& f) {
  std::array<Number, N> result;
  if constexpr (Laned<Number>) {
    using L = Lanes<Number>;
    constexpr int vectors = 4;  // side by side, as each sum is a chain of additions
    L sums[N][vectors];
    for (auto& sum : sums) {
      for (L& lanes : sum) lanes = L(0);
    }
    const auto add = [&](const std::array<L, N>& to_add, int v) __attribute__((always_inline)) {
      for (std::size_t n = 0; n < N; ++n) sums[n][v] += to_add[n];
    };
    Index at = 0;
    for (; at + vectors * L::size <= count; at += vectors * L::size) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) add(f(WholeVector<Number>{at + v * L::size}), v);
    }
    for (; at + L::size <= count; at += L::size) add(f(WholeVector<Number>{at}), 0);
    if (at < count) {
      const auto part = f(PartOfVector<Number>{at, count - at});
      for (std::size_t n = 0; n < N; ++n) {
        sums[n][1] += select(L::counting(0) < L(count - at), part[n], L(0));
      }
    }
    for (std::size_t n = 0; n < N; ++n) {
      result[n] = sum_of_lanes((sums[n][0] + sums[n][1]) + (sums[n][2] + sums[n][3]));
    }
  } else {
    result.fill(Number(0.0));
    for (Index at = 0; at < count; ++at) {
      const auto part = f(OneNumber<Number>{at});
      for (std::size_t n = 0; n < N; ++n) result[n] += part[n];
    }
  }
  return result;
}

/// Whether a row is 0 throughout; NaN is not.
template <class Number, class From>
bool all_zero(const From* row, Index count) {
  for (Index at = 0; at < count; ++at) {
    if (!(static_cast<Number>(row[at]) == Number(0.0))) return false;
  }
  return true;
}

}  // namespace heed::detail
