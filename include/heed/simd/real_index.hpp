#pragma once

#include <cmath>
#include <concepts>
#include <type_traits>

#include "heed/core/view.hpp"
#include "heed/simd/dual.hpp"
#include "heed/simd/lanes.hpp"

namespace heed {
namespace detail {

/// An index as a user's function sees it: in arithmetic it is a real number, so that (j - i) / 2
/// means the same whether the function runs on numbers or on vectors of them; where an Index is
/// asked for, as between the brackets of a table, it is one.
template <class Number>
struct RealIndex {
  Index value;

  operator Index() const { return value; }
  template <class Scalar>
  operator Lanes<Scalar>() const {
    return Lanes<Scalar>(value);
  }
  Number real() const { return Number(static_cast<double>(value)); }
};

template <class T>
inline constexpr bool is_real_index = false;
template <class Number>
inline constexpr bool is_real_index<RealIndex<Number>> = true;

template <class T>
struct NumberOf {};
template <class Number>
struct NumberOf<RealIndex<Number>> {
  using type = Number;
};

/// Operands of which at least one is a RealIndex.
template <class A, class B>
concept WithRealIndex = is_real_index<A> || is_real_index<B>;

/// An operand as a number: an index by its value, a plain number in the type that the other
/// operand's indices have; vectors and dual numbers as they are.
template <class Other, class T>
EIGEN_ALWAYS_INLINE auto real(const T& x) {
  if constexpr (is_real_index<T>) {
    return x.real();
  } else if constexpr (std::is_arithmetic_v<T>) {
    return typename NumberOf<Other>::type(static_cast<double>(x));
  } else {
    return x;
  }
}

template <class A, class B>
  requires WithRealIndex<A, B>
EIGEN_ALWAYS_INLINE auto operator+(const A& a, const B& b) {
  return real<B>(a) + real<A>(b);
}
template <class A, class B>
  requires WithRealIndex<A, B>
EIGEN_ALWAYS_INLINE auto operator-(const A& a, const B& b) {
  return real<B>(a) - real<A>(b);
}
template <class A, class B>
  requires WithRealIndex<A, B>
EIGEN_ALWAYS_INLINE auto operator*(const A& a, const B& b) {
  return real<B>(a) * real<A>(b);
}
template <class A, class B>
  requires WithRealIndex<A, B>
EIGEN_ALWAYS_INLINE auto operator/(const A& a, const B& b) {
  return real<B>(a) / real<A>(b);
}
template <class A, class B>
  requires WithRealIndex<A, B>
EIGEN_ALWAYS_INLINE auto operator<(const A& a, const B& b) {
  return real<B>(a) < real<A>(b);
}
template <class A, class B>
  requires WithRealIndex<A, B>
EIGEN_ALWAYS_INLINE auto operator<=(const A& a, const B& b) {
  return real<B>(a) <= real<A>(b);
}
template <class A, class B>
  requires WithRealIndex<A, B>
EIGEN_ALWAYS_INLINE auto operator>(const A& a, const B& b) {
  return real<B>(a) > real<A>(b);
}
template <class A, class B>
  requires WithRealIndex<A, B>
EIGEN_ALWAYS_INLINE auto operator>=(const A& a, const B& b) {
  return real<B>(a) >= real<A>(b);
}
template <class A, class B>
  requires WithRealIndex<A, B>
EIGEN_ALWAYS_INLINE auto operator==(const A& a, const B& b) {
  return real<B>(a) == real<A>(b);
}
template <class A, class B>
  requires WithRealIndex<A, B>
EIGEN_ALWAYS_INLINE auto operator!=(const A& a, const B& b) {
  return real<B>(a) != real<A>(b);
}
template <class Number>
Number operator-(RealIndex<Number> a) {
  return -a.real();
}
template <class Number>
Number operator+(RealIndex<Number> a) {
  return a.real();
}

/// What a function of one number, found as it is for numbers, makes of an index.
template <class Number>
Number abs(RealIndex<Number> a) {
  using std::abs;
  return Number(abs(a.real()));
}
template <class Number>
Number sqrt(RealIndex<Number> a) {
  using std::sqrt;
  return Number(sqrt(a.real()));
}
template <class Number>
Number exp(RealIndex<Number> a) {
  using std::exp;
  return Number(exp(a.real()));
}
template <class Number>
Number log(RealIndex<Number> a) {
  using std::log;
  return Number(log(a.real()));
}
template <class Number>
Number log1p(RealIndex<Number> a) {
  using std::log1p;
  return Number(log1p(a.real()));
}
template <class Number>
Number tanh(RealIndex<Number> a) {
  using std::tanh;
  return Number(tanh(a.real()));
}
template <class Number>
Number sin(RealIndex<Number> a) {
  using std::sin;
  return Number(sin(a.real()));
}
template <class Number>
Number cos(RealIndex<Number> a) {
  using std::cos;
  return Number(cos(a.real()));
}

}  // namespace detail

/// The remainder of a whole number by a positive one, from 0 to divisor - 1, for functions that run
/// on numbers and on vectors of them: modulo(j - i, 2) is the parity of a distance.
template <class T>
EIGEN_ALWAYS_INLINE auto modulo(const T& x, Index divisor) {
  if constexpr (std::integral<T>) {
    const Index rest = static_cast<Index>(x) % divisor;
    return rest < 0 ? rest + divisor : rest;
  } else if constexpr (detail::is_real_index<T>) {
    return modulo(x.value, divisor);
  } else {
    using std::floor;
    const auto step = static_cast<T>(static_cast<double>(divisor));
    // The quotient is rounded, and may come out at the whole number above: then the rest is
    // negative.
    const T rest(x - T(floor(T(x / step))) * step);
    const T zero(0.0);
    return T(select(rest < zero, T(rest + step), T(select(rest < step, rest, T(rest - step)))));
  }
}

}  // namespace heed
