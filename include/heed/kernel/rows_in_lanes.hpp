#pragma once

#include <algorithm>
#include <type_traits>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/core/view.hpp"
#include "heed/kernel/epilogue.hpp"
#include "heed/kernel/pack.hpp"
#include "heed/kernel/panels.hpp"
#include "heed/kernel/register_tile.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// c = a b^T for a of some rows and b of many, as layers have whose weights are b: the rows of a
/// are packed into lanes, and b is read once, where it lies, one broadcast number at a time. What
/// is turned is then a and c, not b. The order of a sum depends on the depth alone.
template <class Accumulator, class A, class B, class C>
class RowsInLanes {
  using L = Lanes<Accumulator>;
  static constexpr Index widest = Panels<Accumulator>::widest * L::size;
  /// Rows of a register tile, as many as there are general registers to find them with.
  static constexpr int height = 8;

 public:
  static constexpr Index most_rows = 4 * widest;
  /// Rows of b that are taken at once: for each of them there is a number for every row of a.
  static constexpr Index share = 48;

  /// Packing b takes about as long as turning a and c where there are as many rows of a as numbers
  /// in them. Many rows of a that outnumber those of b are slower to turn than b is to pack once.
  static bool suits(Index rows, Index depth, Index columns) {
    return std::min(rows, most_rows) <= depth && (rows <= most_rows || rows <= columns);
  }

  RowsInLanes(Index rows, Index depth)
      : rows_(rows), depth_(depth), panels_(rows), run_(even_part(depth)) {}

  Index packed_size() const { return panels_.vectors * L::size * depth_; }
  Index scratch_size() const {
    return sums_size() + share * (std::is_same_v<B, Accumulator> ? 0 : depth_);
  }

  /// [panel][feature][row of the panel].
  void pack(const Slab<const A>& a, Accumulator* to) const {
    for (Index p = 0; p < panels_.count; ++p) {
      const auto panel = panels_[p];
      const Index width = panel.vectors * L::size;
      pack_lanes(a, panel.first, std::min(width, rows_ - panel.first), depth_, width,
                 to + panel.first * depth_);
    }
  }

  /// Columns first .. first + count-1 of c, for count <= share.
  void run(const Accumulator* packed, const Slab<const B>& b, Index first, Index count,
           const Slab<C>& c, Accumulator* scratch) const {
    Accumulator* const sums = scratch;
    const auto rows = rows_of(b, first, count, depth_, true, scratch + sums_size());
    for (Index d = 0; d < depth_; d += run_) {
      const Index depth = std::min(run_, depth_ - d);
      for (Index p = 0; p < panels_.count; ++p) {
        with_vectors(panels_[p].vectors, [&]<int Vectors>() {
          const Index lane = panels_[p].first;
          multiply<Vectors>(packed + lane * depth_ + d * Vectors * L::size,
                            {rows.data + d, rows.stride}, count, depth, d == 0,
                            p == 0 && rows.stride == depth_ && depth == depth_,
                            sums + lane * share);
        });
      }
    }
    for (Index p = 0; p < panels_.count; ++p) {
      const auto panel = panels_[p];
      turn(sums + panel.first * share, panel.vectors * L::size,
           std::min(panel.vectors * L::size, rows_ - panel.first), count, c, panel.first, first);
    }
  }

 private:
  Index sums_size() const { return share * panels_.vectors * L::size; }
  /// Runs of the depth of a panel that stays in the second-level cache, and of rows of b that stay
  /// in the first.
  static Index even_part(Index depth) {
    constexpr Index most = 1024;
    const Index parts = std::max<Index>((depth + most - 1) / most, 1);
    return (depth + parts - 1) / parts;
  }

  template <int Vectors>
  EIGEN_DONT_INLINE static void multiply(const Accumulator* panel, const Rows<Accumulator>& b,
                                         Index count, Index depth, bool first_run, bool ahead,
                                         Accumulator* sums) {
    for_each_tile<std::min(height, tile_rows<Vectors>)>(
        count, [&]<int Count>(Index j) __attribute__((always_inline)) {
          // The rows behind are asked of the memory in order of address, as weights are read once
          // and streams of short rows end before the processor has seen them.
          constexpr Index line = 64 / static_cast<Index>(sizeof(Accumulator)), every = line / Count;
          const Accumulator* const next = ahead ? b[j + Count] : b[j];
          RegisterTile<Accumulator, Count, Vectors> tile;
          tile.accumulate(panel, b[j], b.stride, std::integral_constant<Index, 1>(), depth,
                          MultiplyAdd(), [next](Index d) __attribute__((always_inline)) {
                            if (d % every == 0) __builtin_prefetch(next + d / every * line);
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
        alignas(64) Accumulator square[length(n * n)];
        transpose_square(sums + j * lanes + lane, lanes, square, n);
        for (Index r = 0; r < some; ++r) {
          store_narrowed(L::load(square + r * n), c.at(first_row + lane + r, first_column + j));
        }
      }
      for (; j < count; ++j) {
        for (Index r = 0; r < some; ++r) {
          c(first_row + lane + r, first_column + j) = static_cast<C>(sums[j * lanes + lane + r]);
        }
      }
    }
  }

  Index rows_, depth_;
  Panels<Accumulator> panels_;
  Index run_;
};

/// c = a b for each pair of matrices, where the columns of b are contiguous.
template <class Accumulator, class A, class B, class C>
void multiply_rows_in_lanes(const View<const A, 4>& a, const View<const B, 4>& b,
                            const View<C, 4>& c, Eigen::ThreadPoolInterface* pool,
                            const Epilogue& epilogue) {
  using Product = RowsInLanes<Accumulator, A, B, C>;
  using L = Lanes<Accumulator>;
  const Index rows = a.shape[2], depth = a.shape[3], columns = b.shape[3], heads = a.shape[1];
  const Index blocks = (rows + Product::most_rows - 1) / Product::most_rows;
  const Index block = ((rows + blocks - 1) / blocks + L::size - 1) / L::size * L::size;
  const Index shares = (columns + Product::share - 1) / Product::share;
  const Product whole(block, depth);
  // So many blocks at a time that no more than 4 MiB of floats are packed, but one.
  const Index all = a.shape[0] * heads * blocks, size = whole.packed_size();
  const Index most = std::clamp<Index>((Index(1) << 20) / size, 1, all);
  const auto block_of = [&](const auto& x, Index n) {
    auto matrix = slab(x, n / blocks / heads, n / blocks % heads);
    matrix.data += n % blocks * block * matrix.row_stride;
    return matrix;
  };
  const auto product_of = [&](Index n) {
    return Product(std::min(block, rows - n % blocks * block), depth);
  };
  Accumulator* packed = nullptr;
  const Scratch scratch([&](Layout& layout) { packed = layout.take<Accumulator>(most * size); });
  for (Index start = 0; start < all; start += most) {
    const Index count = std::min(most, all - start);
    parallel_for(pool, count, [&](Index first, Index last) {
      for (Index n = first; n < last; ++n) {
        product_of(start + n).pack(block_of(a, start + n), packed + n * size);
      }
    });
    parallel_for(pool, count * shares, [&](Index first, Index last) {
      Accumulator* space = nullptr;
      const Scratch own(
          [&](Layout& layout) { space = layout.take<Accumulator>(whole.scratch_size()); });
      for (Index item = first; item < last; ++item) {
        const Index n = item / shares, column = item % shares * Product::share;
        const Index width = std::min(Product::share, columns - column);
        const Index batch = (start + n) / blocks / heads, head = (start + n) / blocks % heads;
        const auto right = slab(b, batch, head);
        product_of(start + n).run(packed + n * size, {right.data, right.column_stride, 1}, column,
                                  width, block_of(c, start + n), space);
        const Index row = (start + n) % blocks * block;
        epilogue({batch, head, row, std::min(block, rows - row), column, width});
      }
    });
  }
}

}  // namespace heed::detail
