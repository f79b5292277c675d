#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>

#include "heed/kernel/softmax_row.hpp"
#include "heed/simd/convert.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// The two lanes of each pair (2c, 2c + 1) in each other's place.
template <class Number>
EIGEN_ALWAYS_INLINE Lanes<Number> swap_neighbours(Lanes<Number> x) {
  using L = Lanes<Number>;
  if constexpr (L::size == 1) {
    return x;
  } else {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
    return [&]<std::size_t... lane>(std::index_sequence<lane...>) {
      return L::from_ints(
          __builtin_shufflevector(x.ints(), x.ints(), static_cast<int>(lane ^ 1)...));
    }(std::make_index_sequence<length(L::size)>());
#else
    Number lanes[length(L::size)];
    x.store(lanes);
    for (Index lane = 0; lane < L::size; lane += 2) std::swap(lanes[lane], lanes[lane + 1]);
    return L::load(lanes);
#endif
  }
}

/// Turns the points (from[c], from[pairs + c]), each by the angle of its own cosine and sine. `to`
/// may be `from`.
template <Laned Number, class Scalar>
EIGEN_ALWAYS_INLINE void rotate_halves(const Scalar* from, Scalar* to, const Number* cosine,
                                       const Number* sine, Index pairs) {
  using L = Lanes<Number>;
  Index c = 0;
  for (; c + L::size <= pairs; c += L::size) {
    const L x = load_widened<Number>(from + c), y = load_widened<Number>(from + pairs + c);
    const L cos = L::load(cosine + c), sin = L::load(sine + c);
    store_narrowed(fma(x, cos, -(y * sin)), to + c);
    store_narrowed(fma(y, cos, x * sin), to + pairs + c);
  }
  if (const Index rest = pairs - c; rest > 0) {
    const L x = load_some<Number>(from + c, rest, 0),
            y = load_some<Number>(from + pairs + c, rest, 0);
    const L cos = load_some<Number>(cosine + c, rest, 0),
            sin = load_some<Number>(sine + c, rest, 0);
    store_some(fma(x, cos, -(y * sin)), to + c, rest);
    store_some(fma(y, cos, x * sin), to + pairs + c, rest);
  }
}

/// Turns the points (from[2c], from[2c + 1]). The cosine of a pair stands twice in its table, the
/// sine once with the sign that it has in x cos - y sin and once with that in y cos + x sin.
template <Laned Number, class Scalar>
EIGEN_ALWAYS_INLINE void rotate_neighbours(const Scalar* from, Scalar* to, const Number* cosine,
                                           const Number* sine, Index pairs) {
  using L = Lanes<Number>;
  if constexpr (L::size == 1) {
    for (Index c = 0; c < 2 * pairs; c += 2) {
      const auto x = static_cast<Number>(from[c]), y = static_cast<Number>(from[c + 1]);
      to[c] = static_cast<Scalar>(x * cosine[c] + y * sine[c]);
      to[c + 1] = static_cast<Scalar>(y * cosine[c + 1] + x * sine[c + 1]);
    }
  } else {
    Index c = 0;
    for (; c + L::size <= 2 * pairs; c += L::size) {
      const L x = load_widened<Number>(from + c);
      store_narrowed(fma(x, L::load(cosine + c), swap_neighbours(x) * L::load(sine + c)), to + c);
    }
    if (const Index rest = 2 * pairs - c; rest > 0) {
      const L x = load_some<Number>(from + c, rest, 0);
      const L cos = load_some<Number>(cosine + c, rest, 0),
              sin = load_some<Number>(sine + c, rest, 0);
      store_some(fma(x, cos, swap_neighbours(x) * sin), to + c, rest);
    }
  }
}

}  // namespace heed::detail
