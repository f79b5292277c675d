#pragma once

#include <cmath>
#include <cstddef>

#include "heed/simd/lanes.hpp"
#include "heed/simd/select.hpp"

namespace heed::detail {

inline constexpr double log2_e = 1.4426950408889634074;
inline constexpr double ln_2 = 0.69314718055994530942;

/// 2^r = 1 + r Q(r) on [-1/2, 1/2]. Coefficients of Q, lowest first, by minimax fits
/// (Remez) of the relative error: of 2^r 2.6e-9 for float, of Q 1.8e-17 for double, so that
/// rounding is what remains.
template <class Scalar>
struct Exp2Polynomial;

template <>
struct Exp2Polynomial<float> {
  static constexpr float q[] = {6.9314721496803e-1F, 2.4022652782888e-1F, 5.5503105510138e-2F,
                                9.6176929729931e-3F, 1.3406643902352e-3F, 1.5594678161327e-4F};
};

template <>
struct Exp2Polynomial<double> {
  static constexpr double q[] = {
      6.931471805599453112e-1,  2.4022650695910097889e-1, 5.5504108664821236499e-2,
      9.6181291076070652998e-3, 1.3333558146531644707e-3, 1.5403530441481283746e-4,
      1.5252733701200713074e-5, 1.3215442723878388157e-6, 1.0178121305806718011e-7,
      7.0725617683983011661e-9, 4.4455361318481760235e-10};
};

/// x = n + r with n whole and |r| <= 1/2, and 2^n, for n from -bias (where 2^n becomes 0) to bias.
template <class Scalar>
struct Split {
  using L = Lanes<Scalar>;
  static constexpr int mantissa_bits = std::numeric_limits<Scalar>::digits - 1;
  static constexpr int bias = std::numeric_limits<Scalar>::max_exponent - 1;
  /// Adding 1.5 * 2^mantissa_bits rounds to a whole number and leaves it in the low bits, here with
  /// the bias of the exponent on top, so that a shift makes it the power of two.
  static constexpr Scalar magic =
      Scalar(3) * static_cast<Scalar>(Index(1) << (mantissa_bits - 1)) + Scalar(bias);
  L shifted, whole, rest;

  EIGEN_ALWAYS_INLINE explicit Split(L x)
      : shifted((x + L(magic)).fenced()), whole((shifted - L(magic)).fenced()), rest(x - whole) {}
  /// Of x factor - n, for `anchor` = magic - n and a whole n up to an eighth of magic. A fused
  /// multiply-add takes the whole part off before the product is rounded, so that the error of the
  /// rest does not grow with x.
  EIGEN_ALWAYS_INLINE static Split of_product(L x, L factor, L anchor) {
    const L shifted = fma(x, factor, anchor).fenced(), minus_whole = (anchor - shifted).fenced();
    return {shifted, -minus_whole, fma(x, factor, minus_whole)};
  }
  /// Of x log2(e) but for its digits past those of a Scalar, which are 1.3e-8 (double: 1.4e-17) of
  /// it.
  EIGEN_ALWAYS_INLINE static Split of_natural_nearly(L x) {
    if constexpr (fused_multiply_add) {
      return of_product(x, L(log2_e), L(magic));
    } else {
      return Split(x * L(log2_e));
    }
  }
  /// Of x log2(e), whose last digits are in a second number.
  EIGEN_ALWAYS_INLINE static Split of_natural(L x) {
    constexpr auto low = static_cast<Scalar>(
        sizeof(Scalar) == 4 ? log2_e - static_cast<double>(static_cast<Scalar>(log2_e))
                            : 2.03552737409310331e-17);
    Split result = of_natural_nearly(x);
    if constexpr (fused_multiply_add) result.rest = fma(x, L(low), result.rest);
    return result;
  }
  EIGEN_ALWAYS_INLINE L power() const { return L::from_ints(shifted.ints() << mantissa_bits); }

 private:
  EIGEN_ALWAYS_INLINE Split(L s, L w, L r) : shifted(s), whole(w), rest(r) {}
};

/// x = 2^exponent mantissa, for normal x > 0, with the mantissa from sqrt(1/2) to sqrt(2).
template <class Scalar>
struct Exponent {
  using L = Lanes<Scalar>;
  L exponent, mantissa;

  EIGEN_ALWAYS_INLINE explicit Exponent(L x) {
    constexpr int bits = Split<Scalar>::mantissa_bits;
    const auto whole = (x.ints() - L(0.70710678118654752440).ints()) >> bits;
    mantissa = L::from_ints(x.ints() - (whole << bits));
    // A number of this size has units of 1, which whole numbers can be added to as integers.
    constexpr auto units = Scalar(3) * static_cast<Scalar>(Index(1) << (bits - 1));
    exponent = L::from_ints(L(units).ints() + whole) - L(units);
  }
};

template <class Scalar>
EIGEN_ALWAYS_INLINE Lanes<Scalar> exp2_quotient(Lanes<Scalar> r) {
  using L = Lanes<Scalar>;
  constexpr auto& q = Exp2Polynomial<Scalar>::q;
  constexpr int degree = static_cast<int>(std::size(q)) - 1;
  L sum(q[degree]);
#pragma GCC unroll 16
  for (int k = degree - 1; k >= 0; --k) sum = fma(sum, r, L(q[k]));
  return sum;
}

/// 2^(n + rest) in place of x, which `parts` splits: within 1 ulp (1.3 without a fused
/// multiply-add) and the error of the rest, where that is a normal number; 0 for n = -bias. The
/// steps go through all vectors in turn: one chain of them is 40 cycles long, and the processor
/// looks ahead over no more than a few.
template <class Scalar, std::size_t N, class Parts>
EIGEN_ALWAYS_INLINE void exp2_of_parts(Lanes<Scalar> (&x)[N], const Parts& parts) {
  using L = Lanes<Scalar>;
  constexpr auto& q = Exp2Polynomial<Scalar>::q;
  constexpr int degree = static_cast<int>(std::size(q)) - 1;
  L power[N], sum[N];
#pragma GCC unroll 16
  for (std::size_t i = 0; i < N; ++i) {
    const Split<Scalar> split = parts(x[i]);
    power[i] = split.power();
    x[i] = split.rest;
    sum[i] = fma(L(q[degree]), x[i], L(q[degree - 1]));
  }
#pragma GCC unroll 16
  for (int k = degree - 2; k >= 0; --k) {
#pragma GCC unroll 16
    for (std::size_t i = 0; i < N; ++i) sum[i] = fma(sum[i], x[i], L(q[k]));
  }
  // A product with 2^n, not an addition to the exponent, which could turn NaN into a number.
#pragma GCC unroll 16
  for (std::size_t i = 0; i < N; ++i) x[i] = fma(sum[i], x[i] * power[i], power[i]);
}

/// 2^x for every x <= 0 (or NaN, which stays), down to the smallest normal number, and exactly 0
/// well below that and at -infinity.
template <class Scalar, std::size_t N>
EIGEN_ALWAYS_INLINE void exp2_nonpositive(Lanes<Scalar> (&x)[N]) {
  using L = Lanes<Scalar>;
  exp2_of_parts(x, [](L y) __attribute__((always_inline)) {
    return Split<Scalar>(max(y, L(-Split<Scalar>::bias)));
  });
}

template <class Scalar>
EIGEN_ALWAYS_INLINE Lanes<Scalar> exp2_nonpositive(Lanes<Scalar> x) {
  Lanes<Scalar> one[1] = {x};
  exp2_nonpositive(one);
  return one[0];
}

/// e^x likewise. Without a fused multiply-add its relative error is x times that of a product.
template <class Scalar>
EIGEN_ALWAYS_INLINE Lanes<Scalar> exp_nonpositive(Lanes<Scalar> x) {
  Lanes<Scalar> one[1] = {x};
  exp2_of_parts(one, [](Lanes<Scalar> y) __attribute__((always_inline)) {
    return Split<Scalar>::of_natural(max(y, Lanes<Scalar>(-Split<Scalar>::bias * ln_2)));
  });
  return one[0];
}

/// e^x = 2^n 2^r where it is a normal number, within 2 ulp; NaN stays.
template <class Scalar>
EIGEN_ALWAYS_INLINE Lanes<Scalar> exp_normal(Lanes<Scalar> x) {
  using L = Lanes<Scalar>;
  // ln 2 in two parts; the first has trailing zeros, so that n times it is exact.
  constexpr auto ln_2_high = Scalar(0.693359375);
  constexpr auto ln_2_low = static_cast<Scalar>(-2.12194440054690582e-4);
  const Split<Scalar> split(x * L(log2_e));
  const L rest = fma(split.whole, L(-ln_2_low), fma(split.whole, L(-ln_2_high), x));
  const L r = rest * L(log2_e), power = split.power();
  return fma(exp2_quotient<Scalar>(r), r * power, power);
}

/// e^x, within 2 ulp; 0 below the normal numbers, infinity above them.
template <class Scalar>
EIGEN_ALWAYS_INLINE Lanes<Scalar> exp(Lanes<Scalar> x) {
  using L = Lanes<Scalar>;
  constexpr auto lowest = static_cast<Scalar>(std::numeric_limits<Scalar>::min_exponent * ln_2);
  constexpr auto highest = static_cast<Scalar>(std::numeric_limits<Scalar>::max_exponent * ln_2);
  // ln 2 in two parts; the first has trailing zeros, so that n times it is exact.
  constexpr auto ln_2_high = Scalar(0.693359375);
  constexpr auto ln_2_low = static_cast<Scalar>(-2.12194440054690582e-4);
  const L clamped = min(max(x, L(lowest)), L(highest));
  const Split<Scalar> split(clamped * L(log2_e));
  const L rest = fma(split.whole, L(-ln_2_low), fma(split.whole, L(-ln_2_high), clamped));
  const L r = rest * L(log2_e);
  // In two factors, as 2^128 itself is no float.
  const Split<Scalar> half(split.whole * L(0.5));
  const L other = L::from_ints((split.shifted - half.whole).ints() << Split<Scalar>::mantissa_bits);
  const L result = fma(exp2_quotient<Scalar>(r), r, L(1)) * half.power() * other;
  const L upper = select(x > L(highest), L(std::numeric_limits<Scalar>::infinity()), result);
  return select(x < L(lowest), L(0), upper);
}

/// tanh(x / 2) = x P(x^2) / Q(x^2) up to |x| = `end`, past which tanh x rounds to 1. Coefficients,
/// lowest first, by a minimax fit of the relative error of tanh x = 2 t / (1 + t^2), 7.2e-9, and
/// scaled so that in single precision no tanh x is above 1.
struct TanhOfHalf {
  static constexpr float end = 9.02F;
  static constexpr float p[] = {8.29371989e-1F, 2.4687564e-2F, 9.46362488e-5F};
  static constexpr float q[] = {1.65874398F, 1.87603712e-1F, 2.00011977e-3F, 2.03378158e-6F};
};

/// tanh x within 5 ulp, and no more than 1; NaN stays. What is small keeps its relative accuracy.
template <class Scalar>
EIGEN_ALWAYS_INLINE Lanes<Scalar> tanh(Lanes<Scalar> x) {
  using L = Lanes<Scalar>;
  if constexpr (sizeof(Scalar) == 4) {
    // Near 1 errors of the quotient t go into its square alone, as tanh x = 2 t / (1 + t^2) is flat
    // there.
    using Half = TanhOfHalf;
    const L end(Half::end), clamped = min(max(x, -end), end), square = clamped * clamped;
    const L p = fma(fma(L(Half::p[2]), square, L(Half::p[1])), square, L(Half::p[0]));
    const L q = fma(fma(fma(L(Half::q[3]), square, L(Half::q[2])), square, L(Half::q[1])), square,
                    L(Half::q[0]));
    const L numerator = clamped * p;
    return numerator * (q + q) / fma(numerator, numerator, q * q);
  } else {
    // E / (E + 2) with E = 2^y - 1 = 2^n (2^r - 1) + (2^n - 1), for y = 2 x in binary digits. Past
    // the limit tanh rounds to 1: tanh x = 1 - 2 e^-2x + ....
    constexpr auto limit = static_cast<Scalar>(std::numeric_limits<Scalar>::digits + 3);
    const Split<Scalar> split(min(max(x * L(2 * log2_e), L(-limit)), L(limit)));
    const L power = split.power();
    const L e = fma(power, exp2_quotient<Scalar>(split.rest) * split.rest, power - L(1));
    return e / (e + L(2));
  }
}

/// Phi(-t) e^(t^2/2), the normal distribution's tail without its exponential, for t from 0 to where
/// the tail is below the normal numbers: a polynomial of u = (t - pole) / (t + pole), coefficients
/// lowest first, by a minimax fit (Remez) of the relative error: 7.7e-9 for float, 3.4e-18 for
/// double.
template <class Scalar>
struct NormalTail;

template <>
struct NormalTail<float> {
  static constexpr float pole = 3, end = 14;
  static constexpr float q[] = {1.21513947627421e-1F,  -2.06402619041160e-1F, 1.23225030690412e-1F,
                                -4.62132909569155e-2F, 6.13207050771899e-3F,  2.90455624946864e-3F,
                                -9.83757836592847e-4F, -3.39484884997134e-4F, 1.15543026177893e-4F,
                                5.36715213401558e-5F};
};

template <>
struct NormalTail<double> {
  static constexpr double pole = 5, end = 38.75;
  static constexpr double q[] = {
      0.076919304975006291825,   -0.14345755526401196556,     0.11606881188600329247,
      -0.080883877264127226892,  0.047855352284169996868,     -0.023413900487696828745,
      0.0089913705505910400395,  -0.0023788443566413156223,   0.00021955073761150507503,
      0.00013427684313222583348, -0.000060427482752446242873, 9.6130672346778489799e-7,
      6.6444212046921729997e-6,  -1.2700767800984527247e-6,   -6.7507888079622224086e-7,
      2.4334747180465663314e-7,  7.7108105121313820651e-8,    -3.9167713600351391382e-8,
      -1.099577328926269126e-8,  5.6882881319065881907e-9,    1.8257768720678739743e-9,
      -5.691941391344778211e-10, -2.3161183977245938121e-10};
};

/// Of the standard normal distribution: Phi(x), the share below x, and the bell e^(-x^2/2).
template <class Scalar>
struct Normal {
  using L = Lanes<Scalar>;
  L share, bell;

  /// The share is within 6 ulp for x >= -4 and within 12 below, down to the normal numbers; 0
  /// beyond them. Without a fused multiply-add, where x^2 is rounded, a share of the tail may be
  /// off by x^2 ulp more. NaN stays.
  EIGEN_ALWAYS_INLINE explicit Normal(L x) {
    using Tail = NormalTail<Scalar>;
    const L t = min(abs(x), L(Tail::end)), square = t * t;
    // What rounding took from the square would be missing from the exponent.
    const L lost = fused_multiply_add ? fma(t, t, -square) : L(0);
    L e[1] = {square * L(-0.5)};
    exp2_of_parts(e, [&](L y) __attribute__((always_inline)) {
      auto split = Split<Scalar>::of_natural(max(y, L(-Split<Scalar>::bias * ln_2)));
      split.rest = fma(lost, L(-log2_e / 2), split.rest);
      return split;
    });
    bell = e[0];
    const L u = (t - L(Tail::pole)) / (t + L(Tail::pole));
    constexpr int degree = static_cast<int>(std::size(Tail::q)) - 1;
    L sum(Tail::q[degree]);
#pragma GCC unroll 32
    for (int k = degree - 1; k >= 0; --k) sum = fma(sum, u, L(Tail::q[k]));
    const L tail = bell * sum;
    share = select(x < L(0), tail, L(1) - tail);
  }
};

/// 1 / (1 + e^-x) and what it lacks to 1, each within 3 ulp; 0 below the normal numbers. NaN stays.
template <class Scalar>
struct Sigmoid {
  using L = Lanes<Scalar>;
  L share, rest;

  EIGEN_ALWAYS_INLINE explicit Sigmoid(L x) {
    const L e = exp_nonpositive(-abs(x)), larger = L(1) / (L(1) + e), smaller = e * larger;
    share = select(x < L(0), smaller, larger);
    rest = select(x < L(0), larger, smaller);
  }
};

}  // namespace heed::detail
