#pragma once

#include <algorithm>
#include <type_traits>

#include "heed/kernel/panels.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

struct NothingElse {
  EIGEN_ALWAYS_INLINE void operator()(Index) const {}
};

/// A block of sums in registers: `Rows` broadcast numbers x `Vectors` vectors of lanes, of a panel
/// of `PanelVectors`.
template <class Scalar, int Rows, int Vectors, int PanelVectors = Vectors>
struct RegisterTile {
  using L = Lanes<Scalar>;
  L sum[length(Rows)][length(Vectors)];

  /// `each(d)` is called once for each d. sum[r][v] = step over d = 0 .. depth-1 of panel[d][v] and
  /// x[r * row_stride + d * depth_stride]. The strides are numbers or std::integral_constant.
  template <class RowStride, class DepthStride, class Step, class Each = NothingElse>
  EIGEN_ALWAYS_INLINE void accumulate(const Scalar* panel, const Scalar* x, RowStride row_stride,
                                      DepthStride depth_stride, Index depth, const Step& step,
                                      const Each& each = {}) {
#pragma GCC unroll 16
    for (auto& row : sum) {
#pragma GCC unroll 16
      for (L& vector : row) vector = L(0);
    }
    // By four: the branch predictor then learns where a loop over 64 features ends, which otherwise
    // costs a misprediction for each tile.
#pragma GCC unroll 4
    for (Index d = 0; d < depth; ++d) {
      L lanes[length(Vectors)];
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) {
        lanes[v] = L::load(panel + (d * PanelVectors + v) * L::size).pinned();
      }
      each(d);
      const Scalar* column = x + d * depth_stride;
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        const L broadcast(column[r * row_stride]);
#pragma GCC unroll 16
        for (int v = 0; v < Vectors; ++v) sum[r][v] = step(sum[r][v], lanes[v], broadcast, d);
      }
    }
  }
};

/// sum + lanes * broadcast: the step of every matrix product.
struct MultiplyAdd {
  template <class L>
  EIGEN_ALWAYS_INLINE L operator()(L sum, L lanes, L broadcast, Index) const {
    return fma(lanes, broadcast, sum);
  }
};

/// Rows of a register tile that is `Vectors` wide: as many as the accumulators allow.
template <int Vectors>
inline constexpr int tile_rows = accumulator_registers / Vectors;

/// Calls body.template operator()<Rows>(first) for blocks that cover 0 .. count-1: whole tiles
/// first, then lower ones, in steps that leave few sums idle (12, 8, 4, 2, 1). A tile and a
/// remainder that two of the next height cover as well (12 + 4, 6 + 2) become these, as the few
/// sums of the remainder would wait for each other.
template <int Rows, class Body>
EIGEN_ALWAYS_INLINE void for_each_tile(Index count, const Body& body, Index first = 0) {
  if constexpr (Rows == 1) {
    for (; first < count; ++first) body.template operator()<1>(first);
  } else {
    constexpr int lower = Rows > 4 ? std::max(4, Rows * 2 / 3 / 4 * 4) : Rows / 2;
    while (first + Rows <= count && (2 * lower <= Rows || count - first != 2 * lower)) {
      body.template operator()<Rows>(first);
      first += Rows;
    }
    if (first < count) for_each_tile<lower>(count, body, first);
  }
}

/// result[c][v] = factor[v] * result[c][v] + sum over r < count of panel[r][v] * x[r][c], for
/// columns c < width: the product of transposed weights with rows of values.
template <int Vectors, class Scalar>
EIGEN_DONT_INLINE void add_product(const Scalar* panel, const Rows<Scalar>& x, Index count,
                                   Index width, const Scalar* factor, Scalar* result) {
  using L = Lanes<Scalar>;
  for_each_tile<tile_rows<Vectors>>(
      width, [&]<int Columns>(Index c) __attribute__((always_inline)) {
        RegisterTile<Scalar, Columns, Vectors> tile;
        tile.accumulate(panel, x.data + c, std::integral_constant<Index, 1>(), x.stride, count,
                        MultiplyAdd());
#pragma GCC unroll 16
        for (int r = 0; r < Columns; ++r) {
#pragma GCC unroll 16
          for (int v = 0; v < Vectors; ++v) {
            Scalar* to = result + ((c + r) * Vectors + v) * L::size;
            const L sum = tile.sum[r][v];
            (factor ? fma(L::load(to), L::load(factor + v * L::size), sum) : sum).store(to);
          }
        }
      });
}

}  // namespace heed::detail
