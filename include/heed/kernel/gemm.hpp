#pragma once

#include <algorithm>
#include <numeric>
#include <type_traits>
#include <utility>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/core/view.hpp"
#include "heed/kernel/epilogue.hpp"
#include "heed/kernel/few_rows.hpp"
#include "heed/kernel/pack.hpp"
#include "heed/kernel/panels.hpp"
#include "heed/kernel/register_tile.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/kernel/rows_in_lanes.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// c = a b for one pair of matrices, a (m, k), b (k, n), c (m, n), in the order of Goto and van de
/// Geijn ("Anatomy of high-performance matrix multiplication", 2008), with a and b in changed
/// roles:
///
///   for each run of columns of b, for each run of depth: pack b in panels (lanes of 3 vectors)
///     for each block of rows of a (second-level cache): pack it in strips of a tile's height
///       for each panel of b (first-level cache)
///         for each register tile of rows: c (+)= a b
template <class Accumulator, class A, class B, class C>
class MatrixProduct {
  using L = Lanes<Accumulator>;
  static constexpr Index lanes = Panels<Accumulator>::widest * L::size;
  static constexpr int height = tile_rows<Panels<Accumulator>::widest>;
  static constexpr int strip = std::lcm(height, static_cast<int>(L::size));

 public:
  MatrixProduct(Index m, Index k, Index n) : m_(m), k_(k), n_(n) {
    const auto size = static_cast<Index>(sizeof(Accumulator));
    // A panel of b takes up to three quarters of the first-level cache. Sums of half precision
    // would be rounded between runs of depth, so for them there is one run.
    depth_ =
        std::is_same_v<C, Accumulator>
            ? even_part(k, std::max<Index>(Eigen::l1CacheSize() * 3 / 4 / (lanes * size), 64), 1)
            : k;
    // A block of a takes up to a quarter of the second-level cache; more rows than this gain
    // nothing, as each panel of b is read once for all of them.
    rows_ = even_part(m, std::clamp<Index>(Eigen::l2CacheSize() / 4 / (depth_ * size), 24, 96), 12);
    // The packed part of b stays within 2 MiB, a share of the third-level cache.
    columns_ = even_part(n, std::max<Index>((Index(2) << 20) / (depth_ * size), lanes), lanes);
  }

  /// At most 2 MiB and a quarter of the second-level cache (more where a panel of 24 columns, or a
  /// sum of half precision, is deeper than that).
  std::size_t scratch_bytes() const {
    return Scratch::bytes<Accumulator>((columns_ + lanes) * depth_) +
           Scratch::bytes<Accumulator>((rows_ + strip) * depth_);
  }

  /// done(row, rows, column, columns) is called for each part of c that has its final numbers.
  template <class Done>
  void run(Scratch& scratch, const Slab<const A>& a, const Slab<const B>& b, const Slab<C>& c,
           const Done& done) const {
    Accumulator* panels = scratch.take<Accumulator>((columns_ + lanes) * depth_);
    Accumulator* copies = scratch.take<Accumulator>((rows_ + strip) * depth_);
    for (Index j = 0; j < n_; j += columns_) {
      const Index columns = std::min(columns_, n_ - j);
      for (Index d = 0; d < k_; d += depth_) {
        const Index depth = std::min(depth_, k_ - d);
        const Panels<Accumulator> split(columns);
        for_each_panel(split, [&]<int Vectors>(Index first) {
          pack_columns<Vectors>(b, d, depth, j + first, columns - first, panels + first * depth);
        });
        for (Index i = 0; i < m_; i += rows_) {
          const Index rows = std::min(rows_, m_ - i);
          const Slab<const A> block{a.at(i, d), a.row_stride, a.column_stride};
          const auto multiply = [&](const auto& left) {
            for_each_panel(split, [&]<int Vectors>(Index first) {
              multiply_panel<Vectors>(left, rows, depth, panels + first * depth, d == 0, c, i,
                                      j + first, columns - first);
              if (d + depth == k_) {
                done(i, rows, j + first, std::min(Vectors * L::size, columns - first));
              }
            });
          };
          if (in_place(a)) {
            multiply(rows_of(block, 0, rows, depth, true, copies));
          } else {
            multiply(pack_rows(block, rows, depth, copies));
          }
        }
      }
    }
  }

 private:
  /// The smallest even share of `whole` in parts of at most `most`, in multiples of `unit`.
  static Index even_part(Index whole, Index most, Index unit) {
    const Index parts = (whole + most - 1) / most;
    const Index part = parts > 0 ? (whole + parts - 1) / parts : 1;
    return std::max<Index>((part + unit - 1) / unit * unit, 1);
  }

  /// Rows of a in strips: [strip][depth][row of the strip], so that register tiles read one stream,
  /// front to back.
  struct Strips {
    const Accumulator* data;
    Index depth;
  };
  static Strips pack_rows(const Slab<const A>& a, Index rows, Index depth, Accumulator* to) {
    for (Index row = 0; row < rows; row += strip) {
      pack_lanes(a, row, std::min<Index>(strip, rows - row), depth, strip, to + row * depth);
    }
    return {to, depth};
  }

  /// Packing pays where several panels of b meet rows that are long; others are read in place.
  bool in_place(const Slab<const A>& a) const {
    return std::is_same_v<A, Accumulator> && a.column_stride == 1 &&
           (n_ <= 4 * lanes || depth_ <= 128);
  }

  template <class Tile>
  EIGEN_ALWAYS_INLINE static void accumulate(Tile& tile, const Accumulator* panel,
                                             const Rows<Accumulator>& left, Index row,
                                             Index depth) {
    tile.accumulate(panel, left[row], left.stride, std::integral_constant<Index, 1>(), depth,
                    MultiplyAdd());
  }
  template <class Tile>
  EIGEN_ALWAYS_INLINE static void accumulate(Tile& tile, const Accumulator* panel,
                                             const Strips& left, Index row, Index depth) {
    tile.accumulate(panel, left.data + row / strip * strip * left.depth + row % strip,
                    std::integral_constant<Index, 1>(), std::integral_constant<Index, strip>(),
                    depth, MultiplyAdd());
  }

  template <class Body>
  static void for_each_panel(const Panels<Accumulator>& split, const Body& body) {
    for (Index p = 0; p < split.count; ++p) {
      const auto panel = split[p];
      with_vectors(panel.vectors,
                   [&]<int Vectors>() { body.template operator()<Vectors>(panel.first); });
    }
  }

  /// panel[d][lane] = b(first_row + d, first_column + lane); lanes from `columns` on repeat.
  template <int Vectors>
  static void pack_columns(const Slab<const B>& b, Index first_row, Index depth, Index first_column,
                           Index columns, Accumulator* panel) {
    constexpr Index width = Vectors * L::size;
    if constexpr (std::is_same_v<B, Accumulator>) {
      if (b.column_stride == 1 && columns >= width) {
        for (Index d = 0; d < depth; ++d) {
#pragma GCC unroll 16
          for (int v = 0; v < Vectors; ++v) {
            L::load(b.at(first_row + d, first_column + v * L::size))
                .store(panel + d * width + v * L::size);
          }
        }
        return;
      }
    }
    const Slab<const B> turned{b.at(first_row, first_column), b.column_stride, b.row_stride};
    pack_lanes(turned, 0, std::min(columns, width), depth, width, panel);
  }

  template <int Vectors, class Left>
  EIGEN_DONT_INLINE static void multiply_panel(const Left& left, Index rows, Index depth,
                                               const Accumulator* panel, bool first_run,
                                               const Slab<C>& c, Index i, Index j, Index columns) {
    constexpr Index width = Vectors * L::size;
    for_each_tile<(std::is_same_v<Left, Strips> ? height : tile_rows<Vectors>)>(
        rows, [&]<int Rows>(Index row) __attribute__((always_inline)) {
          RegisterTile<Accumulator, Rows, Vectors> tile;
          accumulate(tile, panel, left, row, depth);
#pragma GCC unroll 16
          for (int r = 0; r < Rows; ++r) {
            if (std::is_same_v<C, Accumulator> && c.column_stride == 1 && columns >= width) {
              auto* to = reinterpret_cast<Accumulator*>(c.at(i + row + r, j));
#pragma GCC unroll 16
              for (int v = 0; v < Vectors; ++v) {
                const L sum = tile.sum[r][v];
                (first_run ? sum : sum + L::load(to + v * L::size)).store(to + v * L::size);
              }
            } else {
              Accumulator sums[length(width)];
#pragma GCC unroll 16
              for (int v = 0; v < Vectors; ++v) tile.sum[r][v].store(sums + v * L::size);
              for (Index l = 0; l < std::min(columns, width); ++l) {
                C& to = c(i + row + r, j + l);
                to = static_cast<C>(first_run ? sums[l] : sums[l] + static_cast<Accumulator>(to));
              }
            }
          }
        });
  }

  Index m_, k_, n_, depth_ = 0, rows_ = 0, columns_ = 0;
};

/// Up to so many rows of a, of a depth of k, lanes over the depth are the faster ones: each number
/// that FewRows gives ends in a sum over lanes, which takes as long as some 32 multiply-adds of
/// vectors.
constexpr Index few_rows(Index k) { return std::clamp<Index>(k / 32, 1, 12); }

/// c = a b for each pair of matrices. The epilogue, if any, is called for every block of c; see
/// there.
template <class AElement, class BElement, class C>
void multiply(const View<AElement, 4>& left_factor, const View<BElement, 4>& right_factor,
              const View<C, 4>& c, Eigen::ThreadPoolInterface* pool,
              const Epilogue& epilogue = {}) {
  using A = std::remove_const_t<AElement>;
  using B = std::remove_const_t<BElement>;
  using Accumulate = Accumulator<A>;
  const View<const A, 4> a = left_factor;
  const View<const B, 4> b = right_factor;
  const Index m = a.shape[2], k = a.shape[3], n = b.shape[3], heads = a.shape[1];
  if (c.size() == 0) return;
  if constexpr (Laned<Accumulate>) {
    // Decided by the whole product, never by a thread's share.
    if (k > 0 && m <= few_rows(k) && a.strides[3] == 1 && b.strides[2] == 1) {
      constexpr Index share = 64;  // columns
      const Index shares = (n + share - 1) / share;
      return parallel_for(pool, a.shape[0] * heads * shares, [&](Index first, Index last) {
        for (Index item = first; item < last;) {
          const Index matrix = item / shares, head = matrix % heads, batch = matrix / heads;
          const Index stop = std::min(last, (matrix + 1) * shares);
          const auto left = slab(a, batch, head);
          const auto right = slab(b, batch, head);
          const Index column = item % shares * share;
          const Index end = std::min((stop - matrix * shares) * share, n);
          FewRows<Accumulate, A, B, C>::run({left.data, left.row_stride}, m,
                                            {right.data, right.column_stride}, column, end, k,
                                            slab(c, batch, head));
          epilogue({batch, head, 0, m, column, end - column});
          item = stop;
        }
      });
    }
    if (k > 0 && b.strides[2] == 1 && RowsInLanes<Accumulate, A, B, C>::suits(m, k, n)) {
      return multiply_rows_in_lanes<Accumulate>(a, b, c, pool, epilogue);
    }
    // Lanes run along rows of c; where its columns are the contiguous ones, c^T = b^T a^T.
    if (c.strides[3] != 1 && c.strides[2] == 1) {
      const auto turned = [](auto x) {
        std::swap(x.shape[2], x.shape[3]);
        std::swap(x.strides[2], x.strides[3]);
        return x;
      };
      if (n > 1) return multiply(turned(b), turned(a), turned(c), pool, epilogue.turned());
    }
  }
  // Threads share a matrix by blocks of rows; each block packs the right factor for itself.
  const Index block = pool ? std::max<Index>(96, (m / 8 + 11) / 12 * 12) : m;
  const Index blocks = (m + block - 1) / block;
  parallel_for(pool, a.shape[0] * heads * blocks, [&](Index first, Index last) {
    for (Index item = first; item < last; ++item) {
      const Index row = item % blocks * block, rows = std::min(block, m - row);
      const Index head = item / blocks % heads, batch = item / blocks / heads;
      auto left = slab(a, batch, head);
      const auto right = slab(b, batch, head);
      auto to = slab(c, batch, head);
      left.data += row * left.row_stride;
      to.data += row * to.row_stride;
      if constexpr (Laned<Accumulate>) {
        if (k > 0) {
          const MatrixProduct<Accumulate, A, B, C> product(rows, k, n);
          Scratch scratch(product.scratch_bytes());
          product.run(scratch, left, right, to,
                      [&](Index first_row, Index count, Index column, Index columns) {
                        epilogue({batch, head, row + first_row, count, column, columns});
                      });
          continue;
        }
      }
      for (Index i = 0; i < rows; ++i) {
        for (Index j = 0; j < n; ++j) {
          Accumulate sum(0.0);
          for (Index d = 0; d < k; ++d) {
            sum += static_cast<Accumulate>(left(i, d)) * static_cast<Accumulate>(right(d, j));
          }
          to(i, j) = static_cast<C>(sum);
        }
        epilogue({batch, head, row + i, 1, 0, n});
      }
    }
  });
}

}  // namespace heed::detail
