#pragma once

#include <array>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <type_traits>

#include "heed/simd/lanes.hpp"
#include "heed/simd/select.hpp"

namespace heed::detail {

/// A value and its derivatives by N variables, carried through arithmetic by the chain rule
/// (Wengert, "A simple automatic derivative evaluation program", 1964): a user's lambda that runs
/// on it is differentiated without being told how. T is a number or Lanes of numbers. Comparisons
/// look at the values. Where a function has no derivative (abs and sqrt at 0) it is taken as 0.
template <class T, std::size_t N>
struct Dual {
  T value;
  std::array<T, N> slopes;

  Dual() = default;
  Dual(const T& v, const std::array<T, N>& d) : value(v), slopes(d) {}
  Dual(const T& constant) : value(constant) { slopes.fill(T(0.0)); }
  template <class C>
    requires(std::is_arithmetic_v<C> && !std::same_as<C, T>)
  Dual(C constant) : Dual(T(static_cast<double>(constant))) {}
  /// Variable number n.
  static EIGEN_ALWAYS_INLINE Dual variable(const T& v, std::size_t n) {
    Dual result(v);
    result.slopes[n] = T(1.0);
    return result;
  }

  EIGEN_ALWAYS_INLINE friend Dual operator+(const Dual& a, const Dual& b) {
    return combined(T(a.value + b.value), a, b,
                    [](const T& da, const T& db) -> T { return da + db; });
  }
  EIGEN_ALWAYS_INLINE friend Dual operator-(const Dual& a, const Dual& b) {
    return combined(T(a.value - b.value), a, b,
                    [](const T& da, const T& db) -> T { return da - db; });
  }
  EIGEN_ALWAYS_INLINE friend Dual operator*(const Dual& a, const Dual& b) {
    return combined(T(a.value * b.value), a, b, [&](const T& da, const T& db) -> T {
      return T(da * b.value) + T(a.value * db);
    });
  }
  EIGEN_ALWAYS_INLINE friend Dual operator/(const Dual& a, const Dual& b) {
    const T quotient(a.value / b.value);
    return combined(quotient, a, b, [&](const T& da, const T& db) -> T {
      return T(da - T(quotient * db)) / b.value;
    });
  }
  // A constant has no derivative, and 0 times an infinite factor would be NaN.
  EIGEN_ALWAYS_INLINE friend Dual operator*(const Dual& a, const T& c) {
    return chain(a, T(a.value * c), c);
  }
  EIGEN_ALWAYS_INLINE friend Dual operator*(const T& c, const Dual& a) { return a * c; }
  EIGEN_ALWAYS_INLINE friend Dual operator/(const Dual& a, const T& c) {
    return chain(a, T(a.value / c), T(T(1.0) / c));
  }
  template <class C>
    requires(std::is_arithmetic_v<C> && !std::same_as<C, T>)
  EIGEN_ALWAYS_INLINE friend Dual operator*(const Dual& a, C c) {
    return a * T(static_cast<double>(c));
  }
  template <class C>
    requires(std::is_arithmetic_v<C> && !std::same_as<C, T>)
  EIGEN_ALWAYS_INLINE friend Dual operator*(C c, const Dual& a) {
    return a * T(static_cast<double>(c));
  }
  template <class C>
    requires(std::is_arithmetic_v<C> && !std::same_as<C, T>)
  EIGEN_ALWAYS_INLINE friend Dual operator/(const Dual& a, C c) {
    return a / T(static_cast<double>(c));
  }

  EIGEN_ALWAYS_INLINE friend Dual operator-(const Dual& a) {
    return chain(a, T(-a.value), T(-1.0));
  }
  EIGEN_ALWAYS_INLINE friend Dual operator+(const Dual& a) { return a; }
  template <class Other>
  EIGEN_ALWAYS_INLINE Dual& operator+=(const Other& other) {
    return *this = *this + other;
  }
  template <class Other>
  EIGEN_ALWAYS_INLINE Dual& operator-=(const Other& other) {
    return *this = *this - other;
  }
  template <class Other>
  EIGEN_ALWAYS_INLINE Dual& operator*=(const Other& other) {
    return *this = *this * other;
  }
  template <class Other>
  EIGEN_ALWAYS_INLINE Dual& operator/=(const Other& other) {
    return *this = *this / other;
  }

  EIGEN_ALWAYS_INLINE friend auto operator<(const Dual& a, const Dual& b) {
    return a.value < b.value;
  }
  EIGEN_ALWAYS_INLINE friend auto operator<=(const Dual& a, const Dual& b) {
    return a.value <= b.value;
  }
  EIGEN_ALWAYS_INLINE friend auto operator>(const Dual& a, const Dual& b) { return b < a; }
  EIGEN_ALWAYS_INLINE friend auto operator>=(const Dual& a, const Dual& b) { return b <= a; }
  EIGEN_ALWAYS_INLINE friend auto operator==(const Dual& a, const Dual& b) {
    return a.value == b.value;
  }
  EIGEN_ALWAYS_INLINE friend auto operator!=(const Dual& a, const Dual& b) {
    return a.value != b.value;
  }

  /// `condition ? a : b`, lane by lane where there are lanes.
  template <class Condition>
  static EIGEN_ALWAYS_INLINE Dual choose(const Condition& condition, const Dual& a, const Dual& b) {
    return combined(T(select(condition, a.value, b.value)), a, b,
                    [&](const T& da, const T& db) -> T { return select(condition, da, db); });
  }

  friend Dual max(const Dual& a, const Dual& b) { return choose(a.value < b.value, b, a); }
  friend Dual min(const Dual& a, const Dual& b) { return choose(b.value < a.value, b, a); }
  friend Dual abs(const Dual& a) {
    using std::abs;
    const T zero(0.0), one(1.0);
    const T sign = select(a.value < zero, T(-one), T(select(zero < a.value, one, zero)));
    return chain(a, T(abs(a.value)), sign);
  }
  friend Dual sqrt(const Dual& a) {
    using std::sqrt;
    const T zero(0.0), root(sqrt(a.value));
    return chain(a, root, T(select(a.value == zero, zero, T(T(0.5) / root))));
  }
  friend Dual exp(const Dual& a) {
    using std::exp;
    const T power(exp(a.value));
    return chain(a, power, power);
  }
  friend Dual log(const Dual& a) {
    using std::log;
    return chain(a, T(log(a.value)), T(T(1.0) / a.value));
  }
  friend Dual log1p(const Dual& a) {
    using std::log1p;
    return chain(a, T(log1p(a.value)), T(T(1.0) / T(T(1.0) + a.value)));
  }
  friend Dual tanh(const Dual& a) {
    using std::tanh;
    const T t(tanh(a.value));
    return chain(a, t, T(T(1.0) - T(t * t)));
  }
  friend Dual sin(const Dual& a) {
    using std::cos, std::sin;
    return chain(a, T(sin(a.value)), T(cos(a.value)));
  }
  friend Dual cos(const Dual& a) {
    using std::cos, std::sin;
    return chain(a, T(cos(a.value)), T(-T(sin(a.value))));
  }
  friend Dual erf(const Dual& a) {
    using std::erf, std::exp;
    constexpr double two_over_root_pi = 1.12837916709551257390;
    return chain(a, T(erf(a.value)), T(T(two_over_root_pi) * T(exp(T(-T(a.value * a.value))))));
  }
  friend Dual floor(const Dual& a) {
    using std::floor;
    return Dual(T(floor(a.value)));
  }
  friend Dual pow(const Dual& a, double exponent) {
    using std::pow;
    if (exponent == 0) return Dual(T(1.0));
    return chain(a, T(pow(a.value, exponent)), T(T(exponent) * T(pow(a.value, exponent - 1))));
  }

 private:
  /// f(a), of value v and derivative d by a.
  static EIGEN_ALWAYS_INLINE Dual chain(const Dual& a, const T& v, const T& d) {
    return combined(v, a, a, [&d](const T& da, const T&) -> T { return da * d; });
  }
  template <class Rule>
  static EIGEN_ALWAYS_INLINE Dual combined(const T& v, const Dual& a, const Dual& b,
                                           const Rule& rule) {
    Dual result;
    result.value = v;
    for (std::size_t n = 0; n < N; ++n) result.slopes[n] = rule(a.slopes[n], b.slopes[n]);
    return result;
  }
};

template <class T>
inline constexpr bool is_dual = false;
template <class T, std::size_t N>
inline constexpr bool is_dual<Dual<T, N>> = true;

}  // namespace heed::detail

namespace heed {

/// select for lambdas that run on dual numbers too; one of a and b may be a constant.
template <class Condition, class A, class B>
  requires((detail::is_dual<A> || detail::is_dual<B>) &&
           (!std::same_as<A, B> || !std::same_as<Condition, bool>))
EIGEN_ALWAYS_INLINE auto select(const Condition& condition, const A& a, const B& b) {
  using Number = std::conditional_t<detail::is_dual<A>, A, B>;
  return Number::choose(condition, Number(a), Number(b));
}

}  // namespace heed
