#pragma once

#include <algorithm>

#include "heed/kernel/pack.hpp"
#include "heed/kernel/panels.hpp"
#include "heed/kernel/register_tile.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/kernel/stairs.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

/// A panel of queries within a block: lanes `first` to first + lanes - 1, of which `count` are
/// queries, and how many of a tile's keys it is concerned with.
struct QueryPanel {
  Index first, lanes, count, keys;
};

/// sums[row][c] += sum over queries i of pairs[row][i] * features[i][c], for the columns of one
/// panel of features, or = where the sums are fresh. `pairs` holds each panel of queries as
/// [row][lane], `capacity` rows of them; rows of sums are sum_stride apart.
template <int Vectors, class Accumulator>
EIGEN_DONT_INLINE void add_outer(const QueryPanel* panels, Index panel_count,
                                 const Accumulator* pairs, Index capacity, Index rows,
                                 const Accumulator* features, Accumulator* sums, Index sum_stride,
                                 bool fresh) {
  using L = Lanes<Accumulator>;
  constexpr Index width = Vectors * L::size;
  // A chain of additions has a rounding error that grows with its length: one of 48 queries, and
  // one of these.
  constexpr Index run = std::max<Index>(1, 48 / (Panels<Accumulator>::widest * L::size));
  for_each_tile<tile_rows<Vectors>>(rows, [&]<int Rows>(Index j) __attribute__((always_inline)) {
    Accumulator* to = sums + j * sum_stride;
    // The next sums, which the products of the next rows would wait for.
    const bool apart = sum_stride != width;
    for (int r = Rows; r < (apart ? 2 * Rows : Rows + 1); ++r) {
      fetch(to + r * sum_stride, apart ? width : Rows * width);
    }
    for (Index first = 0; first < panel_count; first += run) {
      L sum[length(Rows)][length(Vectors)];
#pragma GCC unroll 16
      for (auto& row : sum) {
#pragma GCC unroll 16
        for (L& vector : row) vector = L(0);
      }
      for (Index p = first; p < std::min(first + run, panel_count); ++p) {
        const QueryPanel& panel = panels[p];
        if (j >= panel.keys) continue;
        const Accumulator* x = pairs + panel.first * capacity + j * panel.lanes;
        const Accumulator* feature = features + panel.first * width;
        const Index stride = panel.lanes;
#pragma GCC unroll 4
        for (Index i = 0; i < panel.count; ++i) {
          L lanes[length(Vectors)];
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
      const bool write = fresh && first == 0;
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < Vectors; ++v) {
          Accumulator* at = to + r * sum_stride + v * L::size;
          (write ? sum[r][v] : sum[r][v] + L::load(at)).store(at);
        }
      }
    }
  });
}

/// add_outer for every panel of features; the first row is number first_row of the sums.
template <class Accumulator>
void add_outer(const QueryPanel* query_panels, Index panel_count, const Accumulator* pairs,
               Index capacity, Index rows, const Accumulator* features, Index queries,
               Index columns, const FeatureRows<Accumulator>& sums, Index first_row, bool fresh) {
  using L = Lanes<Accumulator>;
  const FeaturePanels<Accumulator> panels(columns);
  for (Index p = 0; p < panels.count; ++p) {
    const auto panel = panels[p];
    const Index width = panel.vectors * L::size;
    with_vectors<4>(panel.vectors, [&]<int Vectors>() {
      add_outer<Vectors>(query_panels, panel_count, pairs, capacity, rows,
                         features + panel.first * queries, sums.at(first_row, panel.first, width),
                         sums.stride(width), fresh);
    });
  }
}

/// add_product of keys that do not count for all vectors.
template <int Vectors, class Scalar>
EIGEN_DONT_INLINE void add_product(const Scalar* panel, const Rows<Scalar>& x, Index depth,
                                   const Stairs& stairs, Index width, const Scalar* factor,
                                   Scalar* result) {
  using L = Lanes<Scalar>;
  for_each_tile<tile_rows<Vectors>>(width, [&]<int Columns>(
                                               Index c) __attribute__((always_inline)) {
    L sum[length(Columns)][length(Vectors)];
#pragma GCC unroll 24
    for (auto& row : sum) {
#pragma GCC unroll 16
      for (L& vector : row) vector = L(0);
    }
    stairs.for_each<Vectors>(0, depth,
                             [&]<int From>(Index begin, Index end) __attribute__((always_inline)) {
#pragma GCC unroll 4
                               for (Index j = begin; j < end; ++j) {
                                 L lanes[length(Vectors)];
#pragma GCC unroll 16
                                 for (int v = From; v < Vectors; ++v) {
                                   lanes[v] = L::load(panel + (j * Vectors + v) * L::size).pinned();
                                 }
                                 const Scalar* row = x[j] + c;
#pragma GCC unroll 24
                                 for (int r = 0; r < Columns; ++r) {
                                   const L broadcast(row[r]);
#pragma GCC unroll 16
                                   for (int v = From; v < Vectors; ++v)
                                     sum[r][v] = fma(lanes[v], broadcast, sum[r][v]);
                                 }
                               }
                             });
#pragma GCC unroll 24
    for (int r = 0; r < Columns; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) {
        Scalar* to = result + ((c + r) * Vectors + v) * L::size;
        (factor ? fma(L::load(to), L::load(factor + v * L::size), sum[r][v]) : sum[r][v]).store(to);
      }
    }
  });
}

/// rows[i][c] = factor[i] * sum over j < keys of weights[j][i] * values[j][c], for i < count and c
/// < Vectors * L::size. `weights` has `lanes` numbers for each key; rows of results are `stride`
/// apart. Returns zeros, or NaN where a result is NaN or infinite.
template <int Vectors, class Accumulator, class Scalar>
EIGEN_DONT_INLINE Lanes<Accumulator> weighted_rows(const Accumulator* weights,
                                                   const Accumulator* factor, Index lanes,
                                                   Index count, Index keys,
                                                   Rows<Accumulator> values, Scalar* rows,
                                                   Index stride) {
  using L = Lanes<Accumulator>;
  L zero(0);
  for_each_tile<tile_rows<Vectors>>(count, [&]<int Count>(Index i) __attribute__((always_inline)) {
    L sum[length(Count)][length(Vectors)];
#pragma GCC unroll 16
    for (auto& row : sum) {
#pragma GCC unroll 16
      for (L& vector : row) vector = L(0);
    }
    const Accumulator *weight = weights + i, *value = values.data;
#pragma GCC unroll 4
    for (Index j = 0; j < keys; ++j) {
      L vector[length(Vectors)];
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) {
        vector[v] = L::load(value + j * values.stride + v * L::size).pinned();
      }
#pragma GCC unroll 24
      for (int r = 0; r < Count; ++r) {
        const L broadcast(weight[j * lanes + r]);
#pragma GCC unroll 16
        for (int v = 0; v < Vectors; ++v) sum[r][v] = fma(vector[v], broadcast, sum[r][v]);
      }
    }
    L found[length(Vectors)];  // a chain of additions for each, beside the stores
#pragma GCC unroll 16
    for (L& vector : found) vector = L(0);
    Scalar* to = rows + i * stride;
#pragma GCC unroll 24
    for (int r = 0; r < Count; ++r, to += stride) {
      const L each(factor[i + r]);
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) {
        const L result = sum[r][v] * each;
        found[v] = fma(result, L(0), found[v]);
        store_narrowed(result, to + v * L::size);
      }
    }
#pragma GCC unroll 16
    for (const L& vector : found) zero += vector;
  });
  return zero;
}

/// That for all columns c < width, a multiple of L::size: rows of results, which need not be
/// turned.
template <class Accumulator, class Scalar>
Lanes<Accumulator> weighted_rows(const Accumulator* weights, const Accumulator* factor, Index lanes,
                                 Index count, Index keys, const Rows<Accumulator>& values,
                                 Index width, Scalar* rows, Index stride) {
  const Panels<Accumulator> panels(width);
  Lanes<Accumulator> zero(0);
  for (Index p = 0; p < panels.count; ++p) {
    const auto panel = panels[p];
    with_vectors(panel.vectors, [&]<int Vectors>() {
      zero += weighted_rows<Vectors>(weights, factor, lanes, count, keys,
                                     {values[0] + panel.first, values.stride}, rows + panel.first,
                                     stride);
    });
  }
  return zero;
}

}  // namespace heed::detail
