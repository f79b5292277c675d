#pragma once

#include <algorithm>
#include <type_traits>

#include "heed/kernel/panels.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/simd/convert.hpp"
#include "heed/simd/lanes.hpp"

namespace heed::detail {

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // of a vector type as template argument
/// to[c][r] = row(r)[c] of a square of packets.
template <class Packet, class Scalar>
EIGEN_ALWAYS_INLINE void transpose_packets(const auto& row, Scalar* to, Index to_stride) {
  constexpr Index n = Eigen::internal::unpacket_traits<Packet>::size;
  Eigen::internal::PacketBlock<Packet, static_cast<int>(n)> block;
#pragma GCC unroll 16
  for (Index r = 0; r < n; ++r) block.packet[r] = row(r);
  if constexpr (n > 1) Eigen::internal::ptranspose(block);
#pragma GCC unroll 16
  for (Index c = 0; c < n; ++c) Eigen::internal::pstoreu(to + c * to_stride, block.packet[c]);
}

/// Turns a square of L::size x L::size numbers: to[c][r] = from[r][c] * factor[c], where the lanes
/// of the factor go with the columns of `from`. Of fewer than L::size rows the last is repeated.
template <class Scalar, class Stored>
EIGEN_ALWAYS_INLINE void transpose_square(const Stored* from, Index from_stride, Scalar* to,
                                          Index to_stride,
                                          std::type_identity_t<Lanes<Scalar>> factor = 1,
                                          Index rows = Lanes<Scalar>::size) {
  transpose_packets<typename Lanes<Scalar>::Packet>(
      [&](Index r) __attribute__((always_inline)) {
        const Stored* const row = from + std::min(r, rows - 1) * from_stride;
        return (load_widened<Scalar>(row) * factor).packet;
      },
      to, to_stride);
}

/// The packet of half the lanes, where there are 8 or more.
template <class Scalar>
using HalfPacket = typename Eigen::internal::unpacket_traits<typename Lanes<Scalar>::Packet>::half;
template <class Scalar, class Stored = Scalar>
inline constexpr bool has_halves = std::is_same_v<Scalar, Stored> && Lanes<Scalar>::size >= 8;

/// transpose_square of half as many rows and columns: what remains of a width such as 8 or 72.
template <class Scalar>
EIGEN_ALWAYS_INLINE void transpose_half(const Scalar* from, Index from_stride, Scalar* to,
                                        Index to_stride,
                                        std::type_identity_t<HalfPacket<Scalar>> factor,
                                        Index rows = Lanes<Scalar>::size / 2) {
  using Packet = HalfPacket<Scalar>;
  transpose_packets<Packet>(
      [&](Index r) __attribute__((always_inline)) {
        const Scalar* const row = from + std::min(r, rows - 1) * from_stride;
        return Eigen::internal::pmul(Eigen::internal::ploadu<Packet>(row), factor);
      },
      to, to_stride);
}
#pragma GCC diagnostic pop

/// Lays `count` rows of x side by side, panel[column][lane] = x(first + lane, column): the lanes of
/// one vector are then one feature of neighbouring queries. Lanes from count on repeat the last
/// row, so that they hold ordinary numbers. `lanes` is the width of the panel. Everything is
/// multiplied by the factor. The slab is a copy, which stays in registers: for all the compiler
/// knows, the stores of vectors might change what a reference refers to.
template <class Accumulator, class Scalar>
EIGEN_DONT_INLINE void pack_lanes(Slab<const Scalar> x, Index first, Index count, Index columns,
                                  Index lanes, Accumulator* panel,
                                  Accumulator factor = Accumulator(1)) {
  constexpr Index n = Lanes<Accumulator>::size;
  for (Index lane = 0; lane < lanes; lane += n) {
    Index column = 0;
    if (x.row_stride == 1 && lane + n <= count) {
      for (; column < columns; ++column) {
        const auto neighbours = load_widened<Accumulator>(x.at(first + lane, column));
        (neighbours * factor).store(panel + column * lanes + lane);
      }
    } else if (x.column_stride == 1 && lane + n <= count) {
      for (; column + n <= columns; column += n) {
        transpose_square(x.at(first + lane, column), x.row_stride, panel + column * lanes + lane,
                         lanes, factor);
      }
    } else if (x.column_stride == 1 && lane < count) {
      for (; column + n <= columns; column += n) {
        transpose_square(x.at(first + lane, column), x.row_stride, panel + column * lanes + lane,
                         lanes, factor, count - lane);
      }
    }
    if constexpr (has_halves<Accumulator, Scalar>) {
      const auto each = Eigen::internal::pset1<HalfPacket<Accumulator>>(factor);
      for (; x.column_stride == 1 && lane < count && column + n / 2 <= columns; column += n / 2) {
        for (Index l = lane; l < lane + n; l += n / 2) {
          const Index row = std::min(l, count - 1);
          transpose_half(x.at(first + row, column), x.row_stride, panel + column * lanes + l, lanes,
                         each, count - row);
        }
      }
    }
    for (; column < columns; ++column) {
      for (Index l = lane; l < lane + n; ++l) {
        panel[column * lanes + l] =
            static_cast<Accumulator>(x(first + std::min(l, count - 1), column)) * factor;
      }
    }
  }
}

/// x(first + lane, column) = panel[column][lane] * factor[lane] for lanes below count. Returns
/// zeros, or NaN where the panel holds NaN or infinity in the vectors of these lanes.
template <class Accumulator, class Scalar>
Lanes<Accumulator> unpack_lanes(const Accumulator* panel, const Accumulator* factor, Index lanes,
                                Index count, Index columns, Slab<Scalar> x, Index first) {
  using L = Lanes<Accumulator>;
  constexpr Index n = L::size;
  L zero[4] = {0, 0, 0, 0};  // times 0, NaN and infinity are NaN
  const auto look = [&](const Accumulator* at, L& sum)
                        __attribute__((always_inline)) { sum = fma(L::load(at), L(0), sum); };
  for (Index lane = 0; lane < count; lane += n) {
    const Index rows = std::min(n, count - lane);
    Index column = 0;
    for (; x.column_stride == 1 && column + n <= columns; column += n) {
      const Accumulator* from = panel + column * lanes + lane;
      Scalar* to = x.at(first + lane, column);
      const auto scale = L::load(factor + lane);
#pragma GCC unroll 16
      for (Index c = 0; c < n; ++c) look(from + c * lanes, zero[c % 4]);
      if constexpr (std::is_same_v<Scalar, Accumulator>) {
        if (rows == n) {
          transpose_square(from, lanes, to, x.row_stride, scale);
          continue;
        }
      }
      alignas(64) Accumulator square[length(n * n)];
      transpose_square(from, lanes, square, n, scale);
      for (Index r = 0; r < rows; ++r) {
        store_narrowed(L::load(square + r * n), to + r * x.row_stride);
      }
    }
    if constexpr (has_halves<Accumulator, Scalar>) {
      constexpr Index half = n / 2;
      const bool whole = x.column_stride == 1 && rows % half == 0;
      for (; whole && column + half <= columns; column += half) {
        const Accumulator* from = panel + column * lanes + lane;
#pragma GCC unroll 8
        for (Index c = 0; c < half; ++c) look(from + c * lanes, zero[c % 4]);
        for (Index l = 0; l < rows; l += half) {
          transpose_half(from + l, lanes, x.at(first + lane + l, column), x.row_stride,
                         Eigen::internal::ploadu<HalfPacket<Accumulator>>(factor + lane + l));
        }
      }
    }
    for (; column < columns; ++column) {
      look(panel + column * lanes + lane, zero[0]);
      for (Index l = lane; l < lane + rows; ++l) {
        x(first + l, column) = static_cast<Scalar>(panel[column * lanes + l] * factor[l]);
      }
    }
  }
  return (zero[0] + zero[1]) + (zero[2] + zero[3]);
}

/// Lays `count` rows of x with lanes over their columns: panel p of `PanelsOf` begins at
/// out + first * capacity and holds [row][column of the panel], with zeros behind the last column.
/// Everything is multiplied by the factor.
template <class PanelsOf, class Accumulator, class Scalar>
void pack_features(const Slab<const Scalar>& x, Index first, Index count, Index columns,
                   Index capacity, Accumulator* out, Accumulator factor = Accumulator(1)) {
  using L = Lanes<Accumulator>;
  if (columns == 0) return;  // x may be null, and so has no rows
  const PanelsOf panels(columns);
  const Index whole = x.column_stride == 1 ? columns / L::size * L::size : 0;
  for (Index row = 0; row < count; ++row) {
    const Scalar* from = x.at(first + row, 0);
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
    Scalar* to = x.at(first + row, 0);
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

/// Rows of features in panels, as above or in rows of a tensor: panel p begins at
/// data + first * panel_stride, and its rows are row_stride apart, or, where that is 0, follow one
/// another.
template <class Scalar>
struct FeatureRows {
  Scalar* data;
  Index panel_stride, row_stride;

  Index stride(Index panel_width) const { return row_stride == 0 ? panel_width : row_stride; }
  Scalar* at(Index row, Index panel_first, Index panel_width) const {
    return data + panel_first * panel_stride + row * stride(panel_width);
  }
};

/// Rows first .. first + count-1 become 0.
template <class PanelsOf, class Accumulator>
void clear_features(const FeatureRows<Accumulator>& features, Index columns, Index first,
                    Index count) {
  const PanelsOf panels(columns);
  for (Index p = 0; p < panels.count; ++p) {
    const auto panel = panels[p];
    const Index width = panel.vectors * Lanes<Accumulator>::size;
    for (Index row = first; row < first + count; ++row) {
      std::fill_n(features.at(row, panel.first, width), width, Accumulator(0));
    }
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

/// The number at (row, column).
template <class PanelsOf, class Accumulator>
Accumulator& feature(const FeatureRows<Accumulator>& rows, Index columns, Index row, Index column) {
  if (rows.row_stride != 0) return rows.data[row * rows.row_stride + column];
  return rows.data[feature_offset<PanelsOf, Accumulator>(columns, rows.panel_stride, row, column)];
}

}  // namespace heed::detail
