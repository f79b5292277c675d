#pragma once

#include <cmath>

#include "heed/core/parallel.hpp"
#include "heed/core/view.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// The root of the mean square of each head's features is divided out, and a weight for each
/// feature multiplied in (Zhang and Sennrich, "Root mean square layer normalization", 2019, on
/// queries and keys as in Qwen3 and Gemma 3): y = w n, n = x / sqrt(mean(x^2) + epsilon).
template <class Weight>
struct HeadNorm {
  static constexpr double epsilon = 1e-6;
  const Vector<Weight>& weight;

  /// to = y for each row of x (batch, heads, seq, dim), contiguous rows; `to` may be x.
  template <class Element>
  void forward(const View<Element, 4>& x, const View<Element, 4>& to,
               Eigen::ThreadPoolInterface* pool) const {
    using Number = Accumulator<Element>;
    const Index seq = x.shape[2], dim = x.shape[3];
    parallel_for(pool, x.shape[0] * seq, [&](Index first, Index last) {
      for (Index item = first; item < last; ++item) {
        for (Index h = 0; h < x.shape[1]; ++h) {
          const Element* from = &x(item / seq, h, item % seq, 0);
          Element* out = &to(item / seq, h, item % seq, 0);
          const Number factor = inverse_root(from, dim);
          for (Index c = 0; c < dim; ++c) {
            out[c] = static_cast<Element>(static_cast<Number>(from[c]) * factor *
                                          static_cast<Number>(weight(c)));
          }
        }
      }
    });
  }

  /// From the gradient g of y to that of x, in place, dx = (w g - n mean(w g n)) / root, and to dw,
  /// the sum over rows of g n. A row of g that is 0 throughout stays so, whatever its x is.
  template <class Element>
  void backward(const View<const Element, 4>& x, const View<Element, 4>& grad,
                Vector<Weight>& grad_weight) const {
    using Number = Accumulator<Element>;
    const Index dim = x.shape[3];
    Vector<Number> sum(dim);
    for (Number& s : sum) s = Number(0.0);
    for_each_row(x.shape, [&](Index b, Index h, Index i) {
      const Element* from = &x(b, h, i, 0);
      Element* g = &grad(b, h, i, 0);
      bool any = false;
      for (Index c = 0; c < dim; ++c) any = any || static_cast<Number>(g[c]) != Number(0.0);
      if (!any) return;
      const Number factor = inverse_root(from, dim);
      Number mean(0.0);
      for (Index c = 0; c < dim; ++c) {
        const Number gn = static_cast<Number>(g[c]) * static_cast<Number>(from[c]) * factor;
        sum(c) += gn;
        mean += gn * static_cast<Number>(weight(c));
      }
      mean /= static_cast<Number>(static_cast<double>(dim));
      for (Index c = 0; c < dim; ++c) {
        const Number wg = static_cast<Number>(g[c]) * static_cast<Number>(weight(c)),
                     n = static_cast<Number>(from[c]) * factor;
        g[c] = static_cast<Element>(factor * (wg - n * mean));
      }
    });
    grad_weight = sum.template cast<Weight>();
  }

 private:
  template <class Element>
  static Accumulator<Element> inverse_root(const Element* x, Index dim) {
    using Number = Accumulator<Element>;
    Number squares(0.0);
    if constexpr (Laned<Number>) {
      const Slab<const Element> row{x, dim, 1};
      squares = row_dot<Number>(row, row, 0, dim);
    } else {
      for (Index c = 0; c < dim; ++c) squares += x[c] * x[c];
    }
    using std::sqrt;
    const Number mean = squares / static_cast<Number>(static_cast<double>(dim));
    return Number(1.0) / Number(sqrt(mean + static_cast<Number>(epsilon)));
  }
};

}  // namespace heed::detail
