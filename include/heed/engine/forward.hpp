#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/engine/call.hpp"
#include "heed/engine/tile/mask.hpp"
#include "heed/engine/tile/modify.hpp"
#include "heed/engine/tile/score.hpp"
#include "heed/engine/tile/score_additive.hpp"
#include "heed/kernel/online_softmax.hpp"
#include "heed/kernel/pack.hpp"
#include "heed/kernel/panels.hpp"
#include "heed/kernel/register_tile.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/policy/problem.hpp"
#include "heed/simd/math.hpp"

namespace heed::detail {

/// Rows of one head as the engine reads them.
template <class Accumulator>
struct Copy {
  Accumulator* data;
  const void* source = nullptr;  // of which head, where all of it is there

  Copy(Accumulator* d) : data(d) {}
};

/// Attention of every query to its keys, fused: no more than a tile of scores exists at a time.
///
///   for each panel of queries (lanes of vectors, packed once)
///     for each tile of keys that the mask lets the panel see
///       scores = similarity(keys, panel)      register tiles
///       modifiers, mask, running softmax      -> weights
///       output = faded output + weights x values   register tiles
///
/// Lanes hold queries, so that softmax needs no sum across lanes and keys and values are read where
/// they lie, one broadcast number at a time.
template <class Accumulator, class In, class Score, class BoundMask, class Out, class DropoutPolicy>
class Forward {
  using L = Lanes<Accumulator>;
  static constexpr Index widest = Panels<Accumulator>::widest * L::size;
  // Modifiers want the score itself; otherwise the similarity gives it in binary units.
  using Units = std::conditional_t<Score::modified, NaturalUnits, BinaryUnits>;

 public:
  Forward(const Problem& problem, const In& in, const Score& score, const BoundMask& mask,
          const DropoutPolicy& dropout, const View<Out, 4>& out,
          const View<Accumulator, 3>& log_sum_exp)
      : problem_(problem),
        in_(in),
        score_(score),
        mask_(mask),
        dropout_(dropout),
        out_(out),
        log_sum_exp_(log_sum_exp),
        panels_(problem.queries, panel_width(problem.queries)),
        key_in_place_(readable_in_place<Accumulator>(in.key, panels_.count)),
        value_in_place_(readable_in_place<Accumulator>(in.value, panels_.count)),
        tile_keys_(std::min(tile_keys(), problem.keys)),
        copied_at_once_(problem.keys * (problem.key_dim + problem.value_dim) <= copied_numbers
                            ? problem.keys
                            : tile_keys_) {}

  void run(Eigen::ThreadPoolInterface* pool) const {
    parallel_for(
        pool, problem_.batch * problem_.heads * panels_.count, [this](Index first, Index last) {
          Workspace space(*this);
          for (Index item = first; item < last; ++item) {
            const Index head = item / panels_.count % problem_.heads;
            const Index batch = item / panels_.count / problem_.heads;
            const auto panel = panels_[item % panels_.count];
            with_vectors(panel.vectors,
                         [&]<int Vectors>() { attend<Vectors>(space, batch, head, panel.first); });
          }
        });
  }

 private:
  /// A panel computes what any of its queries sees. Where few queries see different keys, as under
  /// a causal mask, narrower panels save more of that than their lower register tiles cost.
  static Index panel_width(Index queries) {
    return HidesNothing<BoundMask> || queries > narrow_queries ? 3 : 2;
  }
  static constexpr Index narrow_queries = 256;

  /// Keys of a tile: as many as leave the scores in the first-level cache beside the packed queries
  /// and the output panel (192 for 64 features, 24 float lanes and 32 KiB), within 64 .. 256 and a
  /// whole number of register tiles.
  Index tile_keys() const {
    const Index lane_bytes = widest * static_cast<Index>(sizeof(Accumulator));
    const Index panels = (problem_.key_dim + problem_.value_dim) * lane_bytes;
    const Index cache = static_cast<Index>(Eigen::l1CacheSize());
    const Index keys = (cache - panels) * 15 / 16 / lane_bytes;
    return std::clamp<Index>(keys, 64, 256) / 12 * 12;
  }

  /// Keys and values that cannot be read in place are copied a head at a time where that is no more
  /// than this (4 MiB of floats), so that all panels share the copy, and else tile by tile.
  static constexpr Index copied_numbers = Index(1) << 20;

  /// What a thread works in, from its scratch: for 64 features and float lanes of 8 about 140 KiB,
  /// whatever the number of queries and keys, and the copies.
  struct Workspace {
    using Panel = Scorer<Accumulator, typename Score::Similarity>;

    explicit Workspace(const Forward& f)
        : scratch(
              Panel::bytes(f.problem_.query_dim, f.problem_.key_dim, widest, f.copied_at_once_) +
              Scratch::bytes<Accumulator>(f.problem_.value_dim * widest) +
              2 * Scratch::bytes<Accumulator>(f.tile_keys_ * widest) +
              Scratch::bytes<Accumulator>(f.tile_keys_ * f.problem_.value_dim) +
              Scratch::bytes<Accumulator>(f.copied_keys() * f.problem_.key_dim) +
              Scratch::bytes<Accumulator>(f.copied_values() * f.problem_.value_dim)),
          scorer(f.score_.similarity, f.problem_.query_dim, f.problem_.key_dim, widest,
                 f.copied_at_once_, scratch),
          output(scratch.take<Accumulator>(f.problem_.value_dim * widest)),
          scores(scratch.take<Accumulator>(f.tile_keys_ * widest)),
          pairs(scratch.take<Accumulator>(f.tile_keys_ * widest)),
          safe_values(scratch.take<Accumulator>(f.tile_keys_ * f.problem_.value_dim)),
          keys(scratch.take<Accumulator>(f.copied_keys() * f.problem_.key_dim)),
          values(scratch.take<Accumulator>(f.copied_values() * f.problem_.value_dim)) {}
    Scratch scratch;
    Panel scorer;
    Accumulator *output, *scores, *pairs, *safe_values;
    Copy<Accumulator> keys, values;
  };
  Index copied_keys() const { return key_in_place_ ? 0 : copied_at_once_; }
  Index copied_values() const { return value_in_place_ ? 0 : copied_at_once_; }

  /// Rows first .. first + count-1 of a head, in place or in the copy.
  template <class Scalar>
  Rows<Accumulator> rows(const Slab<const Scalar>& head, Index first, Index count, Index width,
                         bool in_place, Copy<Accumulator>& copy) const {
    if (in_place) return rows_of<Accumulator>(head, first, count, width, true, nullptr);
    if (copied_at_once_ < problem_.keys) {
      return rows_of(head, first, count, width, false, copy.data);
    }
    if (copy.source != head.data) {
      rows_of(head, 0, problem_.keys, width, false, copy.data);
      copy.source = head.data;
    }
    return {copy.data + first * width, width};
  }

  template <int Vectors>
  EIGEN_DONT_INLINE void attend(Workspace& space, Index batch, Index head, Index first) const {
    constexpr Index lanes = Vectors * L::size;
    const Index count = std::min(lanes, problem_.queries - first);
    const Index kv_head = head / (problem_.heads / problem_.kv_heads);
    const auto key = slab(in_.key, batch, kv_head);
    const auto value = slab(in_.value, batch, kv_head);

    space.scorer.template pack<Vectors>(slab(in_.query, batch, head), first, count);
    bool started = false;
    OnlineSoftmax<Accumulator, Vectors, Units> softmax;
    PanelMask<BoundMask, Accumulator, Vectors> mask(mask_, batch, head, first, count,
                                                    problem_.keys);

    for (Index k = mask.begin(); k < mask.end(); k += tile_keys_) {
      const Index keys = std::min(tile_keys_, mask.end() - k);
      const Coverage coverage = mask.tile(k, keys, space.pairs);
      if (coverage == Coverage::empty) continue;

      alignas(64) Accumulator largest[lanes];
      const ScoreTile<Accumulator, Vectors> tile{space.scores, batch, head, first, count, k, keys};
      const auto key_rows = rows(key, k, keys, problem_.key_dim, key_in_place_, space.keys);
      space.scorer.take_keys(key_rows, key.data, k, keys, problem_.keys);
      score_tile(space, tile, key_rows, coverage, mask, largest);
      softmax.absorb(space.scores, keys, largest);
      if (dropout_.active()) drop(tile);
      add_values<Vectors>(space, tile, value, coverage, mask,
                          started ? softmax.correction : nullptr);
      started = true;
    }
    if (!started)
      std::fill(space.output, space.output + problem_.value_dim * lanes, Accumulator(0));
    finish<Vectors>(space, softmax, batch, head, first, count);
  }

  /// Scores of a tile, hidden ones -infinity, and the largest of each lane. The largest of keys
  /// that every query sees falls out of the register tiles; only the edges are gone through again.
  template <int Vectors>
  void score_tile(Workspace& space, const ScoreTile<Accumulator, Vectors>& tile,
                  const Rows<Accumulator>& rows, Coverage coverage, const auto& mask,
                  Accumulator* largest) const {
    constexpr Index lanes = Vectors * L::size, step = tile_rows<Vectors>;
    Index clear_begin = 0, clear_end = tile.keys;
    if (coverage == Coverage::partial) {
      clear_begin = (mask.clear_begin() + step - 1) / step * step;
      clear_end = std::max(clear_begin, mask.clear_end() / step * step);
      if (clear_begin >= clear_end) clear_begin = clear_end = 0;
    }
    const auto score = [&](Index first, Index last, Accumulator* most) {
      if (first < last) space.scorer.template score<Vectors>(rows, first, last, tile.scores, most);
    };
    alignas(64) Accumulator unused[lanes] = {};
    std::fill(largest, largest + lanes, -std::numeric_limits<Accumulator>::infinity());
    const auto hide = [&mask](Index j, int v, L s) __attribute__((always_inline)) {
      return select(mask.visible(j, v), s, L(-std::numeric_limits<Accumulator>::infinity()));
    };
    if constexpr (Score::modified) {
      score(0, tile.keys, unused);
      std::apply(
          [&](const auto&... modifier) {
            if constexpr ((RunsOnLanes<decltype(modifier), L> && ...)) {
              // All in one go through the tile, with the mask and the maximum.
              const auto modify = [&](Index j, int v, L s) __attribute__((always_inline)) {
                const L query = L::counting(tile.query + v * L::size);
                ((s = modifier.lanes(s, tile.batch, tile.head, query, tile.key + j)), ...);
                return s;
              };
              const auto both = [&](Index j, int v, L s) { return hide(j, v, modify(j, v, s)); };
              settle(tile, clear_begin, clear_end, largest, modify);
              settle(tile, 0, clear_begin, largest, both);
              settle(tile, clear_end, tile.keys, largest, both);
            } else {
              (apply_modifier(tile, modifier), ...);
              settle(tile, clear_begin, clear_end, largest, [](Index, int, L s) { return s; });
              settle(tile, 0, clear_begin, largest, hide);
              settle(tile, clear_end, tile.keys, largest, hide);
            }
          },
          score_.modifiers);
    } else {
      score(clear_begin, clear_end, largest);
      score(0, clear_begin, unused);
      score(clear_end, tile.keys, unused);
      settle(tile, 0, clear_begin, largest, hide);
      settle(tile, clear_end, tile.keys, largest, hide);
    }
  }

  /// Replaces scores by what `last_word` makes of them, and raises `largest` to it.
  template <int Vectors>
  EIGEN_DONT_INLINE static void settle(const ScoreTile<Accumulator, Vectors>& tile, Index first,
                                       Index last, Accumulator* largest, const auto& last_word) {
    L most[Vectors];
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) most[v] = L::load(largest + v * L::size);
    for (Index j = first; j < last; ++j) {
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) {
        const L score = last_word(j, v, L::load(tile.at(j, v)));
        score.store(tile.at(j, v));
        most[v] = max(most[v], score);
      }
    }
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) most[v].store(largest + v * L::size);
  }

  template <int Vectors>
  EIGEN_DONT_INLINE void drop(const ScoreTile<Accumulator, Vectors>& tile) const {
    for (Index lane = 0; lane < tile.queries; ++lane) {
      const auto row = dropout_.row(tile.batch, tile.head, tile.query + lane);
      for (Index j = 0; j < tile.keys; ++j) {
        if (!dropout_.keeps(row, tile.key + j)) tile.scores[j * tile.lanes + lane] = 0;
      }
    }
  }

  /// Adds weights x values to the output. A hidden pair has weight 0, but 0 times NaN or infinity
  /// is NaN: rows of values that are hidden from some query and not finite are taken out of the
  /// product and added to the queries that see them.
  template <int Vectors>
  void add_values(Workspace& space, const ScoreTile<Accumulator, Vectors>& tile, const auto& value,
                  Coverage coverage, const auto& mask, const Accumulator* correction) const {
    const Index width = problem_.value_dim;
    auto read = rows(value, tile.key, tile.keys, width, value_in_place_, space.values);
    bool unsafe = false;
    if (coverage == Coverage::partial) {
      for (Index j = 0; j < tile.keys && !unsafe; ++j) {
        if (j == mask.clear_begin()) j = mask.clear_end();
        if (j < tile.keys) unsafe = !all_finite(read[j], width);
      }
    }
    if (unsafe) {
      for (Index j = 0; j < tile.keys; ++j) {
        const bool keep = all_finite(read[j], width);
        for (Index c = 0; c < width; ++c) space.safe_values[j * width + c] = keep ? read[j][c] : 0;
      }
      read = {space.safe_values, width};
    }
    add_product<Vectors>(space.scores, read, tile.keys, width, correction, space.output);
    if (!unsafe) return;
    for (Index j = 0; j < tile.keys; ++j) {
      const auto row = [&](Index c) { return static_cast<Accumulator>(value(tile.key + j, c)); };
      bool finite = true;
      for (Index c = 0; c < width; ++c) finite = finite && std::isfinite(row(c));
      if (finite) continue;
      for (Index lane = 0; lane < tile.lanes; ++lane) {
        const bool edge = j < mask.clear_begin() || j >= mask.clear_end();
        if (edge && !mask.visible_to(j, lane)) continue;
        const Accumulator weight = tile.scores[j * tile.lanes + lane];
        for (Index c = 0; c < width; ++c) space.output[c * tile.lanes + lane] += weight * row(c);
      }
    }
  }

  template <int Vectors>
  void finish(Workspace& space, const OnlineSoftmax<Accumulator, Vectors, Units>& softmax,
              Index batch, Index head, Index first, Index count) const {
    constexpr Index lanes = Vectors * L::size;
    alignas(64) Accumulator factor[lanes];
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) {
      softmax.normaliser(v, static_cast<Accumulator>(dropout_.scale())).store(factor + v * L::size);
    }
    unpack_lanes(space.output, factor, lanes, count, problem_.value_dim, slab(out_, batch, head),
                 first);
    if (!log_sum_exp_.data) return;
    alignas(64) Accumulator row[lanes];
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) softmax.log_sum_exp(v).store(row + v * L::size);
    for (Index lane = 0; lane < count; ++lane) log_sum_exp_(batch, head, first + lane) = row[lane];
  }

  const Problem& problem_;
  const In& in_;
  const Score& score_;
  const BoundMask& mask_;
  const DropoutPolicy& dropout_;
  const View<Out, 4>& out_;
  const View<Accumulator, 3>& log_sum_exp_;  // of nothing where it is not wanted
  Panels<Accumulator> panels_;
  bool key_in_place_, value_in_place_;
  Index tile_keys_, copied_at_once_;
};

}  // namespace heed::detail
