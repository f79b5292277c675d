#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "heed/core/parallel.hpp"
#include "heed/simd/lanes.hpp"
#include "heed/tensor.hpp"

/// The witness that the tests compare with: loops over Eigen tensors that use nothing of heed but
/// names of types, random inputs, and comparisons that NaN fails.
namespace heed::test {

/// Threads share the smallest of products.
inline const bool all_is_shared = (detail::least_shared = 0) == 0;

using Shape = std::array<Index, 4>;  // (batch, heads, rows, columns)

template <class Real>
using Values = Eigen::Tensor<Real, 4, Eigen::RowMajor, Index>;

/// Numbers on their way into and out of heed, whatever type heed sees.
using Reference = Values<double>;

inline constexpr double infinity = std::numeric_limits<double>::infinity();
inline constexpr double nan = std::numeric_limits<double>::quiet_NaN();

/// half and bfloat16 become double by way of float; every other number converts by itself.
template <class Scalar>
double number(const Scalar& x) {
  if constexpr (std::is_same_v<Scalar, Eigen::half> || std::is_same_v<Scalar, Eigen::bfloat16>) {
    return static_cast<double>(static_cast<float>(x));
  } else {
    return static_cast<double>(x);
  }
}

template <class Scalar>
Scalar rounded(double x) {
  if constexpr (std::is_same_v<Scalar, Eigen::half> || std::is_same_v<Scalar, Eigen::bfloat16>) {
    return static_cast<Scalar>(static_cast<float>(x));
  } else {
    return static_cast<Scalar>(x);
  }
}

/// Distance from 1 to the next number. (Eigen 3.4 gives an eighth of it for half.)
template <class Scalar>
double epsilon() {
  if constexpr (std::is_same_v<Scalar, Eigen::half>) {
    return 0x1p-10;
  } else if constexpr (std::is_same_v<Scalar, Eigen::bfloat16>) {
    return 0x1p-7;
  } else {
    return static_cast<double>(std::numeric_limits<Scalar>::epsilon());
  }
}

template <class F>
void for_each_index(const Shape& shape, F f) {
  for (Index b = 0; b < shape[0]; ++b) {
    for (Index h = 0; h < shape[1]; ++h) {
      for (Index i = 0; i < shape[2]; ++i) {
        for (Index j = 0; j < shape[3]; ++j) f(b, h, i, j);
      }
    }
  }
}

/// f(b, h, i, j) everywhere.
template <class F>
Reference generate(const Shape& shape, F f) {
  Reference result(shape);
  for_each_index(shape,
                 [&](Index b, Index h, Index i, Index j) { result(b, h, i, j) = f(b, h, i, j); });
  return result;
}

inline Reference constant(const Shape& shape, double x) {
  return generate(shape, [x](auto...) { return x; });
}

/// Uniform in [-scale, scale), rounded to float so that float and double see the same numbers.
inline Reference random(const Shape& shape, std::uint64_t seed, double scale = 1) {
  std::mt19937_64 engine(seed);
  return generate(shape, [&](auto...) {
    const double unit = static_cast<double>(engine() >> 11) * 0x1p-53;
    return static_cast<double>(static_cast<float>(scale * (2 * unit - 1)));
  });
}

template <class Scalar>
Reference rounded(Reference x) {
  for (Index n = 0; n < x.size(); ++n) x.data()[n] = number(rounded<Scalar>(x.data()[n]));
  return x;
}

// ---------------------------------------------------------------- into Eigen's types

/// Rank 2 gives a matrix, 3 and 4 a tensor; the axes left out must have extent 1.
template <class Scalar, int Rank, int Order = Eigen::RowMajor>
auto make(const Reference& x) {
  const Shape shape = x.dimensions();
  if constexpr (Rank == 2) {
    Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Order> result(shape[2], shape[3]);
    for_each_index(shape, [&](Index, Index, Index i, Index j) {
      result(i, j) = rounded<Scalar>(x(0, 0, i, j));
    });
    return result;
  } else if constexpr (Rank == 3) {
    Eigen::Tensor<Scalar, 3, Order, Index> result(shape[0], shape[2], shape[3]);
    for_each_index(shape, [&](Index b, Index, Index i, Index j) {
      result(b, i, j) = rounded<Scalar>(x(b, 0, i, j));
    });
    return result;
  } else {
    Eigen::Tensor<Scalar, 4, Order, Index> result(shape);
    for_each_index(shape, [&](Index b, Index h, Index i, Index j) {
      result(b, h, i, j) = rounded<Scalar>(x(b, h, i, j));
    });
    return result;
  }
}

/// The same numbers scattered over memory full of NaN: no stride is 1 nor a multiple of a SIMD
/// width, and an axis in `backwards` runs down.
template <class Scalar>
class Scattered {
 public:
  explicit Scattered(const Reference& x, const std::vector<int>& backwards = {}) {
    view_.shape = x.dimensions();
    Index stride = 3;
    for (std::size_t axis = 4; axis-- > 0;) {
      view_.strides[axis] = stride;
      stride = stride * std::max<Index>(view_.shape[axis], 1) + 2 * static_cast<Index>(axis) + 1;
    }
    memory_.assign(static_cast<std::size_t>(stride + 16), rounded<Scalar>(nan));
    Index start = 5;
    for (int axis : backwards) {
      const auto a = static_cast<std::size_t>(axis);
      start += view_.strides[a] * std::max<Index>(view_.shape[a] - 1, 0);
      view_.strides[a] = -view_.strides[a];
    }
    view_.data = memory_.data() + start;
    for_each_index(view_.shape, [&](Index b, Index h, Index i, Index j) {
      view_(b, h, i, j) = rounded<Scalar>(x(b, h, i, j));
    });
  }
  Scattered(const Scattered&) = delete;
  Scattered& operator=(const Scattered&) = delete;

  View<Scalar, 4> view() { return view_; }
  /// How many numbers of the memory are not NaN: a result written outside of its view shows here.
  Index written() const {
    return std::count_if(memory_.begin(), memory_.end(),
                         [](const Scalar& x) { return !std::isnan(number(x)); });
  }

 private:
  std::vector<Scalar> memory_;
  View<Scalar, 4> view_;
};

// ---------------------------------------------------------------- out of Eigen's types

/// (batch, heads, rows, columns) of a matrix, a tensor of rank 3 or 4, or a View of rank 4.
template <class T>
Reference reference(const T& x) {
  if constexpr (std::is_base_of_v<Eigen::EigenBase<T>, T>) {
    return generate({1, 1, x.rows(), x.cols()},
                    [&](Index, Index, Index i, Index j) { return number(x(i, j)); });
  } else if constexpr (requires { x.strides; }) {
    return generate(x.shape, [&](auto... at) { return number(x(at...)); });
  } else if constexpr (T::NumDimensions == 3) {
    return generate({x.dimension(0), 1, x.dimension(1), x.dimension(2)},
                    [&](Index b, Index, Index i, Index j) { return number(x(b, i, j)); });
  } else {
    return generate({x.dimension(0), x.dimension(1), x.dimension(2), x.dimension(3)},
                    [&](auto... at) { return number(x(at...)); });
  }
}

/// (batch, heads, rows, 1) of a log-sum-exp of rank 1, 2 or 3.
template <class T>
Reference reference_rows(const T& x) {
  if constexpr (std::is_base_of_v<Eigen::EigenBase<T>, T>) {
    if constexpr (T::ColsAtCompileTime == 1) {
      return generate({1, 1, x.size(), 1},
                      [&](Index, Index, Index i, Index) { return number(x(i)); });
    } else {
      return generate({x.rows(), 1, x.cols(), 1},
                      [&](Index b, Index, Index i, Index) { return number(x(b, i)); });
    }
  } else {
    static_assert(T::NumDimensions == 3);
    return generate({x.dimension(0), x.dimension(1), x.dimension(2), 1},
                    [&](Index b, Index h, Index i, Index) { return number(x(b, h, i)); });
  }
}

inline Reference permuted_keys(const Reference& x, const std::vector<Index>& order) {
  return generate(x.dimensions(), [&](Index b, Index h, Index i, Index j) {
    return x(b, h, order[static_cast<std::size_t>(i)], j);
  });
}

/// Rows first to last - 1.
inline Reference rows(const Reference& x, Index first, Index last) {
  Shape shape = x.dimensions();
  shape[2] = last - first;
  return generate(shape, [&](Index b, Index h, Index i, Index j) { return x(b, h, first + i, j); });
}

// ---------------------------------------------------------------- comparisons

inline std::string text(const Shape& shape) {
  std::string result = "(";
  for (std::size_t axis = 0; axis < 4; ++axis) {
    result += (axis ? ", " : "") + std::to_string(shape[axis]);
  }
  return result + ")";
}

/// Every element within the bound, or equal to it where it is infinite. NaN is near to nothing.
inline ::testing::AssertionResult near(const Reference& actual, const Reference& expected,
                                       double bound) {
  const Shape shape = expected.dimensions(), got = actual.dimensions();
  if (got != shape) {
    return ::testing::AssertionFailure() << "shape " << text(got) << " and not " << text(shape);
  }
  ::testing::AssertionResult result = ::testing::AssertionSuccess();
  Index wrong = 0;
  for_each_index(shape, [&](Index b, Index h, Index i, Index j) {
    const double a = actual(b, h, i, j), e = expected(b, h, i, j);
    if (a == e || std::abs(a - e) <= bound) return;
    if (wrong++ == 0) {
      result = ::testing::AssertionFailure()
               << "at " << text({b, h, i, j}) << " of " << text(shape) << ": " << a << " and not "
               << e << ", off by " << a - e << ", bound " << bound;
    }
  });
  if (wrong > 0) result << "; " << wrong << " elements are wrong";
  return result;
}

/// The same numbers, and none of them NaN.
inline ::testing::AssertionResult same(const Reference& actual, const Reference& expected) {
  return near(actual, expected, 0);
}

/// f throws std::invalid_argument with a message that has every part in it.
template <class F>
::testing::AssertionResult refuses(F f, std::initializer_list<std::string> parts) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    for (const std::string& part : parts) {
      if (message.find(part) == std::string::npos) {
        return ::testing::AssertionFailure() << "no '" << part << "' in: " << message;
      }
    }
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure() << "nothing was thrown";
}

// ---------------------------------------------------------------- attention by its definition

/// One query, one key, and where they stand.
template <class Real_>
struct Pair {
  using Real = Real_;
  std::span<const Real> query, key;
  Index b, h, i, j;
};

inline auto dot(double scale = 1) {
  return [scale](const auto& p) {
    using Real = typename std::remove_cvref_t<decltype(p)>::Real;
    Real sum = 0;
    for (std::size_t d = 0; d < p.query.size(); ++d) sum += p.query[d] * p.key[d];
    return sum * static_cast<Real>(scale);
  };
}

inline auto scaled_dot() {
  return [](const auto& p) {
    using Real = typename std::remove_cvref_t<decltype(p)>::Real;
    const Real scale = p.query.empty() ? Real(0) : 1 / std::sqrt(static_cast<Real>(p.query.size()));
    return dot(1)(p) * scale;
  };
}

inline auto everything() {
  return [](Index, Index, Index, Index) { return true; };
}

template <class Real>
struct Answer {
  Values<Real> output, weights, log_sum_exp;  // log_sum_exp: (batch, heads, queries, 1)
  Real largest_score = 0;
};

/// softmax over keys of score(pair) where allowed(b, h, i, j), times keep(b, h, i, j), times value.
/// What is not allowed is not read. Key head h / (heads / key heads) serves query head h.
template <class Real, class Score, class Allowed, class Keep>
Answer<Real> attend(const Reference& q, const Reference& k, const Reference& v, const Score& score,
                    const Allowed& allowed, const Keep& keep) {
  const Index batch = q.dimension(0), heads = q.dimension(1), queries = q.dimension(2);
  const Index keys = k.dimension(2), width = v.dimension(3);
  const Index group = k.dimension(1) == 0 ? 1 : heads / k.dimension(1);
  const Values<Real> query = q.template cast<Real>(), key = k.template cast<Real>();
  Answer<Real> answer;
  answer.output.resize(batch, heads, queries, width);
  answer.output.setZero();
  answer.weights.resize(batch, heads, queries, keys);
  answer.weights.setZero();
  answer.log_sum_exp.resize(batch, heads, queries, 1);
  std::vector<Real> scores(static_cast<std::size_t>(keys));
  for_each_index({batch, heads, queries, 1}, [&](Index b, Index h, Index i, Index) {
    const Index g = h / group;
    const auto row = [](const Values<Real>& x, Index at_b, Index at_h, Index at_i) {
      const auto dim = static_cast<std::size_t>(x.dimension(3));
      const Index start = ((at_b * x.dimension(1) + at_h) * x.dimension(2) + at_i) * x.dimension(3);
      return std::span<const Real>(x.data() + start, dim);
    };
    Real maximum = -std::numeric_limits<Real>::infinity();
    for (Index j = 0; j < keys; ++j) {
      if (!allowed(b, h, i, j)) continue;
      const Real s = score(Pair<Real>{row(query, b, h, i), row(key, b, g, j), b, h, i, j});
      scores[static_cast<std::size_t>(j)] = s;
      maximum = std::max(maximum, s);
      if (std::isfinite(s)) answer.largest_score = std::max(answer.largest_score, std::abs(s));
    }
    answer.log_sum_exp(b, h, i, 0) = maximum;
    if (maximum == -std::numeric_limits<Real>::infinity()) return;
    Real sum = 0;
    for (Index j = 0; j < keys; ++j) {
      if (!allowed(b, h, i, j)) continue;
      answer.weights(b, h, i, j) = std::exp(scores[static_cast<std::size_t>(j)] - maximum);
      sum += answer.weights(b, h, i, j);
    }
    answer.log_sum_exp(b, h, i, 0) += std::log(sum);
    for (Index j = 0; j < keys; ++j) {
      if (!allowed(b, h, i, j)) continue;
      answer.weights(b, h, i, j) /= sum;
      const Real kept = answer.weights(b, h, i, j) * static_cast<Real>(keep(b, h, i, j));
      if (kept == 0) continue;
      for (Index c = 0; c < width; ++c) {
        answer.output(b, h, i, c) += kept * static_cast<Real>(v(b, g, j, c));
      }
    }
  });
  return answer;
}

/// What attention must give for Scalar, with what it may differ by: twice the error of the plain
/// computation in the accumulator's precision, measured here against the next wider type, plus the
/// rounding of a few operations on scores (a weight is off by its score's error), sums and results.
template <class Scalar>
struct Expected {
  using Real = std::conditional_t<std::is_same_v<Scalar, double>, double, float>;
  using Wide = std::conditional_t<std::is_same_v<Scalar, double>, long double, double>;

  Reference output, weights, log_sum_exp;
  double output_bound = 0, weights_bound = 0, log_sum_exp_bound = 0;

  template <class Score, class Allowed, class Keep>
  Expected(const Reference& q, const Reference& k, const Reference& v, const Score& score,
           const Allowed& allowed, const Keep& keep, double magnitude = 0) {
    const auto exact = attend<Wide>(q, k, v, score, allowed, keep);
    const auto plain = attend<Real>(q, k, v, score, allowed, keep);
    output = exact.output.template cast<double>();
    weights = exact.weights.template cast<double>();
    log_sum_exp = exact.log_sum_exp.template cast<double>();
    const double largest_score = std::max(static_cast<double>(exact.largest_score), magnitude);
    double largest_keep = 1, largest_value = 0;
    for_each_index(weights.dimensions(), [&](Index b, Index h, Index i, Index j) {
      if (!allowed(b, h, i, j)) return;
      largest_keep = std::max(largest_keep, static_cast<double>(keep(b, h, i, j)));
      const Index g = h / (q.dimension(1) / k.dimension(1));
      for (Index c = 0; c < v.dimension(3); ++c) {
        if (std::isfinite(v(b, g, j, c))) {
          largest_value = std::max(largest_value, std::abs(v(b, g, j, c)));
        }
      }
    });
    const double few = 4 * (1 + largest_score) * epsilon<Real>();
    const double to_scalar = std::is_same_v<Scalar, Real> ? 0 : epsilon<Scalar>() / 2;
    output_bound =
        2 * error(plain.output, exact.output) + (few * largest_keep + to_scalar) * largest_value;
    weights_bound = 2 * error(plain.weights, exact.weights) + few + to_scalar;
    const double length = static_cast<double>(std::max<Index>(k.dimension(2), 1));
    log_sum_exp_bound =
        2 * error(plain.log_sum_exp, exact.log_sum_exp) + few * (1 + std::log(length));
  }

  template <class Score, class Allowed>
  Expected(const Reference& q, const Reference& k, const Reference& v, const Score& score,
           const Allowed& allowed)
      : Expected(q, k, v, score, allowed, [](auto...) { return 1.0; }) {}

  template <class Out>
  ::testing::AssertionResult accepts(const Out& result) const {
    return near(reference(result), output, output_bound);
  }
  template <class Out>
  ::testing::AssertionResult accepts_weights(const Out& result) const {
    return near(reference(result), weights, weights_bound);
  }
  template <class Rows>
  ::testing::AssertionResult accepts_log_sum_exp(const Rows& result) const {
    return near(reference_rows(result), log_sum_exp, log_sum_exp_bound);
  }

 private:
  static double error(const Values<Real>& plain, const Values<Wide>& exact) {
    Wide largest = 0;
    for (Index n = 0; n < exact.size(); ++n) {
      if (exact.data()[n] == static_cast<Wide>(plain.data()[n])) continue;
      largest = std::max(largest, std::abs(exact.data()[n] - static_cast<Wide>(plain.data()[n])));
    }
    return static_cast<double>(largest);
  }
};

/// Sets of axes that run backwards.
inline const std::vector<std::vector<int>> directions = {{}, {3}, {2}, {0, 1, 2, 3}};

/// Floats of a SIMD register, and queries of the engine's widest panel.
inline constexpr Index simd_lanes = std::max<Index>(detail::Lanes<float>::size, 4);
inline constexpr Index panel_lanes = 3 * simd_lanes;

/// Lengths of the axes: one, around a SIMD register, around a panel of queries, around two panels,
/// around a tile of keys.
inline constexpr std::array<Index, 16> awkward = {1,
                                                  2,
                                                  3,
                                                  simd_lanes - 1,
                                                  simd_lanes,
                                                  simd_lanes + 1,
                                                  panel_lanes - 1,
                                                  panel_lanes,
                                                  panel_lanes + 1,
                                                  2 * panel_lanes - 1,
                                                  2 * panel_lanes,
                                                  2 * panel_lanes + 1,
                                                  191,
                                                  192,
                                                  193,
                                                  200};

}  // namespace heed::test
