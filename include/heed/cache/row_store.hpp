#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>
#include <Eigen/Core>

#include "heed/core/key_source.hpp"
#include "heed/core/quantised.hpp"
#include "heed/core/view.hpp"
#include "heed/simd/convert.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// The memory of a cache: rows of `dim` numbers, one after the other.
template <class Element>
class RowStore {
  static constexpr bool quantised = std::is_same_v<Element, Quantised8>;

 public:
  void assign(Index rows, Index dim) {
    dim_ = dim;
    numbers_.assign(at(rows * dim), Stored<Element>(0));
    if (quantised) scales_.assign(at(rows), 0);
  }
  Index dim() const { return dim_; }

  /// Token t of what is appended becomes a row, rounded to the cache's numbers.
  template <class From>
  void write(Index row, const View<const From, 4>& from, Index b, Index h, Index t) {
    using Number = Accumulator<Element>;
    Stored<Element>* const to = numbers_.data() + row * dim_;
    const auto number = [&](Index c) { return static_cast<Number>(from(b, h, t, c)); };
    if constexpr (quantised) {
      scales_[at(row)] = quantise(number, dim_, to);
    } else {
      Index c = 0;
      if constexpr (Laned<Number>) {
        const From* const row_of = &from(b, h, t, 0);
        constexpr Index lanes = Lanes<Number>::size;
        if (from.strides[3] == 1) {
          for (; c + lanes <= dim_; c += lanes) {
            store_narrowed(load_widened<Number>(row_of + c), to + c);
          }
        }
      }
      for (; c < dim_; ++c) to[c] = static_cast<Element>(number(c));
    }
  }
  /// Rows from .. from + count-1, which do not overlap those at `to`.
  void copy(Index from, Index to, Index count) {
    std::copy_n(numbers_.data() + from * dim_, count * dim_, numbers_.data() + to * dim_);
    if (quantised) std::copy_n(scales_.data() + from, count, scales_.data() + to);
  }
  void exchange(Index a, Index b, Index count) {
    const auto swap = [](auto* x, auto* y, Index n) { std::swap_ranges(x, x + n, y); };
    swap(numbers_.data() + a * dim_, numbers_.data() + b * dim_, count * dim_);
    if (quantised) swap(scales_.data() + a, scales_.data() + b, count);
  }

  Run<Element> run(Index row, Index count) const {
    return {numbers_.data() + row * dim_, dim_, 1, count,
            quantised ? scales_.data() + row : nullptr};
  }

 private:
  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }

  Index dim_ = 0;
  std::vector<Stored<Element>, Eigen::aligned_allocator<Stored<Element>>> numbers_;
  std::vector<float> scales_;
};

}  // namespace heed::detail
