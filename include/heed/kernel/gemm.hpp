#pragma once

#include <algorithm>
#include <span>
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
#include "heed/kernel/right_factor.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/kernel/rows_in_lanes.hpp"
#include "heed/simd/convert.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// c = a b for one pair of matrices, a (m, k), b (k, n), c (m, n), in the order of Goto and van de
/// Geijn ("Anatomy of high-performance matrix multiplication", 2008), with a and b in changed
/// roles:
///
///   for each group of depth and columns: pack b in panels (lanes of some vectors), shared by all
///     for each piece of rows of a and each block of columns (second-level cache)
///       for each run of depth
///         for each few rows of a, in place where they are contiguous
///           for each panel of b, for each register tile of rows: c (+)= a b
template <class Accumulator, class A, class B, class C>
class MatrixProduct {
  using L = Lanes<Accumulator>;
  static constexpr int widest = accumulator_registers >= 24 ? 4 : 3;
  static constexpr Index lanes = widest * L::size;
  static constexpr Index packed_bytes = Index(4) << 20;
  using Split = EvenPanels<Accumulator, widest>;
  static constexpr bool narrow = !std::is_same_v<C, Accumulator>;

 public:
  /// For so many threads.
  MatrixProduct(Index m, Index k, Index n, Index threads) : m_(m), k_(k), n_(n) {
    constexpr auto size = static_cast<Index>(sizeof(Accumulator));
    constexpr Index tallest = accumulator_registers;
    const auto near = static_cast<Index>(Eigen::l1CacheSize()),
               far = static_cast<Index>(Eigen::l2CacheSize());
    // From a second-level cache of 1 MiB on, panels are read from there as fast as they are worked
    // on: c is then seldom read again, as runs of depth are long, and few rows stay in the first
    // level. Otherwise it is a panel of b that stays there, and many rows share it.
    const bool deep = far >= (Index(1) << 20);
    run_ = even_part(k, deep ? 1024 : std::max<Index>(near * 3 / 4 / (lanes * size), 64), 1);
    depth_ = std::max<Index>(4096 / run_, 1) * run_;
    // Sums of half precision would be rounded between runs of depth, so for them there is one.
    if (narrow) run_ = depth_ = k;
    depth_ = std::min(depth_, k);
    // Where b is so deep that few of its columns would stay, and a be read again for each few of
    // them, it is rows of a that stay, for a run of depth, and b comes from the third-level cache.
    const bool passing = !deep && !narrow && far / 2 < 3 * lanes * depth_ * size;
    if (passing) depth_ = run_;
    // Rows far apart share few sets of a cache, and each has a page of its own.
    copied_ = passing && n >= 16 * lanes;
    columns_ =
        even_part(n, std::max((passing ? packed_bytes : far / 2) / (depth_ * size), lanes), lanes);
    // What is packed is then still in that cache when it is read; or more of it for each reading of
    // a and each meeting of the threads.
    group_ = deep ? columns_
                  : even_part(n, std::max(packed_bytes / (depth_ * size), columns_), columns_);
    const Index most =
        deep ? 2 * tallest : std::clamp<Index>(far / 4 / (run_ * size), 2 * tallest, 8 * tallest);
    // As many pieces for each thread, of heights that leave no row by itself.
    piece_ = threads > 1
                 ? even_part(m, std::max<Index>(even_part(m, most * threads, 1) / threads, 1), 4)
                 : even_part(m, most, tallest);
    rows_ = deep ? tallest : piece_;
  }

  /// A width of parts of c that are products by themselves, as many for each thread, or 0 where no
  /// width is even enough. Threads that share such parts meet once, and none reads what another has
  /// packed, which lies in that one's cache. Bits are the same, as the order of a sum depends on
  /// the depth alone.
  Index columns_apart(Index threads) const {
    const Index vectors = (n_ + L::size - 1) / L::size,
                each = std::clamp<Index>(vectors / (widest * threads), 1, 4),
                least = std::max(each * threads, (n_ + columns_ - 1) / columns_),
                parts = (least + threads - 1) / threads * threads,
                width = (vectors + parts - 1) / parts;
    return 16 * width * parts <= 17 * vectors ? width * L::size : 0;
  }

  /// done(row, rows, column, columns) is called for each part of c that has its final numbers.
  template <class Done>
  void run(const Slab<const A>& a, const Slab<const B>& b, const Slab<C>& c,
           Eigen::ThreadPoolInterface* pool, const Done& done) const {
    Accumulator* packed = nullptr;
    const Scratch scratch([&](Layout& layout) {
      packed = layout.take<Accumulator>(padded<Accumulator>(std::min(group_, n_)) * depth_);
    });
    for (Index column = 0; column < n_; column += group_) {
      for (Index row = 0; row < k_; row += depth_) {
        const Group group{column, std::min(group_, n_ - column), row, std::min(depth_, k_ - row),
                          packed};
        pack(b, group, pool);
        multiply(a, group, c, pool, done);
      }
    }
  }

 private:
  /// A part of b, packed: panels of the depth one after the other.
  struct Group {
    Index column, columns, row, depth;
    Accumulator* panels;
  };

  /// The smallest even share of `whole` in parts of at most `most`, in multiples of `unit`.
  static Index even_part(Index whole, Index most, Index unit) {
    const Index parts = (whole + most - 1) / most;
    const Index part = parts > 0 ? (whole + parts - 1) / parts : 1;
    return std::max<Index>((part + unit - 1) / unit * unit, 1);
  }

  void pack(const Slab<const B>& b, const Group& group, Eigen::ThreadPoolInterface* pool) const {
    // As much of the depth as has its pages and lines still near when the next panel reads on.
    constexpr Index some = 64;
    const Index blocks = (group.columns + columns_ - 1) / columns_, panels = columns_ / lanes,
                parts = (group.depth + some - 1) / some;
    parallel_for(pool, blocks * panels * parts, [&](Index first, Index last) {
      for (Index item = first; item < last; ++item) {
        const Index block = item / parts / panels * columns_, p = item % panels;
        const Split split(std::min(columns_, group.columns - block));
        if (p >= split.count) continue;
        const Index column = block + split[p].first, width = split[p].vectors * L::size,
                    d = item / panels % parts * some;
        pack_columns({b.at(group.row + d, group.column + column), b.row_stride, b.column_stride},
                     std::min(some, group.depth - d), std::min(width, group.columns - column),
                     width, group.panels + column * group.depth + d * width);
      }
    });
  }

  /// panel[d][lane] = b(d, lane); lanes from `columns` on repeat.
  static void pack_columns(const Slab<const B>& b, Index depth, Index columns, Index width,
                           Accumulator* panel) {
    if constexpr (std::is_same_v<B, Accumulator>) {
      if (b.column_stride == 1 && columns == width) {
        for (Index d = 0; d < depth; ++d) {
          for (Index lane = 0; lane < width; lane += L::size) {
            L::load(b.at(d, lane)).store(panel + d * width + lane);
          }
        }
        return;
      }
    }
    pack_lanes(Slab<const B>{b.data, b.column_stride, b.row_stride}, 0, columns, depth, width,
               panel);
  }

  template <class Done>
  void multiply(const Slab<const A>& a, const Group& group, const Slab<C>& c,
                Eigen::ThreadPoolInterface* pool, const Done& done) const {
    const Index blocks = (group.columns + columns_ - 1) / columns_;
    const Index pieces = (m_ + piece_ - 1) / piece_;
    const bool in_place = std::is_same_v<A, Accumulator> && a.column_stride == 1 && !copied_;
    parallel_for(pool, blocks * pieces, [&](Index first, Index last) {
      Accumulator* copies = nullptr;
      const Scratch scratch([&](Layout& layout) {
        copies = layout.take<Accumulator>(in_place ? 0 : rows_ * padded<Accumulator>(run_));
      });
      for (Index item = first; item < last; ++item) {
        const Index block = item / pieces * columns_, piece = item % pieces * piece_;
        const Index columns = std::min(columns_, group.columns - block);
        for (Index d = 0; d < group.depth; d += run_) {
          const Index depth = std::min(run_, group.depth - d);
          const bool final = group.row + d + depth == k_;
          for (Index row = piece; row < std::min(piece + piece_, m_); row += rows_) {
            const Index rows = std::min({rows_, piece + piece_ - row, m_ - row});
            const auto left =
                rows_of_factor({a.at(row, group.row + d), a.row_stride, a.column_stride}, in_place,
                               rows, depth, copies);
            const Split split(columns);
            for (Index p = 0; p < split.count; ++p) {
              const auto panel = split[p];
              const Index column = block + panel.first, width = panel.vectors * L::size;
              const Index count = std::min(width, group.columns - column);
              const Target to{c.at(row, group.column + column),
                              c.row_stride,
                              c.column_stride,
                              count,
                              group.row + d == 0,
                              group.row > 0 && d == 0};
              with_vectors<widest>(panel.vectors, [&]<int Vectors>() {
                multiply_panel<Vectors>(left, rows, depth,
                                        group.panels + column * group.depth + d * width, to);
              });
              if (final) done(row, rows, group.column + column, count);
            }
          }
        }
      }
    });
  }

  /// Contiguous rows: in place, or copied.
  static Rows<Accumulator> rows_of_factor(const Slab<const A>& a, bool in_place, Index rows,
                                          Index depth, Accumulator* copies) {
    if (a.column_stride == 1 || a.row_stride != 1) {
      return rows_of(a, 0, rows, depth, in_place, copies);
    }
    const Index width = padded<Accumulator>(depth);
    pack_lanes(Slab<const A>{a.data, a.column_stride, a.row_stride}, 0, depth, rows, width, copies);
    return {copies, width};
  }

  /// Where a panel's numbers belong: `columns` columns of c.
  struct Target {
    C* data;
    Index row_stride, column_stride, columns;
    bool first_run;
    bool far;  ///< sums that were written before all other columns
  };

  template <int Vectors>
  EIGEN_DONT_INLINE static void multiply_panel(const Rows<Accumulator>& left, Index rows,
                                               Index depth, const Accumulator* panel,
                                               const Target& c) {
    constexpr Index width = Vectors * L::size;
    const bool whole = !narrow && c.column_stride == 1 && c.columns == width;
    for_each_tile<tile_rows<Vectors>>(
        rows, [&]<int Rows>(Index row) __attribute__((always_inline)) {
          if (whole && c.far) {
            for (Index r = row; r < row + Rows; ++r) fetch(c.data + r * c.row_stride, width);
          }
          RegisterTile<Accumulator, Rows, Vectors> tile;
          tile.accumulate(panel, left[row], left.stride, std::integral_constant<Index, 1>(), depth,
                          MultiplyAdd());
          if (whole) {
#pragma GCC unroll 32
            for (int r = 0; r < Rows; ++r) {
              auto* to = reinterpret_cast<Accumulator*>(c.data + (row + r) * c.row_stride);
#pragma GCC unroll 16
              for (int v = 0; v < Vectors; ++v) {
                const L sum = tile.sum[r][v];
                (c.first_run ? sum : sum + L::load(to + v * L::size)).store(to + v * L::size);
              }
            }
          } else {
            alignas(64) Accumulator sums[length(Rows * width)];
#pragma GCC unroll 32
            for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 16
              for (int v = 0; v < Vectors; ++v)
                tile.sum[r][v].store(sums + r * width + v * L::size);
            }
            add_to(c, row, Rows, sums, width);
          }
        });
  }

  /// Sums of a tile where its vectors do not lie in c as they are.
  EIGEN_DONT_INLINE static void add_to(const Target& c, Index first, Index rows,
                                       const Accumulator* sums, Index width) {
    for (Index row = 0; row < rows; ++row, sums += width) {
      C* const to = c.data + (first + row) * c.row_stride;
      Index j = 0;
      for (; c.column_stride == 1 && j + L::size <= c.columns; j += L::size) {
        const L sum = L::load(sums + j);
        store_narrowed(c.first_run ? sum : sum + load_widened<Accumulator>(to + j), to + j);
      }
      for (; j < c.columns; ++j) {
        C& at = to[j * c.column_stride];
        at = static_cast<C>(c.first_run ? sums[j] : sums[j] + static_cast<Accumulator>(at));
      }
    }
  }

  Index m_, k_, n_;
  Index run_;      ///< depth of what is summed in registers
  Index depth_;    ///< of a group
  Index columns_;  ///< of b that stay in the second-level cache
  Index group_;    ///< columns that are packed at a time
  Index piece_;    ///< rows that one thread takes at a time
  Index rows_;     ///< rows that stay in a near cache while panels go by
  bool copied_;    ///< whether these are copied even where they are contiguous
};

/// c = a b for each pair of matrices. The epilogue, if any, is called for every block of c.
template <class A, class BElement, class C>
void multiply(const View<A, 4>& a, const View<BElement, 4>& b, const View<C, 4>& c,
              Eigen::ThreadPoolInterface* pool, const Epilogue& epilogue = {});

/// c = a b for each right factor and each pair of matrices, bit for bit what each product gives
/// alone: the rows of a are packed once, and threads share the columns of all. The epilogues, if
/// any, are called for every block of their c; see there.
template <class AElement, class B, class C>
void multiply(const View<AElement, 4>& left_factor, std::span<const RightFactor<B, C>> factors,
              Eigen::ThreadPoolInterface* offered) {
  using A = std::remove_const_t<AElement>;
  using Accumulate = Accumulator<A>;
  const View<const A, 4> a = left_factor;
  const Index m = a.shape[2], k = a.shape[3], heads = a.shape[1], matrices = a.shape[0] * heads;
  double multiply_adds = 0;
  for (const auto& factor : factors) {
    multiply_adds += static_cast<double>(factor.c.size()) * static_cast<double>(k);
  }
  Eigen::ThreadPoolInterface* const pool =
      Laned<Accumulate> ? pool_for(multiply_adds, offered) : offered;
  if constexpr (Laned<Accumulate>) {
    // Decided by each whole product, never by a thread's share or by what is beside it.
    const auto all = [&](const auto& suits) {
      return k > 0 && m * matrices > 0 &&
             std::all_of(factors.begin(), factors.end(), [&](const auto& factor) {
               return factor.c.shape[3] == 0 || (factor.b.strides[2] == 1 && suits(factor));
             });
    };
    if (m <= few_rows(k) && a.strides[3] == 1 && all([](const auto&) { return true; })) {
      return multiply_few_rows<Accumulate>(a, factors, pool);
    }
    if (all([&](const auto& factor) {
          return RowsInLanes<Accumulate, A, B, C>::suits(m, k, factor.c.shape[3]);
        })) {
      return multiply_rows_in_lanes<Accumulate>(a, factors, pool);
    }
  }
  if (factors.size() != 1) {
    for (const auto& factor : factors) multiply(a, std::span(&factor, 1), pool);
    return;
  }
  const View<const B, 4>& b = factors.front().b;
  const View<C, 4>& c = factors.front().c;
  const Epilogue& epilogue = factors.front().epilogue;
  const Index n = b.shape[3];
  if (c.size() == 0) return;
  if constexpr (Laned<Accumulate>) {
    // Lanes run along rows of c; where its columns are the contiguous ones, c^T = b^T a^T.
    if (c.strides[3] != 1 && c.strides[2] == 1 && n > 1) {
      const auto turned = [](auto x) {
        std::swap(x.shape[2], x.shape[3]);
        std::swap(x.strides[2], x.strides[3]);
        return x;
      };
      return multiply(turned(b), turned(a), turned(c), pool, epilogue.turned());
    }
  }
  if constexpr (Laned<Accumulate>) {
    if (k > 0) {
      // Threads share matrices, or each of a few large ones.
      const bool large = m * k * n >= Index(1) << 20;
      const bool shared = pool && large && matrices < 2 * pool->NumThreads();
      using Product = MatrixProduct<Accumulate, A, B, C>;
      const Product product(m, k, n, shared ? pool->NumThreads() : 1);
      // The columns of a matrix from `begin` on, as many as the product has.
      const auto columns_of = [&](const Product& part, Index matrix, Index begin,
                                  Eigen::ThreadPoolInterface* threads) {
        const Index batch = matrix / heads, head = matrix % heads;
        auto right = slab(b, batch, head);
        auto to = slab(c, batch, head);
        right.data = right.at(0, begin);
        to.data = to.at(0, begin);
        part.run(slab(a, batch, head), right, to, threads,
                 [&](Index row, Index rows, Index column, Index columns) {
                   epilogue({batch, head, row, rows, begin + column, columns});
                 });
      };
      // Rows that are not read in place would be copied for every part.
      if constexpr (std::is_same_v<A, Accumulate>) {
        const Index width =
            shared && a.strides[3] == 1 ? product.columns_apart(pool->NumThreads()) : 0;
        if (width > 0) {
          const Index parts = (n + width - 1) / width;
          return parallel_for(pool, matrices * parts, [&](Index first, Index last) {
            for (Index item = first; item < last; ++item) {
              const Index begin = item % parts * width;
              columns_of(Product(m, k, std::min(width, n - begin), 1), item / parts, begin,
                         nullptr);
            }
          });
        }
      }
      if (shared) {
        for (Index matrix = 0; matrix < matrices; ++matrix) columns_of(product, matrix, 0, pool);
        return;
      }
      return parallel_for(pool, matrices, [&](Index first, Index last) {
        for (Index matrix = first; matrix < last; ++matrix) columns_of(product, matrix, 0, nullptr);
      });
    }
  }
  parallel_for(pool, matrices * m, [&](Index first, Index last) {
    for (Index item = first; item < last; ++item) {
      const Index i = item % m, head = item / m % heads, batch = item / m / heads;
      const auto left = slab(a, batch, head);
      const auto right = slab(b, batch, head);
      const auto to = slab(c, batch, head);
      for (Index j = 0; j < n; ++j) {
        Accumulate sum(0.0);
        for (Index d = 0; d < k; ++d) {
          sum += static_cast<Accumulate>(left(i, d)) * static_cast<Accumulate>(right(d, j));
        }
        to(i, j) = static_cast<C>(sum);
      }
      epilogue({batch, head, i, 1, 0, n});
    }
  });
}

template <class A, class BElement, class C>
void multiply(const View<A, 4>& a, const View<BElement, 4>& b, const View<C, 4>& c,
              Eigen::ThreadPoolInterface* pool, const Epilogue& epilogue) {
  const RightFactor<std::remove_const_t<BElement>, C> factor{b, c, epilogue};
  multiply(a, std::span(&factor, 1), pool);
}

}  // namespace heed::detail
