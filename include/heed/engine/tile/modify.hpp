#pragma once

#include <algorithm>
#include <tuple>
#include <type_traits>

#include "heed/kernel/pack.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/policy/contract.hpp"
#include "heed/simd/lanes.hpp"

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
  PairTile<Scalar> pairs() const { return {scores, lanes, batch, head, query, queries, key, keys}; }
};

/// A tile of scores of a panel of any width.
template <class Scalar>
struct PanelScores {
  Scalar* scores;
  Index lanes;
  Index batch, head, query, queries, key, keys;

  /// The same, where the panel is known to have so many vectors.
  template <int Vectors>
  ScoreTile<Scalar, Vectors> of_width() const {
    return {scores, batch, head, query, queries, key, keys};
  }
};

/// A tensor's numbers for keys j .. j+keys-1 of a tile, at most L::size of them, as [key][lane]:
/// read in squares that are turned on the way.
template <class Scalar, int Vectors, class Number>
EIGEN_ALWAYS_INLINE void turn_bias(const ScoreTile<Scalar, Vectors>& tile,
                                   const View<const Number, 4>& bias, Index j, Index keys,
                                   Scalar* turned) {
  using L = Lanes<Scalar>;
  constexpr Index n = L::size, lanes = Vectors * n;
  const Slab<const Number> added = slab(bias, tile.batch, tile.head);
  for (Index lane = 0; lane < lanes; lane += n) {
    if constexpr (std::is_same_v<Number, Scalar>) {
      if (added.column_stride == 1 && keys == n && lane + n <= tile.queries) {
        const Number* from = &added(tile.query + lane, tile.key + j);
        // Rows are many streams, too many for the processor to foresee.
        for (Index l = 0; l < n; ++l) __builtin_prefetch(from + l * added.row_stride + 4 * n);
        transpose_square(from, added.row_stride, turned + lane, lanes);
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
}

/// Adds a tensor.
template <class Scalar, int Vectors, class Number>
EIGEN_DONT_INLINE void add_bias(const ScoreTile<Scalar, Vectors>& tile,
                                const View<const Number, 4>& bias) {
  using L = Lanes<Scalar>;
  alignas(64) Scalar turned[length(L::size * Vectors * L::size)];
  for (Index j = 0; j < tile.keys; j += L::size) {
    const Index numbers = std::min(L::size, tile.keys - j) * tile.lanes;
    turn_bias(tile, bias, j, numbers / tile.lanes, turned);
    Scalar* const scores = tile.at(j, 0);
    for (Index at = 0; at < numbers; at += L::size) {
      (L::load(scores + at) + L::load(turned + at)).store(scores + at);
    }
  }
}

/// body(at, queries, key) for every vector of scores of a tile.
template <class Scalar, int Vectors>
EIGEN_ALWAYS_INLINE void for_each_vector(const ScoreTile<Scalar, Vectors>& tile, const auto& body) {
  using L = Lanes<Scalar>;
  L query[length(Vectors)];
#pragma GCC unroll 16
  for (int v = 0; v < Vectors; ++v) query[v] = L::counting(tile.query + v * L::size);
  for (Index j = 0; j < tile.keys; ++j) {
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) body(tile.at(j, v), query[v], tile.key + j);
  }
}

/// body(score, query, key) for every score of a tile; lanes that are no queries are as the last.
template <class Scalar, int Vectors>
void for_each_score(const ScoreTile<Scalar, Vectors>& tile, const auto& body) {
  for (Index j = 0; j < tile.keys; ++j) {
    for (Index lane = 0; lane < tile.lanes; ++lane) {
      body(tile.scores + j * tile.lanes + lane, tile.query + std::min(lane, tile.queries - 1),
           tile.key + j);
    }
  }
}

/// Applies modifiers, each of which runs on vectors or adds a tensor, to keys first .. last-1 of a
/// tile, in one go: `finish`(key, scores of all vectors) does the rest, before they are stored.
template <class Scalar, int Vectors, class... Modifiers>
EIGEN_ALWAYS_INLINE void apply_modifiers(const ScoreTile<Scalar, Vectors>& tile, Index first,
                                         Index last, const std::tuple<Modifiers...>& modifiers,
                                         const auto& finish) {
  using L = Lanes<Scalar>;
  constexpr Index n = L::size;
  constexpr Index tensors = (Index(0) + ... + Index(modifier_traits<Modifiers>.adds_tensor));
  alignas(64) Scalar turned[length(std::max<Index>(1, tensors * n * Vectors * n))];
  const Index batch = tile.batch, head = tile.head;
  L query[length(Vectors)];
#pragma GCC unroll 16
  for (int v = 0; v < Vectors; ++v) query[v] = L::counting(tile.query + v * n);
  for (Index block = first; block < last; block += n) {
    const Index keys = std::min(n, last - block);
    Scalar* to = turned;
    [[maybe_unused]] const auto turn = [&](const auto& modifier) __attribute__((always_inline)) {
      if constexpr (modifier_traits<std::remove_cvref_t<decltype(modifier)>>.adds_tensor) {
        turn_bias(tile, modifier.added, block, keys, to);
        to += n * tile.lanes;
      }
    };
    std::apply([&](const auto&... modifier)
                   __attribute__((always_inline)) { (turn(modifier), ...); },
               modifiers);
    for (Index k = 0; k < keys; ++k) {
      L scores[length(Vectors)];
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) scores[v] = L::load(tile.at(block + k, v));
      const Scalar* added = tensors > 0 ? turned + k * tile.lanes : nullptr;
      const auto modify = [&](const auto& modifier) __attribute__((always_inline)) {
        if constexpr (modifier_traits<std::remove_cvref_t<decltype(modifier)>>.adds_tensor) {
#pragma GCC unroll 16
          for (int v = 0; v < Vectors; ++v) scores[v] += L::load(added + v * n);
          added += n * tile.lanes;
        } else {
#pragma GCC unroll 16
          for (int v = 0; v < Vectors; ++v) {
            scores[v] =
                modified<Scalar>(modifier, scores[v], batch, head, query[v], tile.key + block + k);
          }
        }
      };
      std::apply([&](const auto&... modifier)
                     __attribute__((always_inline)) { (modify(modifier), ...); },
                 modifiers);
      finish(block + k, scores);
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) scores[v].store(tile.at(block + k, v));
    }
  }
}

/// apply_modifiers, the mask and the maximum of each lane in one go: hide(key, vector, score) gives
/// what counts, and `largest` is raised to it.
template <class Scalar, int Vectors>
EIGEN_DONT_INLINE void modify_scores(const ScoreTile<Scalar, Vectors>& tile, Index first,
                                     Index last, const auto& modifiers, Scalar* largest,
                                     const auto& hide) {
  using L = Lanes<Scalar>;
  if (first >= last) return;
  L most[length(Vectors)];
#pragma GCC unroll 16
  for (int v = 0; v < Vectors; ++v) most[v] = L::load(largest + v * L::size);
  apply_modifiers(tile, first, last, modifiers,
                  [&](Index j, auto& scores) __attribute__((always_inline)) {
#pragma GCC unroll 16
                    for (int v = 0; v < Vectors; ++v) {
                      scores[v] = hide(j, v, scores[v]);
                      most[v] = max(most[v], scores[v]);
                    }
                  });
#pragma GCC unroll 16
  for (int v = 0; v < Vectors; ++v) most[v].store(largest + v * L::size);
}

/// Replaces scores of keys first .. last-1, in the vectors from number `From` on, by
/// transform(key, vector, score), and raises `largest` to what it gives.
template <int From = 0, class Scalar, int Vectors>
EIGEN_DONT_INLINE void transform_scores(const ScoreTile<Scalar, Vectors>& tile, Index first,
                                        Index last, Scalar* largest, const auto& transform) {
  using L = Lanes<Scalar>;
  L most[length(Vectors)];
#pragma GCC unroll 16
  for (int v = From; v < Vectors; ++v) most[v] = L::load(largest + v * L::size);
  for (Index j = first; j < last; ++j) {
#pragma GCC unroll 16
    for (int v = From; v < Vectors; ++v) {
      const L score = transform(j, v, L::load(tile.at(j, v)));
      score.store(tile.at(j, v));
      most[v] = max(most[v], score);
    }
  }
#pragma GCC unroll 16
  for (int v = From; v < Vectors; ++v) most[v].store(largest + v * L::size);
}

/// Applies one modifier to the tile: a tensor in squares, a function of vectors vector by vector,
/// any other function score by score.
template <class Scalar, int Vectors, class Modifier>
void apply_modifier(const ScoreTile<Scalar, Vectors>& tile, const Modifier& modifier) {
  using L = Lanes<Scalar>;
  if constexpr (modifier_traits<Modifier>.adds_tensor) {
    add_bias(tile, modifier.added);
  } else if constexpr (on_lanes<Modifier>) {
    for_each_vector(tile, [&](Scalar* at, L query, Index key) __attribute__((always_inline)) {
      modified<Scalar>(modifier, L::load(at), tile.batch, tile.head, query, key).store(at);
    });
  } else {
    for_each_score(tile, [&](Scalar* at, Index query, Index key) {
      *at = modified<Scalar>(modifier, *at, tile.batch, tile.head, query, key);
    });
  }
}

/// Applies one modifier to the tile and leaves its derivative by the score in `derivatives`, laid
/// out as the tile. Modifiers that shift the score have the derivative 1, which is not written.
template <class Scalar, int Vectors, class Modifier>
void differentiate_modifier(const ScoreTile<Scalar, Vectors>& tile, const Modifier& modifier,
                            Scalar* derivatives) {
  using L = Lanes<Scalar>;
  if constexpr (modifier_traits<Modifier>.effect == Effect::shifts) {
    apply_modifier(tile, modifier);
  } else if constexpr (on_lanes<Modifier>) {
    for_each_vector(tile, [&](Scalar* at, L query, Index key) __attribute__((always_inline)) {
      const auto dual =
          differentiated<Scalar>(modifier, L::load(at), tile.batch, tile.head, query, key);
      dual.value.store(at);
      dual.slopes[0].store(derivatives + (at - tile.scores));
    });
  } else {
    for_each_score(tile, [&](Scalar* at, Index query, Index key) {
      const auto dual = differentiated<Scalar>(modifier, *at, tile.batch, tile.head, query, key);
      *at = dual.value;
      derivatives[at - tile.scores] = dual.slopes[0];
    });
  }
}

/// gradients *= derivatives; where there is no gradient, an infinite derivative leaves none.
template <class Scalar, int Vectors>
EIGEN_DONT_INLINE void multiply_derivatives(const ScoreTile<Scalar, Vectors>& gradients,
                                            const Scalar* derivatives) {
  using L = Lanes<Scalar>;
  for (Index at = 0; at < gradients.keys * gradients.lanes; at += L::size) {
    const L g = L::load(gradients.scores + at);
    select(g == L(0), L(0), g * L::load(derivatives + at)).store(gradients.scores + at);
  }
}

}  // namespace heed::detail
