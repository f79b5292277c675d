#pragma once

#include <algorithm>
#include <memory>
#include <type_traits>

#include "heed/core/error.hpp"
#include "heed/core/scratch.hpp"
#include "heed/core/view.hpp"
#include "heed/kernel/norm_row.hpp"
#include "heed/operator/over_rows.hpp"

namespace heed {

/// How rows are normalised.
enum class Norm {
  layer,  ///< to mean 0 and variance 1 (Ba, Kiros and Hinton, "Layer normalization", 2016)
  rms,    ///< to mean square 1 (Zhang and Sennrich, "Root mean square layer normalization", 2019)
};

namespace detail {

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
  const Index width = x.shape[3];
  if (x.size() == 0) return;
  Number *weight_copy = nullptr, *bias_copy = nullptr;
  const Scratch wide([&](Layout& layout) {
    weight_copy = layout.take<Number>(widened_room<Number, Scalar>(width));
    bias_copy = layout.take<Number>(widened_room<Number, Scalar>(width));
  });
  const Number *const w = widened(weight, width, weight_copy), *const b =
                                                                   widened(bias, width, bias_copy);
  with_norm(function, norm, [&](auto centred) {
    over_rows<Number>(
        pool, 1,
        [&](Index, const auto* from, auto* to) {
          norm_row<decltype(centred)::value>(from, to, w, b, width, static_cast<Number>(eps));
        },
        x, out);
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
  const Index width = x.shape[3], rows = x.shape[0] * x.shape[1] * x.shape[2];
  const Index run = std::max<Index>(32, (rows + 63) / 64), runs = (rows + run - 1) / run;
  Number *weight_copy = nullptr, *sums = nullptr;
  const Scratch scratch([&](Layout& layout) {
    weight_copy = layout.take<Number>(widened_room<Number, Scalar>(width));
    sums = layout.take<Number>(2 * runs * width);
  });
  const Number* const w = widened(weight, width, weight_copy);
  std::uninitialized_fill_n(sums, 2 * runs * width, Number(0.0));
  with_norm(function, norm, [&](auto centred) {
    over_rows<Number>(
        pool, run,
        [&](Index row, const auto* from, const auto* by, auto* to) {
          Number* const sum = sums + row / run * 2 * width;
          norm_backward_row<decltype(centred)::value>(from, by, to, w, sum,
                                                      grad_bias ? sum + width : nullptr, width,
                                                      static_cast<Number>(eps));
        },
        x, grad, grad_x);
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
  std::destroy_n(sums, 2 * runs * width);
}

}  // namespace detail
}  // namespace heed
