#pragma once

#include <algorithm>
#include <type_traits>

#include "heed/detail/lanes.hpp"
#include "heed/detail/pack.hpp"

namespace heed::detail {

/// A tile of scores [key][lane] and where it stands: `queries` of its lanes are queries, from
/// `query` on; the rest repeat the last one and are not looked at.
template <class Scalar, int Vectors>
struct ScoreTile {
  using L = Lanes<Scalar>;
  static constexpr Index lanes = Vectors * L::size;
  Scalar* scores;
  Index batch, head, query, queries, key, keys;

  Scalar* at(Index j, int v) const { return scores + (j * Vectors + v) * L::size; }
};

/// Adds a tensor, read as keys x lanes in squares that are turned on the way.
template <class Scalar, int Vectors, class Number>
EIGEN_DONT_INLINE void add_bias(const ScoreTile<Scalar, Vectors>& tile,
                                const View<const Number, 4>& bias) {
  using L = Lanes<Scalar>;
  constexpr Index n = L::size, lanes = Vectors * n;
  const Slab<const Number> added = slab(bias, tile.batch, tile.head);
  alignas(64) Scalar turned[n * lanes];
  for (Index j = 0; j < tile.keys; j += n) {
    const Index keys = std::min(n, tile.keys - j);
    for (Index lane = 0; lane < lanes; lane += n) {
      if constexpr (std::is_same_v<Number, Scalar>) {
        if (added.column_stride == 1 && keys == n && lane + n <= tile.queries) {
          transpose_square(&added(tile.query + lane, tile.key + j), added.row_stride, turned + lane,
                           lanes);
          continue;
        }
      }
      for (Index k = 0; k < keys; ++k) {
        for (Index l = lane; l < lane + n; ++l) {
          const Index query = tile.query + std::min(l, tile.queries - 1);
          turned[k * lanes + l] = static_cast<Scalar>(added(query, tile.key + j + k));
        }
      }
    }
    for (Index k = 0; k < keys; ++k) {
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) {
        Scalar* at = tile.at(j + k, v);
        (L::load(at) + L::load(turned + k * lanes + v * n)).store(at);
      }
    }
  }
}

/// A modifier that runs on Lanes.
template <class Modifier, class L>
concept RunsOnLanes = requires(const Modifier& m, L s) {
  m.lanes(s, Index(), Index(), s, Index());
};

/// Applies one modifier to the tile: a tensor in squares, a function of Lanes vector by vector, any
/// other function score by score.
template <class Scalar, int Vectors, class Modifier>
void apply_modifier(const ScoreTile<Scalar, Vectors>& tile, const Modifier& modifier) {
  using L = Lanes<Scalar>;
  if constexpr (requires { modifier.added; }) {
    add_bias(tile, modifier.added);
  } else if constexpr (RunsOnLanes<Modifier, L>) {
    L query[Vectors];
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) query[v] = L::counting(tile.query + v * L::size);
    for (Index j = 0; j < tile.keys; ++j) {
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) {
        Scalar* at = tile.at(j, v);
        modifier.lanes(L::load(at), tile.batch, tile.head, query[v], tile.key + j).store(at);
      }
    }
  } else {
    for (Index j = 0; j < tile.keys; ++j) {
      for (Index lane = 0; lane < tile.queries; ++lane) {
        Scalar& s = tile.scores[j * tile.lanes + lane];
        s = modifier(s, tile.batch, tile.head, tile.query + lane, tile.key + j);
      }
    }
  }
}

}  // namespace heed::detail
