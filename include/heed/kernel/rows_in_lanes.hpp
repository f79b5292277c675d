#pragma once

#include <algorithm>
#include <atomic>
#include <span>
#include <type_traits>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/core/view.hpp"
#include "heed/kernel/pack.hpp"
#include "heed/kernel/panels.hpp"
#include "heed/kernel/register_tile.hpp"
#include "heed/kernel/right_factor.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// c = a b^T for a of some rows and b of many, as layers have whose weights are b: the rows of a
/// are packed into lanes, and b is read once, where it lies, one broadcast number at a time. What
/// is turned is then a and c, not b. The order of a sum depends on the depth alone.
template <class Accumulator, class A, class B, class C>
class RowsInLanes {
  using L = Lanes<Accumulator>;
  static constexpr int widest = accumulator_registers >= 24 ? 4 : 3;
  /// Rows of a register tile, as many as there are general registers to find them with.
  static constexpr int height = 8;

 public:
  using Split = EvenPanels<Accumulator, widest>;
  /// Rows of b that are taken at once: for each of them there is a number for every row of a.
  static constexpr Index share = 48;

  /// Whether a and c are turned in less time than b is packed: it is packed from a cache that is
  /// far, and all at once, whereas here it is read there while others are worked on.
  static bool suits(Index rows, Index depth, Index columns) {
    return 2 * rows * (depth + columns) <= 3 * depth * columns;
  }

  RowsInLanes(Index rows, Index depth)
      : panels(rows), rows_(rows), depth_(depth), run_(even_part(depth)) {}

  const Split panels;  ///< of rows
  Index packed_size() const { return panels.vectors * L::size * depth_; }
  /// Panels that are packed at a time, which the second-level cache keeps while columns go by.
  Index group() const {
    const Index room = Eigen::l2CacheSize() / 4 / static_cast<Index>(sizeof(Accumulator));
    return std::clamp<Index>(room / (panels[0].vectors * L::size * depth_), 1, panels.count);
  }
  /// The first row of a panel, or the number of rows behind the last one.
  Index row_of(Index p) const { return p < panels.count ? panels[p].first : rows_; }
  Index scratch_size() const {
    return share * (widest * L::size + (std::is_same_v<B, Accumulator> ? 0 : depth_));
  }

  /// One panel, [feature][row of the panel], to its place in `packed`, which begins with another.
  void pack(const Slab<const A>& a, Index p, Index first_panel, Accumulator* packed) const {
    const auto panel = panels[p];
    const Index width = panel.vectors * L::size;
    pack_lanes(a, panel.first, std::min(width, rows_ - panel.first), depth_, width,
               packed + (panel.first - row_of(first_panel)) * depth_);
  }

  /// Columns first .. first + count-1 of c, for count <= share, and rows of some panels.
  void run(const Accumulator* packed, Index first_panel, Index last_panel, const Slab<const B>& b,
           Index first, Index count, const Slab<C>& c, Accumulator* scratch) const {
    Accumulator* const sums = scratch;
    const auto rows = rows_of(b, first, count, depth_, true, scratch + share * widest * L::size);
    for (Index p = first_panel; p < last_panel; ++p) {
      const auto panel = panels[p];
      const Index lane = panel.first, width = panel.vectors * L::size,
                  lanes = std::min(width, rows_ - lane);
      for (Index d = 0; d < depth_; d += run_) {
        const Index depth = std::min(run_, depth_ - d);
        const bool ahead =
            std::is_same_v<B, Accumulator> && p == first_panel && rows.stride == depth;
        with_vectors<widest>(panel.vectors, [&]<int Vectors>() {
          const auto* const from = packed + (lane - row_of(first_panel)) * depth_ + d * width;
          const Rows<Accumulator> right{rows.data + d, rows.stride};
          const auto fetch_c = [&, last_run = d + depth == depth_](Index j, Index columns) {
            if (Vectors > 2 && last_run && c.column_stride == 1) {
              for (Index r = j * lanes / count; r < (j + columns) * lanes / count; ++r) {
                fetch_to_write(c.at(lane + r, first), count);
              }
            }
          };
          if (ahead) {
            multiply<Vectors, true>(from, right, count, depth, d == 0, sums, fetch_c);
          } else {
            multiply<Vectors, false>(from, right, count, depth, d == 0, sums, fetch_c);
          }
        });
      }
      turn(sums, width, lanes, count, c, lane, first);
    }
  }

 private:
  /// Runs of the depth of a panel that stays in the second-level cache, and of rows of b that stay
  /// in the first.
  static Index even_part(Index depth) {
    constexpr Index most = 1024;
    const Index parts = std::max<Index>((depth + most - 1) / most, 1);
    return (depth + parts - 1) / parts;
  }

  /// Asks for numbers that are about to be overwritten.
  static void fetch_to_write(const C* to, Index count) {
    constexpr Index line = 64 / static_cast<Index>(sizeof(C));
    for (Index at = 0; at < count; at += line) __builtin_prefetch(to + at, 1);
    __builtin_prefetch(to + count - 1, 1);
  }

  /// Ahead: rows of b are new, one after the other, and those behind are asked of the memory.
  /// fetch_c(j, columns) asks for as large a part of c as these columns are of all: what is turned
  /// into it would otherwise wait for each line of a far cache.
  template <int Vectors, bool Ahead, class FetchC>
  EIGEN_DONT_INLINE static void multiply(const Accumulator* panel, const Rows<Accumulator>& b,
                                         Index count, Index depth, bool first_run,
                                         Accumulator* sums, const FetchC& fetch_c) {
    for_each_tile<std::min(height, tile_rows<Vectors>)>(
        count, [&]<int Count>(Index j) __attribute__((always_inline)) {
          // In order of address, as weights are read once and streams of short rows end before the
          // processor has seen them.
          constexpr Index line = 64 / static_cast<Index>(sizeof(Accumulator)), every = line / Count;
          const Accumulator* const next = b[j + Count];
          fetch_c(j, Count);
          RegisterTile<Accumulator, Count, Vectors> tile;
          tile.accumulate(panel, b[j], b.stride, std::integral_constant<Index, 1>(), depth,
                          MultiplyAdd(), [next](Index d) __attribute__((always_inline)) {
                            if (Ahead && d % every == 0) {
                              __builtin_prefetch(next + d / every * line);
                            }
                          });
#pragma GCC unroll 16
          for (int r = 0; r < Count; ++r) {
#pragma GCC unroll 16
            for (int v = 0; v < Vectors; ++v) {
              Accumulator* const to = sums + ((j + r) * Vectors + v) * L::size;
              const L sum = tile.sum[r][v];
              (first_run ? sum : sum + L::load(to)).store(to);
            }
          }
        });
  }

  /// c(first_row + lane, first_column + j) = sums[j][lane] for lanes below `rows`.
  static void turn(const Accumulator* sums, Index lanes, Index rows, Index count, const Slab<C>& c,
                   Index first_row, Index first_column) {
    constexpr Index n = L::size;
    for (Index lane = 0; lane < rows; lane += n) {
      const Index some = std::min(n, rows - lane);
      Index j = 0;
      for (; c.column_stride == 1 && j + n <= count; j += n) {
        const Accumulator* const from = sums + j * lanes + lane;
        C* const to = c.at(first_row + lane, first_column + j);
        if constexpr (std::is_same_v<C, Accumulator>) {
          if (some == n) {
            transpose_square(from, lanes, to, c.row_stride);
            continue;
          }
        }
        alignas(64) Accumulator square[length(n * n)];
        transpose_square(from, lanes, square, n);
        for (Index r = 0; r < some; ++r) {
          store_narrowed(L::load(square + r * n), to + r * c.row_stride);
        }
      }
      for (; j < count; ++j) {
        for (Index r = 0; r < some; ++r) {
          c(first_row + lane + r, first_column + j) = static_cast<C>(sums[j * lanes + lane + r]);
        }
      }
    }
  }

  Index rows_, depth_, run_;
};

/// c = a b for each right factor and each pair of matrices, where the columns of every b are
/// contiguous.
template <class Accumulator, class A, class B, class C>
void multiply_rows_in_lanes(const View<const A, 4>& a, std::span<const RightFactor<B, C>> factors,
                            Eigen::ThreadPoolInterface* pool) {
  using Product = RowsInLanes<Accumulator, A, B, C>;
  const Index rows = a.shape[2], depth = a.shape[3], heads = a.shape[1];
  const Product product(rows, depth);
  const Index panels = product.panels.count, group = product.group(),
              groups = (panels + group - 1) / group, units = a.shape[0] * heads * groups,
              threads = pool ? pool->NumThreads() : 1;
  const auto matrix_of = [heads](const auto& x, Index n) { return slab(x, n / heads, n % heads); };
  // Each thread packs the rows that it multiplies: what another one has packed would be fetched
  // from that one's cache, in more time, and the threads would meet for each group of panels.
  const ColumnParts parts(factors, units, 16, units < 8 * threads ? pool : nullptr);
  std::atomic<Index> next{0};
  parallel_for(pool, std::min(threads, parts.count()), [&](Index, Index) {
    Accumulator *packed = nullptr, *space = nullptr;
    const Scratch scratch([&](Layout& layout) {
      packed = layout.take<Accumulator>(group < panels ? product.row_of(group) * depth
                                                       : product.packed_size());
      space = layout.take<Accumulator>(product.scratch_size());
    });
    Index in_packed = -1;
    for (Index item; (item = next++) < parts.count();) {
      const auto& part = parts[item];
      const Index n = part.matrix / groups, first = part.matrix % groups * group,
                  last = std::min(first + group, panels), row = product.row_of(first),
                  height = product.row_of(last) - row;
      if (in_packed != part.matrix) {
        for (Index p = first; p < last; ++p) product.pack(matrix_of(a, n), p, first, packed);
        in_packed = part.matrix;
      }
      const auto right = matrix_of(part.factor.b, n);
      const auto to = matrix_of(part.factor.c, n);
      for (Index column = part.first; column < part.last; column += Product::share) {
        const Index width = std::min(Product::share, part.last - column);
        product.run(packed, first, last, {right.data, right.column_stride, 1}, column, width, to,
                    space);
        part.factor.epilogue({n / heads, n % heads, row, height, column, width});
      }
    }
  });
}

}  // namespace heed::detail
