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

/// a where x equals y, else b.
template <class T>
EIGEN_ALWAYS_INLINE T select_equal(const T& x, const T& y, const T& a, const T& b) {
  return select(x == y, a, b);
}
#if defined(__AVX512F__)
// A comparison of 64 bytes leaves a mask that an instruction may take, of which Eigen makes a
// vector first: three instructions in place of one.
template <class Scalar>
  requires(sizeof(typename Lanes<Scalar>::Packet) == 64)
EIGEN_ALWAYS_INLINE Lanes<Scalar> select_equal(const Lanes<Scalar>& x, const Lanes<Scalar>& y,
                                               const Lanes<Scalar>& a, const Lanes<Scalar>& b) {
  if constexpr (sizeof(Scalar) == 4) {
    return Lanes<Scalar>::of(_mm512_mask_blend_ps(
        _mm512_cmp_ps_mask(x.packet, y.packet, _CMP_EQ_OQ), b.packet, a.packet));
  } else {
    return Lanes<Scalar>::of(_mm512_mask_blend_pd(
        _mm512_cmp_pd_mask(x.packet, y.packet, _CMP_EQ_OQ), b.packet, a.packet));
  }
}
#endif
}  // namespace detail

}  // namespace heed
