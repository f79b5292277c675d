#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "heed/simd/lanes.hpp"
#include "heed/simd/select.hpp"

namespace heed::detail {

/// A vector of L::size numbers of 16 bits.
template <class Scalar>
struct HalfWords {
  using type __attribute__((vector_size(2 * Lanes<Scalar>::size))) = std::uint16_t;
};

/// Whether bfloat16, the upper half of a float, is converted by shifts of integers.
template <class Scalar, class Stored>
inline constexpr bool widens_by_shift = std::is_same_v<Stored, Eigen::bfloat16> &&
                                        std::is_same_v<Scalar, float> && Lanes<Scalar>::size >= 4;

/// A vector of numbers that lie in memory as they are or in a narrower type (half, bfloat16, int8).
template <class Scalar, class Stored>
EIGEN_ALWAYS_INLINE Lanes<Scalar> load_widened(const Stored* from) {
  using L = Lanes<Scalar>;
  using Packet = typename Eigen::internal::packet_traits<Stored>::type;
  if constexpr (std::is_same_v<Stored, Scalar>) {
    return L::load(from);
    // Lanes that g++ 12 would widen in halves and join, in four instructions and more.
#if defined(__AVX2__)
  } else if constexpr (widens_by_shift<Scalar, Stored> && L::size == 8) {
    const auto* const upper = reinterpret_cast<const __m128i*>(from);
    return L::of(
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(upper)), 16)));
#endif
#if defined(__AVX512F__)
  } else if constexpr (widens_by_shift<Scalar, Stored> && L::size == 16) {
    const auto* const upper = reinterpret_cast<const __m256i*>(from);
    return L::of(_mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(upper)), 16)));
#endif
  } else if constexpr (widens_by_shift<Scalar, Stored>) {
    typename HalfWords<Scalar>::type upper;
    std::memcpy(&upper, from, sizeof upper);
    return L::from_ints(__builtin_convertvector(upper, typename L::Ints) << 16);
#if defined(__F16C__)  // which Eigen 3.4 overlooks under g++ and replaces by scalar code
  } else if constexpr (std::is_same_v<Stored, Eigen::half> && L::size == 8) {
    return L::of(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#endif
#if defined(__AVX2__)
  } else if constexpr (std::is_same_v<Stored, std::int8_t> && std::is_same_v<Scalar, float> &&
                       L::size == 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return L::of(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
#endif
#if defined(__AVX512F__)
  } else if constexpr (std::is_same_v<Stored, std::int8_t> && L::size == 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return L::of(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
  } else if constexpr (std::is_same_v<Stored, Eigen::half> && L::size == 16) {
    return L::of(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#endif
  } else if constexpr (Eigen::internal::type_casting_traits<Stored, Scalar>::VectorizedCast &&
                       static_cast<Index>(Eigen::internal::packet_traits<Stored>::size) ==
                           L::size) {
    return L::of(
        Eigen::internal::pcast<Packet, typename L::Packet>(Eigen::internal::ploadu<Packet>(from)));
  } else {
    Scalar wide[L::size];
    for (Index lane = 0; lane < L::size; ++lane) wide[lane] = static_cast<Scalar>(from[lane]);
    return L::load(wide);
  }
}

/// The inverse, rounding to nearest, ties to even.
template <class Scalar, class Stored>
EIGEN_ALWAYS_INLINE void store_narrowed(Lanes<Scalar> lanes, Stored* to) {
  if constexpr (std::is_same_v<Stored, Scalar>) {
    lanes.store(to);
  } else if constexpr (widens_by_shift<Scalar, Stored>) {
    using L = Lanes<Scalar>;
    using Halves = typename HalfWords<Scalar>::type;
    const auto bits = lanes.ints();
    const auto sign = bits & std::numeric_limits<std::int32_t>::min();
    // A NaN, which the addition could turn into another number, becomes the quiet one of its sign.
    const auto rounded = bits + 0x7FFF + ((bits >> 16) & 1);
    const auto quiet = L::from_ints(sign | 0x7FC00000);
    const auto result = select(lanes == lanes, L::from_ints(rounded), quiet).ints();
    const auto upper = __builtin_convertvector((result >> 16) & 0xFFFF, Halves);
    std::memcpy(static_cast<void*>(to), &upper, sizeof upper);
#if defined(__F16C__)
  } else if constexpr (std::is_same_v<Stored, Eigen::half> && Lanes<Scalar>::size == 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm256_cvtps_ph(lanes.packet, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
#if defined(__AVX512F__)
  } else if constexpr (std::is_same_v<Stored, Eigen::half> && Lanes<Scalar>::size == 16) {
    // All lanes by a mask, as the form without one is a macro that warns under g++ 12 -O0.
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(to),
        _mm512_maskz_cvtps_ph(0xFFFF, lanes.packet, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
  } else {
    Scalar wide[Lanes<Scalar>::size];
    lanes.store(wide);
    for (Index lane = 0; lane < Lanes<Scalar>::size; ++lane) {
      to[lane] = static_cast<Stored>(wide[lane]);
    }
  }
}

}  // namespace heed::detail
