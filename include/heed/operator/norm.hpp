#pragma once

#include <algorithm>
#include <type_traits>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/core/view.hpp"
#include "heed/kernel/norm_row.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

/// How rows are normalised.
enum class Norm {
  layer,  ///< to mean 0 and variance 1 (Ba, Kiros and Hinton, "Layer normalization", 2016)
  rms,    ///< to mean square 1 (Zhang and Sennrich, "Root mean square layer normalization", 2019)
};

namespace detail {

/// Where a row of a tensor lies, for loops that read or write numbers side by side.
template <class Number, class Element>
struct RowAccess {
  View<Element, 4> x;

  Index width() const { return x.shape[3]; }
  bool contiguous() const { return x.strides[3] == 1 || width() <= 1; }
  Element* at(Index row) const {
    const Index i = row % x.shape[2], h = row / x.shape[2] % x.shape[1],
                b = row / x.shape[2] / x.shape[1];
    return x.data + b * x.strides[0] + h * x.strides[1] + i * x.strides[2];
  }
  /// body(numbers) of the row where it lies, or of its copy.
  template <class Body>
  void read(Index row, Number* copy, const Body& body) const {
    const Element* const from = at(row);
    if (contiguous()) return body(from);
    for (Index c = 0; c < width(); ++c) copy[c] = static_cast<Number>(from[c * x.strides[3]]);
    body(static_cast<const Number*>(copy));
  }
  /// body(numbers) where the row shall lie, or into a copy that is taken there.
  template <class Body>
  void write(Index row, Number* copy, const Body& body) const {
    Element* const to = at(row);
    if (contiguous()) return body(to);
    body(copy);
    for (Index c = 0; c < width(); ++c) to[c * x.strides[3]] = static_cast<Element>(copy[c]);
  }
};

/// A pool for so many numbers, if it is worth its while.
inline Eigen::ThreadPoolInterface* pool_for(Eigen::ThreadPoolInterface* pool, Index numbers) {
  return numbers < (Index(1) << 14) ? nullptr : pool;
}

/// The numbers as they are, or widened into `copy`.
template <class Number, class Scalar>
const Number* widened(const Scalar* from, Index count, Number* copy) {
  if constexpr (std::is_same_v<Number, Scalar>) {
    return from;
  } else {
    if (from == nullptr) return nullptr;
    for (Index c = 0; c < count; ++c) copy[c] = static_cast<Number>(from[c]);
    return copy;
  }
}

/// body(std::true_type or std::false_type: whether the norm centres)
template <class Body>
void with_norm(const char* function, Norm norm, const Body& body) {
  switch (norm) {
    case Norm::layer:
      return body(std::true_type());
    case Norm::rms:
      return body(std::false_type());
  }
  fail(function, "there is no norm number ", static_cast<Index>(norm));
}

/// Rows of x normalised, times weight, plus bias where that is not null; both have the width of x.
/// `out` has the shape of x and may be x.
template <class Out, class X, class Scalar>
void normalise(const char* function, Norm norm, const View<Out, 4>& out, const View<const X, 4>& x,
               const Scalar* weight, const Scalar* bias, double eps,
               Eigen::ThreadPoolInterface* pool) {
  using Number = Accumulator<X>;
  if (x.size() == 0) return;
  const Index width = x.shape[3], rows = x.size() / width;
  const RowAccess<Number, const X> from{x};
  const RowAccess<Number, Out> to{out};
  const bool copies = !from.contiguous() || !to.contiguous();
  Number *weight_copy = nullptr, *bias_copy = nullptr;
  const Scratch wide([&](Layout& layout) {
    weight_copy = layout.take<Number>(std::is_same_v<Number, Scalar> ? 0 : width);
    bias_copy = layout.take<Number>(std::is_same_v<Number, Scalar> ? 0 : width);
  });
  const Number *const w = widened(weight, width, weight_copy), *const b =
                                                                   widened(bias, width, bias_copy);
  with_norm(function, norm, [&](auto centred) {
    parallel_for(pool_for(pool, x.size()), rows, [&](Index first, Index last) {
      Number* copy = nullptr;
      const Scratch scratch(
          [&](Layout& layout) { copy = layout.take<Number>(copies ? width : 0); });
      for (Index row = first; row < last; ++row) {
        from.read(row, copy, [&](const auto* numbers) {
          to.write(row, copy, [&](auto* result) {
            norm_row<decltype(centred)::value>(numbers, result, w, b, width,
                                               static_cast<Number>(eps));
          });
        });
      }
    });
  });
}

/// The gradients of x, into grad_x, of the weight and, unless it is null, of the bias. Sums over
/// rows are taken in runs, whose number does not depend on the threads.
template <class To, class X, class G, class Scalar>
void normalise_backward(const char* function, Norm norm, const View<To, 4>& grad_x,
                        Scalar* grad_weight, Scalar* grad_bias, const View<const X, 4>& x,
                        const View<const G, 4>& grad, const Scalar* weight, double eps,
                        Eigen::ThreadPoolInterface* pool) {
  using Number = Accumulator<X>;
  const Index width = x.shape[3], rows = x.size() / std::max<Index>(width, 1);
  const Index run = std::max<Index>(32, (rows + 63) / 64), runs = (rows + run - 1) / run;
  const RowAccess<Number, const X> from{x};
  const RowAccess<Number, const G> slope{grad};
  const RowAccess<Number, To> to{grad_x};
  const bool copies = !from.contiguous() || !slope.contiguous() || !to.contiguous();
  Number *weight_copy = nullptr, *sums = nullptr;
  const Scratch wide([&](Layout& layout) {
    weight_copy = layout.take<Number>(std::is_same_v<Number, Scalar> ? 0 : width);
    sums = layout.take<Number>(2 * runs * width);
  });
  const Number* const w = widened(weight, width, weight_copy);
  std::fill(sums, sums + 2 * runs * width, Number(0.0));
  with_norm(function, norm, [&](auto centred) {
    parallel_for(pool_for(pool, x.size()), runs, [&](Index first, Index last) {
      Number* copy = nullptr;
      const Scratch scratch(
          [&](Layout& layout) { copy = layout.take<Number>(copies ? 3 * width : 0); });
      for (Index row = first * run; row < std::min(last * run, rows); ++row) {
        Number* const sum = sums + row / run * 2 * width;
        from.read(row, copy, [&](const auto* numbers) {
          slope.read(row, copy + (copies ? width : 0), [&](const auto* g) {
            to.write(row, copy + (copies ? 2 * width : 0), [&](auto* result) {
              norm_backward_row<decltype(centred)::value>(numbers, g, result, w, sum,
                                                          grad_bias ? sum + width : nullptr, width,
                                                          static_cast<Number>(eps));
            });
          });
        });
      }
    });
  });
  for (Index c = 0; c < width; ++c) {
    Number of_weight(0.0), of_bias(0.0);
    for (Index r = 0; r < runs; ++r) {
      of_weight += sums[2 * r * width + c];
      of_bias += sums[(2 * r + 1) * width + c];
    }
    grad_weight[c] = static_cast<Scalar>(of_weight);
    if (grad_bias) grad_bias[c] = static_cast<Scalar>(of_bias);
  }
}

}  // namespace detail
}  // namespace heed
