#pragma once

#include <cmath>
#include <limits>

#include "heed/core/error.hpp"
#include "heed/kernel/along_row.hpp"
#include "heed/simd/lanes.hpp"
#include "heed/simd/math.hpp"
#include "heed/simd/select.hpp"

namespace heed {

/// What stands between the projections of an Mlp, number by number.
enum class Activation {
  relu,       ///< max(x, 0)
  gelu,       ///< x Phi(x), Phi of the normal distribution (Hendrycks and Gimpel, 2016)
  gelu_tanh,  ///< x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, which is close to gelu
  silu,       ///< x / (1 + e^-x), also called swish (Elfwing, Uchibe and Doya, 2017)
};

namespace detail {

/// x with infinities made finite, for factors that are 0 there.
template <class Scalar>
EIGEN_ALWAYS_INLINE Lanes<Scalar> finite(Lanes<Scalar> x) {
  constexpr auto most = std::numeric_limits<Scalar>::max();
  return min(max(x, Lanes<Scalar>(-most)), Lanes<Scalar>(most));
}

/// Activations, each with value(x) and slope(x), on Lanes and on numbers of any real type that has
/// exp and erfc. Infinities have the values that are approached there: 0 at -infinity.
struct Relu {
  template <class Scalar>
  EIGEN_ALWAYS_INLINE static Lanes<Scalar> value(Lanes<Scalar> x) {
    return max(x, Lanes<Scalar>(0));
  }
  template <class Scalar>
  EIGEN_ALWAYS_INLINE static Lanes<Scalar> slope(Lanes<Scalar> x) {
    return select(x > Lanes<Scalar>(0), Lanes<Scalar>(1), Lanes<Scalar>(0));
  }
  template <class T>
  static T value(const T& x) {
    return x < T(0.0) ? T(0.0) : x;
  }
  template <class T>
  static T slope(const T& x) {
    return x > T(0.0) ? T(1.0) : T(0.0);
  }
};

struct Gelu {
  static constexpr double root_half = 0.70710678118654752440, bell_height = 0.39894228040143267794;

  template <class Scalar>
  EIGEN_ALWAYS_INLINE static Lanes<Scalar> value(Lanes<Scalar> x) {
    return max(x, Lanes<Scalar>(std::numeric_limits<Scalar>::lowest())) * Normal<Scalar>(x).share;
  }
  template <class Scalar>
  EIGEN_ALWAYS_INLINE static Lanes<Scalar> slope(Lanes<Scalar> x) {
    const Normal<Scalar> at(x);
    return fma(finite(x) * at.bell, Lanes<Scalar>(bell_height), at.share);
  }
  template <class T>
  static T value(const T& x) {
    using std::erfc;
    const T share = T(0.5) * erfc(T(-root_half) * x);
    return share == T(0.0) ? share : T(x * share);
  }
  template <class T>
  static T slope(const T& x) {
    using std::erfc;
    using std::exp;
    const T bell = exp(T(-0.5) * x * x), share = T(0.5) * erfc(T(-root_half) * x);
    return bell == T(0.0) ? share : T(share + x * bell * T(bell_height));
  }
};

/// x / (1 + e^-z(x)): silu with z(x) = x.
struct Silu {
  template <class Scalar>
  EIGEN_ALWAYS_INLINE static Lanes<Scalar> value(Lanes<Scalar> x) {
    return max(x, Lanes<Scalar>(std::numeric_limits<Scalar>::lowest())) * Sigmoid<Scalar>(x).share;
  }
  template <class Scalar>
  EIGEN_ALWAYS_INLINE static Lanes<Scalar> slope(Lanes<Scalar> x) {
    const Sigmoid<Scalar> at(x);
    return at.share * fma(finite(x), at.rest, Lanes<Scalar>(1));
  }
  template <class T>
  static T value(const T& x) {
    using std::exp;
    return x < T(-1e4) ? T(0.0) : T(x / (T(1.0) + exp(-x)));
  }
  template <class T>
  static T slope(const T& x) {
    using std::exp;
    if (x < T(-1e4)) return T(0.0);
    const T e = exp(-x), share = T(1.0) / (T(1.0) + e);
    return e == T(0.0) ? share : T(share * (T(1.0) + x * (T(1.0) - share)));
  }
};

/// (1 + tanh u) / 2 = 1 / (1 + e^-2u).
struct GeluTanh {
  static constexpr double linear = 1.5957691216057307117,  // 2 sqrt(2 / pi)
      cubic = 0.044715 * linear;

  /// 2u, and its derivative; beyond |x| = 1024, where neither matters, they stay finite.
  template <class T>
  EIGEN_ALWAYS_INLINE static T twice(const T& x) {
    return x * (T(linear) + T(cubic) * (x * x));
  }
  template <class T>
  EIGEN_ALWAYS_INLINE static T twice_slope(const T& x) {
    return T(linear) + T(3 * cubic) * (x * x);
  }
  template <class Scalar>
  EIGEN_ALWAYS_INLINE static Lanes<Scalar> within(Lanes<Scalar> x) {
    return min(max(x, Lanes<Scalar>(-1024)), Lanes<Scalar>(1024));
  }
  template <class T>
  static T within(const T& x) {
    return x < T(-1024.0) ? T(-1024.0) : x > T(1024.0) ? T(1024.0) : x;
  }

  template <class Scalar>
  EIGEN_ALWAYS_INLINE static Lanes<Scalar> value(Lanes<Scalar> x) {
    return max(x, Lanes<Scalar>(std::numeric_limits<Scalar>::lowest())) *
           Sigmoid<Scalar>(twice(within(x))).share;
  }
  template <class Scalar>
  EIGEN_ALWAYS_INLINE static Lanes<Scalar> slope(Lanes<Scalar> x) {
    const Lanes<Scalar> y = within(x);
    const Sigmoid<Scalar> at(twice(y));
    return at.share * fma(y * at.rest, twice_slope(y), Lanes<Scalar>(1));
  }
  template <class T>
  static T value(const T& x) {
    using std::exp;
    const T share = T(1.0) / (T(1.0) + exp(-twice(within(x))));
    return share == T(0.0) ? share : T(x * share);
  }
  template <class T>
  static T slope(const T& x) {
    using std::exp;
    const T y = within(x), e = exp(-twice(y)), share = T(1.0) / (T(1.0) + e);
    if (share == T(0.0)) return share;
    return share * (T(1.0) + y * twice_slope(y) * (T(1.0) - share));
  }
};

/// f of the activation's type.
template <class F>
void with_activation(const char* function, Activation activation, const F& f) {
  switch (activation) {
    case Activation::relu:
      return f(Relu());
    case Activation::gelu:
      return f(Gelu());
    case Activation::gelu_tanh:
      return f(GeluTanh());
    case Activation::silu:
      return f(Silu());
  }
  fail(function, "there is no activation number ", static_cast<Index>(activation));
}

/// A row of an Mlp's hidden layer: up and, where there is one, gate get their biases (none where
/// null) added where they stand; then hidden = activation(gate) up, or activation(up) where gate is
/// null. `hidden` may be `up`.
template <class Number, class Function, class Scalar>
void activate_row(Function, Scalar* up, Scalar* gate, const Number* up_bias,
                  const Number* gate_bias, Scalar* hidden, Index count) {
  using T = Along<Number>;
  const auto with_bias = [](const auto& place, Scalar* x, const Number* bias)
                             __attribute__((always_inline)) {
                               T y = place.load(x);
                               if (bias) {
                                 y += place.load(bias);
                                 place.store(y, x);
                               }
                               return y;
                             };
  if (gate) {
    along_row<Number>(count, [&](const auto& place) __attribute__((always_inline)) {
      const T z = with_bias(place, gate, gate_bias), y = with_bias(place, up, up_bias);
      place.store(T(Function::value(z) * y), hidden);
    });
  } else {
    along_row<Number>(count, [&](const auto& place) __attribute__((always_inline)) {
      place.store(T(Function::value(with_bias(place, up, up_bias))), hidden);
    });
  }
}

/// The gradients of up and, where there is one, gate (with their biases) from that of hidden, which
/// becomes up's where it stands. Where it is 0 so are they, whatever stands there.
template <class Number, class Function, class Scalar>
void activate_backward_row(Function, const Scalar* up, const Scalar* gate, Scalar* grad,
                           Scalar* grad_gate, Index count) {
  using T = Along<Number>;
  const auto times = [](const T& g, const T& factor) __attribute__((always_inline)) {
    return select(g == T(0.0), T(0.0), T(g * factor));
  };
  along_row<Number>(count, [&](const auto& place) __attribute__((always_inline)) {
    const T g = place.load(grad), y = place.load(up);
    if (gate) {
      const T z = place.load(gate);
      place.store(times(g, T(y * Function::slope(z))), grad_gate);
      place.store(times(g, Function::value(z)), grad);
    } else {
      place.store(times(g, Function::slope(y)), grad);
    }
  });
}

}  // namespace detail
}  // namespace heed
