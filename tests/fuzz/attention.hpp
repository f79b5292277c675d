#pragma once

#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "fuzz/draw.hpp"
#include "fuzz/mask.hpp"
#include "heed/attention.hpp"
#include "oracle.hpp"

namespace heed::fuzz {

using oracle::Numbers;
using oracle::Real;

/// half and bfloat16 become double by way of float.
template <class Element>
constexpr bool is_narrow =
    std::is_same_v<Element, Eigen::half> || std::is_same_v<Element, Eigen::bfloat16>;
template <class Element>
double to_double(const Element& x) {
  if constexpr (is_narrow<Element>) {
    return static_cast<double>(static_cast<float>(x));
  } else {
    return static_cast<double>(x);
  }
}
template <class Element>
Element from_double(double x) {
  if constexpr (is_narrow<Element>) {
    return static_cast<Element>(static_cast<float>(x));
  } else {
    return static_cast<Element>(x);
  }
}

/// Distance from 1 to the next number: of sums, and of what an element rounds to.
template <class Element>
constexpr double sum_epsilon() {
  return sizeof(Element) >= sizeof(double) ? 0x1p-52 : 0x1p-23;
}
template <class Element>
constexpr double element_epsilon() {
  return std::is_same_v<Element, Eigen::half>       ? 0x1p-10
         : std::is_same_v<Element, Eigen::bfloat16> ? 0x1p-7
                                                    : 0.0;
}

template <class Element>
Numbers rounded(Numbers x) {
  for (Real& n : x.data)
    n = static_cast<Real>(to_double(from_double<Element>(static_cast<double>(n))));
  return x;
}

inline Numbers draw_numbers(Draw& draw, const std::array<Index, 4>& shape, double scale) {
  Numbers result(shape);
  for (Real& x : result.data) x = static_cast<Real>(scale * draw.number());
  return result;
}

template <class F>
void for_each_place(const std::array<Index, 4>& shape, const F& f) {
  for (Index b = 0; b < shape[0]; ++b) {
    for (Index h = 0; h < shape[1]; ++h) {
      for (Index i = 0; i < shape[2]; ++i) {
        for (Index j = 0; j < shape[3]; ++j) f(b, h, i, j);
      }
    }
  }
}

/// A tensor somewhere in memory of its own: any order of the axes, gaps between rows, axes that run
/// backwards. What lies around it is NaN.
template <class Element>
class Placed {
 public:
  Placed(Draw& draw, const std::array<Index, 4>& shape) {
    view_.shape = shape;
    std::array<std::size_t, 4> order = {3, 2, 1, 0};  // the innermost first
    const bool plain = draw.chance(50);
    if (!plain && draw.chance(40)) std::swap(order[1], order[2]);  // as split_heads lays it out
    if (!plain && draw.chance(30)) std::swap(order[0], order[draw.one_of<std::size_t>({1, 2, 3})]);
    Index stride = 1, start = 0;
    for (const std::size_t axis : order) {
      if (!plain && draw.chance(20)) stride += draw.integer(1, 5);
      view_.strides[axis] = stride;
      stride *= std::max<Index>(1, shape[axis]);
      if (!plain && draw.chance(12)) {
        start += view_.strides[axis] * std::max<Index>(0, shape[axis] - 1);
        view_.strides[axis] = -view_.strides[axis];
      }
    }
    before_ = draw.integer(0, 5);
    memory_.assign(static_cast<std::size_t>(before_ + stride + 3),
                   from_double<Element>(std::numeric_limits<double>::quiet_NaN()));
    view_.data = memory_.data() + before_ + start;
  }
  Placed(Draw& draw, const Numbers& x) : Placed(draw, x.shape) {
    for_each_place(x.shape, [&](Index b, Index h, Index i, Index j) {
      view_(b, h, i, j) = from_double<Element>(static_cast<double>(x(b, h, i, j)));
    });
  }
  Placed(const Placed&) = delete;
  Placed& operator=(const Placed&) = delete;

  const View<Element, 4>& view() { return view_; }
  View<const Element, 4> view() const { return view_; }
  /// Refuses what has been written outside of the tensor.
  void check_surroundings(const char* what) const {
    Index numbers = 0;
    for (const Element& x : memory_) numbers += std::isnan(to_double(x)) ? 0 : 1;
    for_each_place(view_.shape, [&](auto... place) {
      numbers -= std::isnan(to_double(view_(place...))) ? 0 : 1;
    });
    if (numbers != 0) found(what, ": ", numbers, " numbers written outside of it");
  }

 private:
  std::vector<Element> memory_;
  View<Element, 4> view_;
  Index before_ = 0;
};

struct Sizes {
  Index batch, heads, kv_heads, queries, keys, query_dim, key_dim, value_dim;
};

/// Sizes whose attention takes no more than so many multiplications.
inline Sizes draw_sizes(Draw& draw, bool one_width = true, Index work = 200000) {
  Sizes s{};
  s.batch = draw.chance(8) ? 0 : draw.integer(1, 3);
  const bool few = draw.chance(35);  // as in decoding
  s.kv_heads = draw.chance(60) ? 1 : draw.integer(0, 3);
  s.heads = s.kv_heads * draw.one_of<Index>({1, 1, 2, 3});
  s.queries = few ? draw.integer(0, 17) : draw.length(300);
  s.keys = draw.length(few ? 3000 : 300);
  const auto width = [&] {
    return draw.chance(55) ? draw.one_of<Index>({16, 32, 64, 8, 4}) : draw.length(70);
  };
  s.query_dim = width();
  s.key_dim = one_width ? s.query_dim : width();
  s.value_dim = draw.chance(50) ? s.key_dim : width();
  const auto cost = [&] {
    return std::max<Index>(1, s.batch) * std::max<Index>(1, s.heads) * (s.queries + 1) *
           (s.keys + 1) * (s.query_dim + s.value_dim + 4);
  };
  while (cost() > work) {
    Index& largest = s.queries >= s.keys ? s.queries : s.keys;
    if (largest < 20 && s.batch * s.heads > 1) {
      (s.batch > 1 ? s.batch : s.heads) = 1;
      if (s.heads == 1 && s.kv_heads > 1) s.kv_heads = 1;
    } else {
      largest -= largest / 4 + 1;
    }
  }
  if (s.kv_heads == 0) s.heads = 0;
  return s;
}

/// A pool of 1, 2 or 8 threads, or none.
inline Eigen::ThreadPoolInterface* draw_pool(Draw& draw) {
  static Eigen::ThreadPool one(1), two(2), eight(8);
  return draw.one_of<Eigen::ThreadPoolInterface*>({nullptr, &one, &two, &eight});
}

/// By what results may be off, in epsilons of a magnitude.
template <class Element>
struct Tolerance {
  double epsilon = sum_epsilon<Element>(), times = 16, element = element_epsilon<Element>();
  /// What cannot be told apart from 0 by numbers that underflow.
  double tiny = std::is_same_v<Element, double>        ? 1e-290
                : std::is_same_v<Element, Eigen::half> ? 1e-7
                                                       : 1e-35;

  explicit Tolerance(const Sizes& s)
      : times(16 + static_cast<double>(s.query_dim + s.key_dim + s.value_dim) / 8 +
              static_cast<double>(s.keys + s.queries) / 32) {}
};

template <class Element>
std::string place_text(Index b, Index h, Index i, Index j, double actual, Real expected) {
  std::ostringstream text;
  text.precision(9);
  text << " at (" << b << ", " << h << ", " << i << ", " << j << "): " << actual << " and not "
       << expected;
  return text.str();
}

/// NaN for NaN, infinities as they are, and numbers within the tolerance. Where a magnitude is so
/// large that the number is anybody's guess, it is only to be a number.
template <class Element, class T>
void compare(const char* what, const View<T, 4>& actual, const Numbers& expected,
             const Numbers& magnitude, const Tolerance<Element>& tolerance) {
  if (actual.shape != expected.shape) found(what, ": another shape");
  for_each_place(expected.shape, [&](Index b, Index h, Index i, Index j) {
    const double x = to_double(actual(b, h, i, j));
    const Real e = expected(b, h, i, j), size = magnitude(b, h, i, j);
    if (std::isnan(size) && !std::isnan(e)) return;
    bool good = false;
    if (std::isnan(e)) {
      good = std::isnan(x);
    } else if (std::isinf(e)) {
      good = static_cast<Real>(x) == e;
    } else if (std::isinf(size)) {
      good = true;
    } else {
      const Real bound = size * static_cast<Real>(tolerance.epsilon * tolerance.times) +
                         std::abs(e) * static_cast<Real>(tolerance.element) +
                         static_cast<Real>(tolerance.tiny);
      good = std::abs(static_cast<Real>(x) - e) <= bound;
    }
    if (!good) found(what, place_text<Element>(b, h, i, j, x, e), ", magnitude ", size);
  });
}

/// The same with the magnitude of each row times that of its scores.
inline Numbers row_magnitude(const Numbers& magnitude, const Numbers& rows, double epsilon) {
  Numbers result = magnitude;
  for_each_place(magnitude.shape, [&](Index b, Index h, Index i, Index j) {
    const Real row = rows(b, h, i, 0);
    // An error of that size leaves nothing of the weights.
    result(b, h, i, j) = static_cast<Real>(epsilon) * row > Real(1e-3)
                             ? oracle::infinity
                             : magnitude(b, h, i, j) * row;
  });
  return result;
}

/// What a round is about: attention as the oracle has it, and the tensors as the library gets them.
template <class Element>
struct Case {
  Sizes sizes;
  oracle::Attention attention;
  AttentionOptions options;
  bool has_sinks = false;
  std::unique_ptr<Placed<Element>> query, key, value;

  Case(Draw& draw, const Sizes& s) : sizes(s) {
    const double scale = draw.one_of({.25, 1., 1., 3.});
    attention.query = draw_numbers(draw, {s.batch, s.heads, s.queries, s.query_dim}, scale);
    attention.key = draw_numbers(draw, {s.batch, s.kv_heads, s.keys, s.key_dim}, 1);
    attention.value = draw_numbers(draw, {s.batch, s.kv_heads, s.keys, s.value_dim}, 1);
    if (draw.chance(10)) equal_rows(draw);
    attention.query = rounded<Element>(attention.query);
    if (draw.chance(20)) {
      options.dropout = draw.one_of({.1, .5, .9});
      options.seed = draw.word();
    }
    attention.dropout = options.dropout;
    attention.seed = options.seed;
    options.pool = draw_pool(draw);
  }

  std::string text() const {
    std::ostringstream result;
    result << "batch " << sizes.batch << ", heads " << sizes.heads << ", key heads "
           << sizes.kv_heads << ", queries " << sizes.queries << ", keys " << sizes.keys
           << ", features " << sizes.query_dim << ", " << sizes.key_dim << ", " << sizes.value_dim
           << ", dropout " << options.dropout << ", threads "
           << (options.pool ? options.pool->NumThreads() : 0);
    return result.str();
  }

  void equal_rows(Draw& draw) {
    Numbers& x = draw.chance(50) ? attention.key : attention.query;
    for_each_place(x.shape,
                   [&](Index b, Index h, Index i, Index j) { x(b, h, i, j) = x(0, 0, 0, j); });
  }

  /// NaN and infinity where the mask hides them from all, and now and then where some see them.
  void poison(Draw& draw) {
    if (!draw.chance(60)) return;
    const Index group = attention.group();
    const double bad[] = {std::numeric_limits<double>::quiet_NaN(),
                          std::numeric_limits<double>::infinity(),
                          -std::numeric_limits<double>::infinity()};
    const int visible = draw.chance(25) ? 2 : 0;
    for (Index b = 0; b < sizes.batch; ++b) {
      for (Index g = 0; g < sizes.kv_heads; ++g) {
        for (Index j = 0; j < sizes.keys; ++j) {
          bool seen = false;
          for (Index h = g * group; h < (g + 1) * group && !seen; ++h) {
            for (Index i = 0; i < sizes.queries && !seen; ++i) seen = attention.allowed(b, h, i, j);
          }
          if (seen && static_cast<int>(draw.word() % 200) >= visible) continue;
          const Real x = static_cast<Real>(seen ? bad[0] : bad[draw.word() % 3]);
          const auto where = draw.word();
          if (where % 3 != 0) {
            for (Index c = 0; c < sizes.key_dim; ++c) {
              if (where % 5 != 0 || c == 0) attention.key(b, g, j, c) = x;
            }
          }
          if (where % 3 != 1) {
            for (Index c = 0; c < sizes.value_dim; ++c) {
              if (where % 7 != 0 || c == 0) attention.value(b, g, j, c) = x;
            }
          }
        }
      }
    }
    if (draw.chance(10) && !attention.query.data.empty()) {
      attention.query.data[draw.word() % attention.query.data.size()] = static_cast<Real>(bad[0]);
    }
  }

  void place(Draw& draw) {
    about() = text();
    query = std::make_unique<Placed<Element>>(draw, attention.query);
    key = std::make_unique<Placed<Element>>(draw, attention.key);
    value = std::make_unique<Placed<Element>>(draw, attention.value);
  }
};

template <class T>
View<const T, 4> log_sum_exp_view(const Tensor<T, 3>& x) {
  return {x.data(),
          {x.dimension(0), x.dimension(1), x.dimension(2), 1},
          {x.dimension(1) * x.dimension(2), x.dimension(2), 1, 1}};
}

/// Refuses tensors that differ in a bit, but for NaN.
template <class A, class B>
void compare_bits(const char* what, const A& a, const B& b) {
  for_each_place(a.shape, [&](auto... place) {
    const double x = to_double(a(place...)), y = to_double(b(place...));
    if (!(x == y || (std::isnan(x) && std::isnan(y)))) found(what, ": ", x, " and not ", y);
  });
}

/// Every way of computing a case forwards, against the oracle. `mask` is what `allowed` says.
template <class Element, class Score, class Mask>
oracle::Forward check_forward(Draw& draw, const Case<Element>& c, const Score& score,
                              const Mask& mask) {
  using Sum = detail::Accumulator<Element>;
  const Tolerance<Element> tolerance(c.sizes);
  const auto expected = oracle::Evaluation(c.attention).forward();
  const auto q = std::as_const(*c.query).view(), k = std::as_const(*c.key).view(),
             v = std::as_const(*c.value).view();
  const Numbers output_size =
      row_magnitude(expected.output_magnitude, expected.score_magnitude, tolerance.epsilon);
  Numbers ones(expected.log_sum_exp.shape, 1);
  const Numbers row_size = row_magnitude(ones, expected.score_magnitude, tolerance.epsilon);
  auto sums = tolerance;
  sums.element = 0;

  Tensor<Element, 4> first;
  Tensor<Sum, 3> first_rows;
  const auto check_pass = [&](const char* what, const auto& pass) {
    compare(what, view(pass.output), expected.output, output_size, tolerance);
    compare("log_sum_exp", log_sum_exp_view(pass.log_sum_exp), expected.log_sum_exp, row_size,
            sums);
  };
  {
    const auto pass = attention_forward(q, k, v, score, mask, c.options);
    check_pass("attention_forward", pass);
    first = pass.output;
    first_rows = pass.log_sum_exp;
  }
  // Threads change nothing, nor does where the result goes.
  auto alone = c.options;
  alone.pool = nullptr;
  Placed<Element> out(draw, expected.output.shape);
  attention_into(out.view(), q, k, v, score, mask, alone);
  compare_bits("attention_into and attention_forward", out.view(), view(first));
  out.check_surroundings("the output");

  if (draw.chance(50)) {
    const auto [output, weights] = attention_with_weights(q, k, v, score, mask, c.options);
    compare("attention_with_weights", view(output), expected.output, output_size, tolerance);
    Numbers weights_size(expected.weights.shape, 1);
    compare("the weights", view(weights), expected.weights,
            row_magnitude(weights_size, expected.score_magnitude, tolerance.epsilon), tolerance);
  }
  // Keys in two parts; a sink would count twice.
  if (!c.has_sinks && draw.chance(50)) {
    const Index way = draw.integer(0, 2), cut = draw.integer(0, std::max<Index>(1, c.sizes.keys));
    const auto in_a = [way, cut](Index, Index, Index, Index j) {
      return way == 0 ? j < cut : way == 1 ? j % 2 == 0 : j < cut || j > cut + 3;
    };
    const auto part = [&](bool a) {
      return Mask::of(mask && mask_if([in_a, a](Index b, Index h, Index i, Index j) {
                        return in_a(b, h, i, j) == a;
                      }));
    };
    const auto merged = merge(attention_forward(q, k, v, score, part(true), c.options),
                              attention_forward(q, k, v, score, part(false), c.options));
    auto twice = tolerance;
    twice.times *= 2;
    // The outputs of the parts are rounded before they are added.
    if (is_narrow<Element>) twice.epsilon = twice.element / 4;
    // A part of which every score is -infinity has no keys: nothing of its values is left to merge.
    Numbers output = expected.output, size = output_size;
    for (std::size_t n = 0; n < output.data.size(); ++n) {
      if (!std::isnan(output.data[n])) continue;
      size.data[n] = output.data[n];
      output.data[n] = 0;
    }
    compare("merge", view(merged.output), output, size, twice);
    compare("merged log_sum_exp", log_sum_exp_view(merged.log_sum_exp), expected.log_sum_exp,
            row_size, sums);
  }
  return expected;
}

/// The gradients against the oracle, and that threads do not change them.
template <class Element, class Score, class Mask>
oracle::Gradients check_backward(Draw& draw, const Case<Element>& c, const Score& score,
                                 const Mask& mask, const oracle::Forward& forward) {
  const Tolerance<Element> tolerance(c.sizes);
  const auto q = std::as_const(*c.query).view(), k = std::as_const(*c.key).view(),
             v = std::as_const(*c.value).view();
  Numbers grad_output =
      rounded<Element>(draw_numbers(draw, forward.output.shape, draw.chance(90) ? 1 : 0));
  const Placed<Element> placed(draw, grad_output);
  const auto expected = oracle::Evaluation(c.attention).backward(forward, grad_output);
  const auto pass = attention_forward(q, k, v, score, mask, c.options);
  const auto gradients = attention_backward(q, k, v, pass, placed.view(), score, mask, c.options);
  // Where one score is anybody's guess, so are all sums that it goes into.
  for (const Real row : forward.score_magnitude.data) {
    if (!(static_cast<Real>(tolerance.epsilon) * row <= Real(1e-3))) return expected;
  }
  auto t = tolerance;
  t.times *= 2;
  // The output that the pass has is rounded.
  if (is_narrow<Element>) t.epsilon = t.element / 4;
  compare("the gradient of the query", view(gradients.query), expected.query,
          expected.query_magnitude, t);
  compare("the gradient of the key", view(gradients.key), expected.key, expected.key_magnitude, t);
  compare("the gradient of the value", view(gradients.value), expected.value,
          expected.value_magnitude, t);
  return expected;
}

/// A gradient of parameters, which was added to zeros.
template <class Element>
void compare_parameters(const char* what, const double* actual, const std::vector<Real>& expected,
                        const std::vector<Real>& magnitude, const Tolerance<Element>& tolerance) {
  for (std::size_t n = 0; n < expected.size(); ++n) {
    if (std::isnan(expected[n]) || !std::isfinite(magnitude[n])) continue;
    const Real bound = magnitude[n] * static_cast<Real>(tolerance.epsilon * tolerance.times * 2) +
                       static_cast<Real>(tolerance.tiny);
    if (!(std::abs(static_cast<Real>(actual[n]) - expected[n]) <= bound)) {
      found(what, " ", n, ": ", actual[n], " and not ", expected[n], ", magnitude ", magnitude[n]);
    }
  }
}

inline Positions positions_of(const Sizes& s) {
  return Positions(s.batch, s.heads, s.queries, s.keys);
}

inline Vector<double> draw_vector(Draw& draw, Index n, double scale) {
  Vector<double> result(n);
  for (Index i = 0; i < n; ++i) result(i) = scale * draw.number();
  return result;
}
inline std::vector<Real> reals(const Vector<double>& x) {
  return std::vector<Real>(x.data(), x.data() + x.size());
}

/// True where every score that counts is known well enough for gradients to be compared.
template <class Element>
bool known(const oracle::Forward& f) {
  for (const Real row : f.score_magnitude.data) {
    if (!(static_cast<Real>(sum_epsilon<Element>()) * row <= Real(1e-3))) return false;
  }
  return true;
}

}  // namespace heed::fuzz
