#pragma once

#include <type_traits>
#include <Eigen/Core>

#include "heed/simd/lanes.hpp"

namespace heed {

/// `condition ? a : b` for lambdas that run on vectors of numbers as well as on numbers.
template <class T>
EIGEN_ALWAYS_INLINE T select(bool condition, T a, T b) {
  return condition ? a : b;
}
template <class Scalar>
EIGEN_ALWAYS_INLINE detail::Lanes<Scalar> select(detail::LaneMask<Scalar> condition,
                                                 std::type_identity_t<detail::Lanes<Scalar>> a,
                                                 std::type_identity_t<detail::Lanes<Scalar>> b) {
  return detail::Lanes<Scalar>::of(Eigen::internal::pselect(condition.packet, a.packet, b.packet));
}

namespace detail {
using heed::select;
}  // namespace detail

}  // namespace heed
