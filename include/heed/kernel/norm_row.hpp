#pragma once

#include <array>
#include <cmath>

#include "heed/kernel/along_row.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// What a row is normalised by: (x - mean) factor.
template <class Number>
struct RowScale {
  Number mean, factor;
};

/// Centred: to mean 0 and variance 1; otherwise the mean is 0 and the mean square becomes 1. eps is
/// added to the variance or the mean square.
template <bool Centred, class Number, class From>
RowScale<Number> row_scale(const From* x, Index count, const Number& eps) {
  using std::sqrt;
  using T = Along<Number>;
  const auto length = static_cast<Number>(static_cast<double>(count));
  Number mean(0.0);
  if constexpr (Centred) {
    mean = sums_along_row<Number, 1>(
        count, [x](const auto& place) { return std::array{T(place.load(x))}; })[0];
    mean = mean / length;
  }
  const Number square = sums_along_row<Number, 1>(count, [x, mean](const auto& place) {
    const T y = place.load(x) - T(mean);
    return std::array{T(y * y)};
  })[0];
  return {mean, Number(Number(1.0) / sqrt(Number(square / length + eps)))};
}

/// to = (x - mean) factor weight + bias; without a bias where it is null. `to` may be `x`.
template <bool Centred, class Number, class From, class To>
void norm_row(const From* x, To* to, const Number* weight, const Number* bias, Index count,
              const Number& eps) {
  using T = Along<Number>;
  const auto scale = row_scale<Centred, Number>(x, count, eps);
  along_row<Number>(count, [&](const auto& place) __attribute__((always_inline)) {
    T y = place.load(x);
    if constexpr (Centred) y = y - T(scale.mean);
    y = T(y * T(scale.factor)) * place.load(weight);
    if (bias) y += place.load(bias);
    place.store(y, to);
  });
}

/// The gradient of x from that of the result, g, with y the normalised row and h = g weight:
///
///   dx = factor (h - mean of h - y mean of (h y)), without the second term where not centred
///
/// and, added to what is there, dweight += g y and, unless it is null, dbias += g. A row of zeros
/// for g adds nothing and gives zeros, whatever x is.
template <bool Centred, class Number, class From, class Grad, class To>
void norm_backward_row(const From* x, const Grad* g, To* dx, const Number* weight, Number* dweight,
                       Number* dbias, Index count, const Number& eps) {
  using T = Along<Number>;
  if (all_zero<Number>(g, count)) {
    return along_row<Number>(count, [=](const auto& place) { place.store(T(0.0), dx); });
  }
  const auto scale = row_scale<Centred, Number>(x, count, eps);
  const auto normalised = [&](const auto& place) __attribute__((always_inline)) {
    return T(T(place.load(x) - T(scale.mean)) * T(scale.factor));
  };
  const auto length = static_cast<Number>(static_cast<double>(count));
  const auto sums = sums_along_row<Number, 2>(count, [&](const auto& place) {
    const T h = place.load(g) * place.load(weight);
    return std::array{h, T(h * normalised(place))};
  });
  const Number mean = Centred ? Number(sums[0] / length) : Number(0.0), along = sums[1] / length;
  along_row<Number>(count, [&](const auto& place) __attribute__((always_inline)) {
    const T y = normalised(place), grad = place.load(g), h = grad * place.load(weight);
    place.store(T(T(T(h - T(mean)) - T(y * T(along))) * T(scale.factor)), dx);
    place.store(T(place.load(dweight) + T(grad * y)), dweight);
    if (dbias) place.store(T(place.load(dbias) + grad), dbias);
  });
}

}  // namespace heed::detail
