#pragma once

#include <algorithm>
#include <span>

#include "heed/core/parallel.hpp"
#include "heed/core/view.hpp"
#include "heed/kernel/few_queries.hpp"
#include "heed/kernel/right_factor.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/kernel/softmax_row.hpp"
#include "heed/simd/convert.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// c = a b^T for few rows of a, lanes over the depth, where rows of both are contiguous: b, which
/// is large, is read once, in place, and widened in registers. Each number is the sum over lanes of
/// one vector of sums, whatever is computed beside it, so that neither threads nor the number of
/// rows change a bit.
template <class Accumulator, class A, class B, class C>
class FewRows {
  using L = Lanes<Accumulator>;

 public:
  /// Sums in registers: as many rows of a as there are, up to 4, times rows of b.
  static constexpr int sums = accumulator_registers >= 24 ? 16 : 8;
  static_assert(sums % L::size == 0 || L::size % sums == 0);

  /// Columns first .. last-1 of c.
  static void run(const Rows<A>& a, Index rows, const Rows<B>& b, Index first, Index last,
                  Index depth, const Slab<C>& c) {
    for (Index j = first; j < last; j += sums) {
      const Index end = std::min(j + sums, last);
      Index i = 0;
      for (; i + 4 <= rows; i += 4) tiles<4>(a, i, b, j, end, depth, c);
      for (; i + 2 <= rows; i += 2) tiles<2>(a, i, b, j, end, depth, c);
      if (i < rows) tiles<1>(a, i, b, j, end, depth, c);
    }
  }

 private:
  template <int Rows_>
  static void tiles(const Rows<A>& a, Index i, const Rows<B>& b, Index first, Index last,
                    Index depth, const Slab<C>& c) {
    constexpr int columns = sums / Rows_;
    for (Index j = first; j < last; j += columns) {
      tile<Rows_, columns>(a, i, b, j, std::min<Index>(columns, last - j), depth, c);
    }
  }

  template <int Rows_, int Columns>
  EIGEN_DONT_INLINE static void tile(const Rows<A>& a, Index i, const Rows<B>& b, Index j,
                                     Index columns, Index depth, const Slab<C>& c) {
    L sum[length(Rows_ * Columns)];
    const A* left[length(Rows_)];
#pragma GCC unroll 16
    for (int r = 0; r < Rows_; ++r) left[r] = a[i + r];
    // Few rows of b at a time, so that b, which is large, is read as one stream. Two sums take a
    // vector of each in the time of a multiply-add, enough with 64 bytes of numbers of their type;
    // where less is read, they would wait for each other.
    constexpr bool narrow = sizeof(B) < sizeof(Accumulator);
    constexpr bool two = Rows_ < 4 && L::size * sizeof(B) >= 64;
    constexpr int streams = std::min(two ? 2 : 4, Columns);
    static_assert(Columns % streams == 0);
    constexpr Index line = 64 / static_cast<Index>(sizeof(B));
    for (int first = 0; first < Columns; first += streams) {
      const B* right[length(streams)];
      L part[length(Rows_)][length(streams)];
#pragma GCC unroll 16
      for (int t = 0; t < streams; ++t) right[t] = b[j + std::min<Index>(first + t, columns - 1)];
#pragma GCC unroll 16
      for (auto& row : part) {
#pragma GCC unroll 16
        for (L& vector : row) vector = L(0);
      }
      const auto step = [&](const auto& load) __attribute__((always_inline)) {
        L x[length(Rows_)];
#pragma GCC unroll 16
        for (int r = 0; r < Rows_; ++r) x[r] = load(left[r]).pinned();
#pragma GCC unroll 16
        for (int t = 0; t < streams; ++t) {
          const L y = load(right[t]).pinned();
#pragma GCC unroll 16
          for (int r = 0; r < Rows_; ++r) part[r][t] = fma(x[r], y, part[r][t]);
        }
      };
      // Narrow numbers are read so fast that 16 lines on their way to the first-level cache, all
      // that it waits for, do not keep the memory busy: they are asked into the second one, 64
      // lines early. Others are asked while the rows before are worked on.
      const bool ahead = i == 0 && (narrow ? b.stride == depth
                                           : streams * depth * static_cast<Index>(sizeof(B)) <=
                                                 static_cast<Index>(Eigen::l1CacheSize()) / 3);
      const B* next = narrow ? right[0] + 64 * line : b[j + first + streams];
      Index d = 0;
      for (; d + L::size <= depth; d += L::size) {
        if (ahead) {
#pragma GCC unroll 16
          for (Index at = 0; at < streams * L::size; at += line) {
            __builtin_prefetch(next + at, 0, narrow ? 2 : 3);
          }
          next += streams * L::size;
        }
        step([d](const auto* row)
                 __attribute__((always_inline)) { return load_widened<Accumulator>(row + d); });
      }
      if (d < depth) {
        step([d, depth](const auto* row) __attribute__((always_inline)) {
          return load_some<Accumulator>(row + d, depth - d, Accumulator(0));
        });
      }
#pragma GCC unroll 16
      for (int r = 0; r < Rows_; ++r) {
#pragma GCC unroll 16
        for (int t = 0; t < streams; ++t) sum[r * Columns + first + t] = part[r][t];
      }
    }
    alignas(64) Accumulator totals[length(Rows_ * Columns)];
#pragma GCC unroll 16
    for (Index n = 0; n < Rows_ * Columns; n += L::size) {
      L group[L::size];
#pragma GCC unroll 16
      for (Index lane = 0; lane < L::size; ++lane) group[lane] = sum[n + lane];
      sums_across(group).store(totals + n);
    }
    for (int r = 0; r < Rows_; ++r) {
      for (Index t = 0; t < columns; ++t) c(i + r, j + t) = static_cast<C>(totals[r * Columns + t]);
    }
  }
};

/// Up to so many rows of a, of a depth of k, lanes over the depth are the faster ones: each number
/// that FewRows gives ends in a sum over lanes, which takes as long as some 32 multiply-adds of
/// vectors.
constexpr Index few_rows(Index k) { return std::clamp<Index>(k / 32, 1, 12); }

/// c = a b for each right factor and each pair of matrices, where the rows of a and the columns of
/// every b are contiguous.
template <class Accumulator, class A, class B, class C>
void multiply_few_rows(const View<const A, 4>& a, std::span<const RightFactor<B, C>> factors,
                       Eigen::ThreadPoolInterface* pool) {
  using Product = FewRows<Accumulator, A, B, C>;
  const Index rows = a.shape[2], depth = a.shape[3], heads = a.shape[1];
  const ColumnParts parts(factors, a.shape[0] * heads, 64, pool);
  parallel_for(pool, parts.count(), [&](Index first, Index last) {
    for (Index n = first; n < last; ++n) {
      const auto& [matrix, factor, column, end] = parts[n];
      const Index batch = matrix / heads, head = matrix % heads;
      const auto left = slab(a, batch, head);
      const auto right = slab(factor.b, batch, head);
      Product::run({left.data, left.row_stride}, rows, {right.data, right.column_stride}, column,
                   end, depth, slab(factor.c, batch, head));
      factor.epilogue({batch, head, 0, rows, column, end - column});
    }
  });
}

}  // namespace heed::detail
