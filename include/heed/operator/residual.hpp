#pragma once

#include <algorithm>
#include <type_traits>

#include "heed/core/scratch.hpp"
#include "heed/core/view.hpp"
#include "heed/kernel/along_row.hpp"
#include "heed/operator/over_rows.hpp"

namespace heed::detail {

/// out = x + scale branch, all of one shape, or x + branch where the scale, one factor for each
/// feature, is null. `out` may be x or branch.
template <class Out, class X, class B, class Scalar>
void add_scaled(const View<Out, 4>& out, const View<const X, 4>& x, const View<const B, 4>& branch,
                const Scalar* scale, Eigen::ThreadPoolInterface* pool) {
  using Number = Accumulator<X>;
  if (out.size() == 0) return;
  over_rows<Number>(
      pool, 1,
      [&](Index, const auto* before, const auto* change, auto* after) {
        along_row<Number>(out.shape[3], [&](const auto& place) __attribute__((always_inline)) {
          auto y = place.load(change);
          if (scale) y *= place.load(scale);
          place.store(place.load(before) + y, after);
        });
      },
      x, branch, out);
}

/// x += change, of one shape and type.
template <class T>
void add(T& x, const T& change, Eigen::ThreadPoolInterface* pool) {
  using Scalar = ScalarOf<T>;
  add_scaled<Scalar, Scalar, Scalar, Scalar>(rank4(x), rank4(x), rank4(change), nullptr, pool);
}

/// to = from, of one shape, of any storage orders.
template <class Number, class To, class From>
void copy_rows(const View<To, 4>& to, const View<From, 4>& from, Eigen::ThreadPoolInterface* pool) {
  if (to.size() == 0) return;
  over_rows<Accumulator<Number>>(
      pool, 1,
      [&](Index, const auto* read, auto* written) {
        along_row<Accumulator<Number>>(to.shape[3],
                                       [&](const auto& place) __attribute__((always_inline)) {
                                         place.store(place.load(read), written);
                                       });
      },
      View<const std::remove_const_t<From>, 4>(from), to);
}

/// grad_branch = scale grad and grad_scale = sum over rows of grad branch, but of no row where grad
/// is 0 throughout. Sums are taken in runs, whose number does not depend on the threads.
template <class To, class G, class B, class Scalar>
void scale_backward(const View<To, 4>& grad_branch, Scalar* grad_scale,
                    const View<const G, 4>& grad, const View<const B, 4>& branch,
                    const Scalar* scale, Eigen::ThreadPoolInterface* pool) {
  using Number = Accumulator<G>;
  const Index width = grad.shape[3], rows = grad.shape[0] * grad.shape[1] * grad.shape[2];
  const Index run = std::max<Index>(32, (rows + 63) / 64), runs = (rows + run - 1) / run;
  Number* sums = nullptr;
  const Scratch scratch([&](Layout& layout) { sums = layout.take<Number>(runs * width); });
  std::fill(sums, sums + runs * width, Number(0.0));
  over_rows<Number>(
      pool, run,
      [&](Index row, const auto* by, const auto* change, auto* to) {
        Number* const sum = sums + row / run * width;
        const bool none = all_zero<Number>(by, width);
        along_row<Number>(width, [&](const auto& place) __attribute__((always_inline)) {
          const auto g = place.load(by);
          place.store(g * place.load(scale), to);
          if (!none) place.store(place.load(sum) + g * place.load(change), sum);
        });
      },
      grad, branch, grad_branch);
  for (Index c = 0; c < width; ++c) {
    Number sum(0.0);
    for (Index r = 0; r < runs; ++r) sum += sums[r * width + c];
    grad_scale[c] = static_cast<Scalar>(sum);
  }
}

}  // namespace heed::detail
