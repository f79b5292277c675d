#pragma once

#include <cmath>

#include "heed/core/error.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"
#include "heed/simd/math.hpp"

namespace heed {

struct Softcap : ModifierPolicy {
  double cap;

  explicit Softcap(double c) : cap(c) {}
  template <class Number>
  struct Bound {
    static constexpr ModifierTraits traits{.vectorised = true, .ignores_pair = true};
    Number cap, inverse;
    template <class T>
    EIGEN_ALWAYS_INLINE T operator()(const T& s, Index, Index, const auto&, const auto&) const {
      using std::tanh;
      return T(tanh(T(s * T(inverse)))) * T(cap);
    }
  };
  template <class Number>
  auto bind(const Problem& problem) const {
    return Bound<Number>{
        parameter_as<Number>(problem, "the cap of softcap", cap),
        parameter_as<Number>(problem, "the inverse of the cap of softcap", 1 / cap)};
  }
};

/// cap * tanh(score / cap): scores stay within the cap (Bello et al., 2016; Gemma 2, 2024).
/// std::invalid_argument unless the cap is positive, and where it or its inverse is not finite in
/// the number type of the call.
inline Softcap softcap(double cap) {
  if (!(cap > 0) || std::isinf(cap)) detail::fail("softcap", "the cap is ", cap);
  return Softcap(cap);
}

}  // namespace heed
