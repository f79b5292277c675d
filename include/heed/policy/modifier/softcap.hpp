#pragma once

#include <cmath>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"
#include "heed/simd/dual.hpp"

namespace heed {

struct Softcap : detail::ModifierTag {
  double cap;

  explicit Softcap(double c) : cap(c) {}
  template <class Accumulator>
  struct Bound {
    Accumulator cap, inverse;
    template <class T>
    EIGEN_ALWAYS_INLINE T apply(const T& s) const {
      using std::tanh;
      return T(cap) * T(tanh(T(s * T(inverse))));
    }
    Accumulator operator()(const Accumulator& s, Index, Index, Index, Index) const {
      return apply(s);
    }
    template <class L>
    EIGEN_ALWAYS_INLINE L lanes(L s, Index, Index, L, Index) const {
      return apply(s);
    }
    template <class T>
    EIGEN_ALWAYS_INLINE detail::Dual<T, 1> differentiate(const T& s, Index, Index, const auto&,
                                                         Index) const {
      using std::tanh;
      const T t(tanh(T(s * T(inverse))));
      return {T(T(cap) * t), {T(T(Accumulator(1.0)) - T(t * t))}};
    }
  };
  template <class Accumulator>
  auto bind(const detail::Problem&) const {
    return Bound<Accumulator>{Accumulator(cap), Accumulator(1 / cap)};
  }
};

/// cap * tanh(score / cap): scores stay within the cap (Bello et al., 2016; Gemma 2, 2024).
/// std::invalid_argument unless the cap is positive.
inline Softcap softcap(double cap) {
  if (!(cap > 0)) detail::fail("softcap", "the cap is ", cap);
  return Softcap(cap);
}

}  // namespace heed
