#pragma once

#include <algorithm>

#include "heed/detail/pack.hpp"
#include "heed/detail/tile.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// Columns in panels of one vector each; see Panels.
template <class Scalar>
struct SingleVectors {
  Index count;

  explicit SingleVectors(Index columns)
      : count((columns + Lanes<Scalar>::size - 1) / Lanes<Scalar>::size) {}
  typename Panels<Scalar>::Panel operator[](Index p) const { return {p * Lanes<Scalar>::size, 1}; }
};

/// Columns rounded up to whole vectors.
template <class Scalar>
Index padded(Index columns) {
  return (columns + Lanes<Scalar>::size - 1) / Lanes<Scalar>::size * Lanes<Scalar>::size;
}

/// Lays `count` rows of x with lanes over their columns: panel p of `PanelsOf` begins at
/// out + first * capacity and holds [row][column of the panel], with zeros behind the last column.
/// Everything is multiplied by the factor.
template <class PanelsOf, class Accumulator, class Scalar>
void pack_features(const Slab<const Scalar>& x, Index first, Index count, Index columns,
                   Index capacity, Accumulator* out, Accumulator factor = Accumulator(1)) {
  using L = Lanes<Accumulator>;
  const PanelsOf panels(columns);
  const Index whole = x.column_stride == 1 ? columns / L::size * L::size : 0;
  for (Index row = 0; row < count; ++row) {
    const Scalar* from = &x(first + row, 0);
    for (Index p = 0; p < panels.count; ++p) {
      const auto panel = panels[p];
      const Index width = panel.vectors * L::size;
      Accumulator* to = out + panel.first * capacity + row * width;
      for (Index c = panel.first; c < panel.first + width; c += L::size, to += L::size) {
        if (c < whole) {
          (load_widened<Accumulator>(from + c) * L(factor)).store(to);
        } else {
          for (Index lane = 0; lane < L::size; ++lane) {
            to[lane] = c + lane < columns
                           ? static_cast<Accumulator>(from[(c + lane) * x.column_stride]) * factor
                           : Accumulator(0);
          }
        }
      }
    }
  }
}

/// The inverse, from rows `from_row` on to rows first .. first + count-1 of x: the sum, in order,
/// of `parts` such layouts that lie `distance` apart.
template <class PanelsOf, class Accumulator, class Scalar>
void unpack_features(const Accumulator* from, Index parts, Index distance, Index capacity,
                     Index columns, const Slab<Scalar>& x, Index first, Index count,
                     Index from_row) {
  using L = Lanes<Accumulator>;
  const PanelsOf panels(columns);
  const Index whole = x.column_stride == 1 ? columns / L::size * L::size : 0;
  for (Index row = 0; row < count; ++row) {
    Scalar* to = &x(first + row, 0);
    for (Index p = 0; p < panels.count; ++p) {
      const auto panel = panels[p];
      const Index width = panel.vectors * L::size;
      const Accumulator* at = from + panel.first * capacity + (from_row + row) * width;
      for (Index c = panel.first; c < panel.first + width; c += L::size, at += L::size) {
        L sum = L::load(at);
        for (Index part = 1; part < parts; ++part) sum += L::load(at + part * distance);
        if (c < whole) {
          store_narrowed(sum, to + c);
        } else {
          alignas(64) Accumulator lanes[L::size];
          sum.store(lanes);
          for (Index lane = 0; lane < std::min(L::size, columns - c); ++lane) {
            to[(c + lane) * x.column_stride] = static_cast<Scalar>(lanes[lane]);
          }
        }
      }
    }
  }
}

/// Rows first .. first + count-1 of such a layout become 0.
template <class PanelsOf, class Accumulator>
void clear_features(Accumulator* features, Index capacity, Index columns, Index first,
                    Index count) {
  const PanelsOf panels(columns);
  for (Index p = 0; p < panels.count; ++p) {
    const Index width = panels[p].vectors * Lanes<Accumulator>::size;
    Accumulator* from = features + panels[p].first * capacity + first * width;
    std::fill(from, from + count * width, Accumulator(0));
  }
}

/// Where the number at (row, column) of such a layout is.
template <class PanelsOf, class Accumulator>
Index feature_offset(Index columns, Index capacity, Index row, Index column) {
  const PanelsOf panels(columns);
  Index p = 0;
  while (p + 1 < panels.count && panels[p + 1].first <= column) ++p;
  const auto panel = panels[p];
  return panel.first * capacity + row * panel.vectors * Lanes<Accumulator>::size + column -
         panel.first;
}

/// A panel of queries within a block: lanes `first` to first + lanes - 1, of which `count` are
/// queries, and how many of a tile's keys it is concerned with.
struct QueryPanel {
  Index first, lanes, count, keys;
};

/// sums[row][c] += sum over queries i of pairs[row][i] * features[i][c], for the columns of one
/// panel of features; fresh sums start at 0. `pairs` holds each panel of queries as [row][lane],
/// `capacity` rows of them.
template <int Vectors, class Accumulator>
EIGEN_DONT_INLINE void add_outer(const QueryPanel* panels, Index panel_count,
                                 const Accumulator* pairs, Index capacity, Index rows,
                                 const Accumulator* features, Accumulator* sums, bool fresh) {
  using L = Lanes<Accumulator>;
  constexpr Index width = Vectors * L::size;
  for_each_tile<tile_rows<Vectors>>(
      rows, [&]<int Rows>(Index j) __attribute__((always_inline)) {
        L sum[Rows][Vectors];
        Accumulator* to = sums + j * width;
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 16
          for (int v = 0; v < Vectors; ++v) {
            sum[r][v] = fresh ? L(0) : L::load(to + r * width + v * L::size);
          }
        }
        // The next sums, which the products of the next rows would wait for.
        fetch(to + Rows * width, Rows * width);
        for (Index p = 0; p < panel_count; ++p) {
          const QueryPanel& panel = panels[p];
          if (j >= panel.keys) continue;
          const Accumulator* x = pairs + panel.first * capacity + j * panel.lanes;
          const Accumulator* feature = features + panel.first * width;
          const Index stride = panel.lanes;
#pragma GCC unroll 4
          for (Index i = 0; i < panel.count; ++i) {
            L lanes[Vectors];
#pragma GCC unroll 16
            for (int v = 0; v < Vectors; ++v) {
              lanes[v] = L::load(feature + i * width + v * L::size).pinned();
            }
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r) {
              const L broadcast(x[r * stride + i]);
#pragma GCC unroll 16
              for (int v = 0; v < Vectors; ++v) {
                sum[r][v] = fma(lanes[v], broadcast, sum[r][v]);
              }
            }
          }
        }
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 16
          for (int v = 0; v < Vectors; ++v) sum[r][v].store(to + r * width + v * L::size);
        }
      });
}

/// add_outer for every panel of features; the first row is number first_row of the sums.
template <class Accumulator>
void add_outer(const QueryPanel* query_panels, Index panel_count, const Accumulator* pairs,
               Index capacity, Index rows, const Accumulator* features, Index queries,
               Index columns, Accumulator* sums, Index sum_capacity, Index first_row, bool fresh) {
  using L = Lanes<Accumulator>;
  const Panels<Accumulator> panels(columns);
  for (Index p = 0; p < panels.count; ++p) {
    const auto panel = panels[p];
    with_vectors(panel.vectors, [&]<int Vectors>() {
      add_outer<Vectors>(query_panels, panel_count, pairs, capacity, rows,
                         features + panel.first * queries,
                         sums + panel.first * sum_capacity + first_row * Vectors * L::size, fresh);
    });
  }
}

}  // namespace heed::detail
