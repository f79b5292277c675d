#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

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
    Number digits;  // times a score: twice score / cap, in binary digits
    template <class T>
    EIGEN_ALWAYS_INLINE T operator()(const T& s, Index, Index, const auto&, const auto&) const {
      if constexpr (detail::is_lanes<T>) {
        return detail::tanh_of_digits(s * T(digits)) * T(cap);
      } else {
        using std::tanh;
        return T(tanh(T(s * inverse))) * cap;
      }
    }
  };
  template <class Number>
  auto bind(const Problem& problem) const {
    const auto c = parameter_as<Number>(problem, "the cap of softcap", cap);
    const auto inverse =
        parameter_as<Number>(problem, "the inverse of the cap of softcap", 1 / cap);
    if constexpr (std::is_floating_point_v<Number>) {
      // No less than finite, so that times 0 it is 0.
      constexpr Number factor = static_cast<Number>(2 * detail::log2_e);
      constexpr Number most = std::numeric_limits<Number>::max();
      return Bound<Number>{c, inverse, std::min(inverse, most / factor) * factor};
    } else {
      return Bound<Number>{c, inverse, inverse};
    }
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
