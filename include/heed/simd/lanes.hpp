#pragma once

#include <math.h>    // NOLINT: with stdlib.h, makes an unqualified abs, exp or tanh in a user's
#include <stdlib.h>  // NOLINT: lambda mean the floating-point one for plain numbers as well

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <Eigen/Core>

#include "heed/core/error.hpp"

namespace heed::detail {

template <class Packet>
EIGEN_ALWAYS_INLINE Packet packet_multiply_add(const Packet& a, const Packet& b, const Packet& c) {
  return Eigen::internal::pmadd(a, b, c);
}
#if EIGEN_COMP_CLANG && defined(EIGEN_VECTORIZE_FMA)
// Eigen 3.4 gives clang inline assembly here, which may not take an operand from memory and costs a
// move for each result.
EIGEN_ALWAYS_INLINE __m128 packet_multiply_add(__m128 a, __m128 b, __m128 c) {
  return _mm_fmadd_ps(a, b, c);
}
EIGEN_ALWAYS_INLINE __m256 packet_multiply_add(__m256 a, __m256 b, __m256 c) {
  return _mm256_fmadd_ps(a, b, c);
}
EIGEN_ALWAYS_INLINE __m128d packet_multiply_add(__m128d a, __m128d b, __m128d c) {
  return _mm_fmadd_pd(a, b, c);
}
EIGEN_ALWAYS_INLINE __m256d packet_multiply_add(__m256d a, __m256d b, __m256d c) {
  return _mm256_fmadd_pd(a, b, c);
}
#endif

/// A positive constant as the length of an array.
constexpr std::size_t length(Index n) { return static_cast<std::size_t>(n); }

/// Square roots by the processor's instruction: Eigen 3.4 multiplies by an estimate of the inverse
/// root instead, which gives NaN for infinity.
template <class Packet>
EIGEN_ALWAYS_INLINE Packet packet_sqrt(const Packet& a) {
  return Eigen::internal::psqrt(a);
}
#if defined(__SSE2__)
EIGEN_ALWAYS_INLINE __m128 packet_sqrt(__m128 a) { return _mm_sqrt_ps(a); }
#endif
#if defined(__AVX__)
EIGEN_ALWAYS_INLINE __m256 packet_sqrt(__m256 a) { return _mm256_sqrt_ps(a); }
#endif
#if defined(__AVX512F__)
EIGEN_ALWAYS_INLINE __m512 packet_sqrt(__m512 a) { return _mm512_sqrt_ps(a); }
#endif

/// The larger and the smaller number, a where b is NaN or both are: of the two operands x86 returns
/// one, but ARM's instruction gives NaN for any.
template <class Packet>
EIGEN_ALWAYS_INLINE Packet packet_max(const Packet& a, const Packet& b) {
#if EIGEN_ARCH_ARM64
  return Eigen::internal::pselect(Eigen::internal::pcmp_lt(a, b), b, a);
#else
  return Eigen::internal::pmax(a, b);
#endif
}
template <class Packet>
EIGEN_ALWAYS_INLINE Packet packet_min(const Packet& a, const Packet& b) {
#if EIGEN_ARCH_ARM64
  return Eigen::internal::pselect(Eigen::internal::pcmp_lt(b, a), b, a);
#else
  return Eigen::internal::pmin(a, b);
#endif
}

template <class Scalar>
struct LaneMask;

/// The vector of numbers that one instruction works on: Eigen's packet for the target (SSE, AVX,
/// AVX-512, NEON, or a single number where there is none) behind operators, so that a generic
/// lambda runs on it as it does on a number.
template <class Scalar_>
struct Lanes {
  using Scalar = Scalar_;
  using Packet = typename Eigen::internal::packet_traits<Scalar>::type;
  static constexpr Index size = Eigen::internal::unpacket_traits<Packet>::size;

  using Int = std::conditional_t<sizeof(Scalar) == 4, std::int32_t, std::int64_t>;
  using Ints __attribute__((vector_size(sizeof(Packet)))) = Int;

  using Mask = LaneMask<Scalar>;

  Packet packet;

  Lanes() = default;
  template <class T>
    requires std::is_arithmetic_v<T>
  EIGEN_ALWAYS_INLINE Lanes(T value)
      : packet(Eigen::internal::pset1<Packet>(static_cast<Scalar>(value))) {}

  EIGEN_ALWAYS_INLINE static Lanes of(Packet packet) {
    Lanes result;
    result.packet = packet;
    return result;
  }
  EIGEN_ALWAYS_INLINE static Lanes load(const Scalar* from) {
    return of(Eigen::internal::ploadu<Packet>(from));
  }
  EIGEN_ALWAYS_INLINE void store(Scalar* to) const { Eigen::internal::pstoreu(to, packet); }
  /// first, first + 1, first + 2, ...
  EIGEN_ALWAYS_INLINE static Lanes counting(Index first) {
    return of(Eigen::internal::plset<Packet>(static_cast<Scalar>(first)));
  }
  EIGEN_ALWAYS_INLINE static Lanes from_ints(Ints ints) {
    Lanes result;
    std::memcpy(&result.packet, &ints, sizeof(Packet));
    return result;
  }
  EIGEN_ALWAYS_INLINE Ints ints() const {
    Ints result;
    std::memcpy(&result, &packet, sizeof(Packet));
    return result;
  }

  /// The same, from which no later sum is simplified: (x + y) - y is x to clang where it is told
  /// -funsafe-math-optimizations, which no macro says. It costs nothing where it is not told so.
  EIGEN_ALWAYS_INLINE Lanes fenced() const {
#if defined(__clang__) && defined(__x86_64__) && __clang_major__ >= 14
    return of(__arithmetic_fence(packet));
#else
    return *this;
#endif
  }
  /// Keeps the value in a register of its own. Without it g++ folds the load of a vector that
  /// several multiply-adds share into each of them, and the load ports become the limit (the
  /// matrix tile falls from .97 to .70 of the peak).
  /// Eigen's own barrier lets clang choose memory, which costs a store and a load.
  EIGEN_ALWAYS_INLINE Lanes pinned() const {
    Packet result = packet;
#if EIGEN_ARCH_i386_OR_x86_64 && defined(__SSE2__)
    __asm__("" : "+x"(result));
#endif
    return of(result);
  }

  EIGEN_ALWAYS_INLINE friend Lanes operator+(Lanes a, Lanes b) {
    return of(Eigen::internal::padd(a.packet, b.packet));
  }
  EIGEN_ALWAYS_INLINE friend Lanes operator-(Lanes a, Lanes b) {
    return of(Eigen::internal::psub(a.packet, b.packet));
  }
  EIGEN_ALWAYS_INLINE friend Lanes operator*(Lanes a, Lanes b) {
    return of(Eigen::internal::pmul(a.packet, b.packet));
  }
  EIGEN_ALWAYS_INLINE friend Lanes operator/(Lanes a, Lanes b) {
    return of(Eigen::internal::pdiv(a.packet, b.packet));
  }
  EIGEN_ALWAYS_INLINE friend Lanes operator-(Lanes a) {
    return of(Eigen::internal::pnegate(a.packet));
  }
  EIGEN_ALWAYS_INLINE friend Lanes operator+(Lanes a) { return a; }
  EIGEN_ALWAYS_INLINE Lanes& operator+=(Lanes other) { return *this = *this + other; }
  EIGEN_ALWAYS_INLINE Lanes& operator-=(Lanes other) { return *this = *this - other; }
  EIGEN_ALWAYS_INLINE Lanes& operator*=(Lanes other) { return *this = *this * other; }
  EIGEN_ALWAYS_INLINE Lanes& operator/=(Lanes other) { return *this = *this / other; }

  EIGEN_ALWAYS_INLINE friend Mask operator<(Lanes a, Lanes b) {
    return {Eigen::internal::pcmp_lt(a.packet, b.packet)};
  }
  EIGEN_ALWAYS_INLINE friend Mask operator<=(Lanes a, Lanes b) {
    return {Eigen::internal::pcmp_le(a.packet, b.packet)};
  }
  EIGEN_ALWAYS_INLINE friend Mask operator>(Lanes a, Lanes b) { return b < a; }
  EIGEN_ALWAYS_INLINE friend Mask operator>=(Lanes a, Lanes b) { return b <= a; }
  EIGEN_ALWAYS_INLINE friend Mask operator==(Lanes a, Lanes b) {
    return {Eigen::internal::pcmp_eq(a.packet, b.packet)};
  }
  EIGEN_ALWAYS_INLINE friend Mask operator!=(Lanes a, Lanes b) { return !(a == b); }

  /// a * b + c, rounded once where the target has the instruction.
  EIGEN_ALWAYS_INLINE friend Lanes fma(Lanes a, Lanes b, Lanes c) {
    return of(packet_multiply_add(a.packet, b.packet, c.packet));
  }
  /// A NaN in a stays; one in b is passed over.
  EIGEN_ALWAYS_INLINE friend Lanes max(Lanes a, Lanes b) {
    return of(packet_max(a.packet, b.packet));
  }
  EIGEN_ALWAYS_INLINE friend Lanes min(Lanes a, Lanes b) {
    return of(packet_min(a.packet, b.packet));
  }
  EIGEN_ALWAYS_INLINE friend Lanes abs(Lanes a) { return of(Eigen::internal::pabs(a.packet)); }
  EIGEN_ALWAYS_INLINE friend Lanes sqrt(Lanes a) { return of(packet_sqrt(a.packet)); }

  EIGEN_ALWAYS_INLINE friend Scalar sum_of_lanes(Lanes a) {
    return Eigen::internal::predux(a.packet);
  }
  /// Of no NaN.
  EIGEN_ALWAYS_INLINE friend Scalar largest_lane(Lanes a) {
    return Eigen::internal::predux_max(a.packet);
  }

  /// f of every lane, for functions that have no vector form.
  template <class F, class... More>
  static Lanes map(F f, Lanes a, More... more) {
    Scalar values[1 + sizeof...(More)][length(size)];
    Index row = 0;
    a.store(values[0]);
    (more.store(values[++row]), ...);
    for (Index lane = 0; lane < size; ++lane) {
      Index argument = 0;
      values[0][lane] = static_cast<Scalar>(
          f(values[0][lane], values[(static_cast<void>(more), ++argument)][lane]...));
    }
    return load(values[0]);
  }
  friend Lanes log(Lanes a) { return of(Eigen::internal::plog(a.packet)); }
  friend Lanes log1p(Lanes a) {
    return map([](Scalar x) { return std::log1p(x); }, a);
  }
  friend Lanes sin(Lanes a) {
    return map([](Scalar x) { return std::sin(x); }, a);
  }
  friend Lanes cos(Lanes a) {
    return map([](Scalar x) { return std::cos(x); }, a);
  }
  friend Lanes erf(Lanes a) {
    return map([](Scalar x) { return std::erf(x); }, a);
  }
  friend Lanes floor(Lanes a) {
    return map([](Scalar x) { return std::floor(x); }, a);
  }
  friend Lanes pow(Lanes a, double exponent) {
    return map([exponent](Scalar x) { return static_cast<Scalar>(std::pow(x, exponent)); }, a);
  }
};

/// Result of comparing Lanes: all bits set, or none.
template <class Scalar>
struct LaneMask {
  typename Lanes<Scalar>::Packet packet;

  EIGEN_ALWAYS_INLINE friend LaneMask operator&(LaneMask a, LaneMask b) {
    return {Eigen::internal::pand(a.packet, b.packet)};
  }
  EIGEN_ALWAYS_INLINE friend LaneMask operator|(LaneMask a, LaneMask b) {
    return {Eigen::internal::por(a.packet, b.packet)};
  }
  EIGEN_ALWAYS_INLINE friend LaneMask operator&&(LaneMask a, LaneMask b) { return a & b; }
  EIGEN_ALWAYS_INLINE friend LaneMask operator||(LaneMask a, LaneMask b) { return a | b; }
  EIGEN_ALWAYS_INLINE friend LaneMask operator!(LaneMask a) {
    return {Eigen::internal::pandnot(Eigen::internal::ptrue(a.packet), a.packet)};
  }
};

/// Numbers that have Lanes, and so the fused engine.
template <class T>
concept Laned = std::same_as<T, float> || std::same_as<T, double>;

/// Whether fma is one instruction, and rounds once.
#if defined(__SSE2__) && !defined(__FMA__)
inline constexpr bool fused_multiply_add = false;
#else
inline constexpr bool fused_multiply_add = true;
#endif

/// How many vectors of results a register tile may hold beside its operands: with 16 registers 12
/// accumulators, 3 shared vectors and one broadcast; with 32 registers 24 accumulators. ARM
/// multiplies by one lane of a register instead of reading a broadcast from memory, and these
/// registers are loaded ahead: beside 24 accumulators some are spilled, beside 18 none. Without a
/// fused multiply-add a product takes a register of its own, and 9 are left.
inline constexpr int accumulator_registers = !fused_multiply_add                            ? 9
                                             : EIGEN_ARCH_ARM64                             ? 18
                                             : EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 24
                                                                                            : 12;

}  // namespace heed::detail
