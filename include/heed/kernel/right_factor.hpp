#pragma once

#include <algorithm>
#include <span>
#include <Eigen/Core>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "heed/core/view.hpp"
#include "heed/kernel/epilogue.hpp"

namespace heed::detail {

/// One of several products of a common left factor: c = a b for each pair of matrices.
template <class B, class C>
struct RightFactor {
  View<const B, 4> b;
  View<C, 4> c;
  Epilogue epilogue = {};
};

/// The columns of such products, of all their matrices, in parts that threads take one at a time:
/// of even widths, some eight for each thread, and of every product as many for each thread.
template <class B, class C>
class ColumnParts {
 public:
  using Factors = std::span<const RightFactor<B, C>>;

  /// In widths that are multiples of the unit.
  ColumnParts(Factors factors, Index matrices, Index unit, Eigen::ThreadPoolInterface* pool)
      : factors_(factors),
        matrices_(matrices),
        unit_(unit),
        threads_(pool ? pool->NumThreads() : 1) {
    for (const auto& factor : factors_) columns_ += factor.c.shape[3];
    for (const auto& factor : factors_) parts_ += count_of(factor);
  }

  Index count() const { return matrices_ * parts_; }

  struct Part {
    Index matrix;
    const RightFactor<B, C>& factor;
    Index first, last;  // columns
  };
  Part operator[](Index n) const {
    Index part = n % parts_;
    auto factor = factors_.begin();
    for (; part >= count_of(*factor); ++factor) part -= count_of(*factor);
    const Index width = width_of(*factor);
    return {n / parts_, *factor, part * width, std::min((part + 1) * width, factor->c.shape[3])};
  }

 private:
  static Index ceiling(Index n, Index divisor) { return (n + divisor - 1) / divisor; }

  Index width_of(const RightFactor<B, C>& factor) const {
    const Index columns = factor.c.shape[3];
    if (threads_ == 1) return columns;
    const Index most = std::max(matrices_ * columns_ / (8 * threads_), unit_),
                parts = ceiling(ceiling(columns, most), threads_) * threads_;
    return ceiling(ceiling(columns, parts), unit_) * unit_;
  }
  Index count_of(const RightFactor<B, C>& factor) const {
    return factor.c.shape[3] == 0 ? 0 : ceiling(factor.c.shape[3], width_of(factor));
  }

  Factors factors_;
  Index matrices_, unit_, threads_, columns_ = 0, parts_ = 0;
};

}  // namespace heed::detail
