#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/engine/call.hpp"
#include "heed/engine/reference/forward.hpp"
#include "heed/engine/tile/mask.hpp"
#include "heed/engine/tile/modify.hpp"
#include "heed/engine/tile/rows.hpp"
#include "heed/engine/tile/score.hpp"
#include "heed/engine/tile/score_additive.hpp"
#include "heed/engine/tile/values.hpp"
#include "heed/kernel/older_sums.hpp"
#include "heed/kernel/online_softmax.hpp"
#include "heed/kernel/outer_product.hpp"
#include "heed/kernel/pack.hpp"
#include "heed/kernel/panels.hpp"
#include "heed/kernel/register_tile.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/simd/math.hpp"

namespace heed::detail {

/// Attention of every query to its keys, fused: no more than a tile of scores exists at a time.
///
///   for each panel of queries (lanes of vectors, packed once)
///     for each tile of keys that the mask lets the panel see
///       scores = similarity(keys, panel)      register tiles
///       modifiers, mask, running softmax      -> weights
///       output = faded output + weights x values   register tiles
///
/// Lanes hold queries, so that softmax needs no sum across lanes and keys and values are read where
/// they lie, one broadcast number at a time. A query whose result is not finite is computed again
/// by the definition: scores in binary units and sums of values before the division may overflow
/// where the result does not.
template <class Call>
class Forward {
  using Number = typename Call::Number;
  using L = Lanes<Number>;
  using Score = typename Call::Score;
  using Mask = typename Call::Mask;
  using Unit = typename Score::Unit;
  using Softmax = OnlineSoftmax<Number, Panels<Number>::widest, Unit>;
  static constexpr Index widest = Panels<Number>::widest * L::size;

 public:
  static constexpr bool possible = Laned<Number> &&
                                   score_traits<typename Score::Similarity>.vectorised &&
                                   !WithWeights<typename Call::Output>;
  static std::true_type suits(const Call&) { return {}; }

  explicit Forward(const Call& call)
      : call_(call),
        problem_(call.problem),
        panels_(problem_.queries, panel_width(problem_.queries)),
        key_rows_(call.keys, problem_.keys, panels_.count),
        value_rows_(call.values, problem_.keys, panels_.count),
        tile_keys_(std::min(tile_keys(), problem_.keys)),
        copied_at_once_(problem_.keys * (problem_.key_dim + problem_.value_dim) <= copied_numbers
                            ? problem_.keys
                            : tile_keys_) {}

  /// A piece is one panel of one head.
  Index pieces() const { return problem_.entries() * problem_.heads * panels_.count; }
  void run(Index first, Index last) const {
    Workspace space(*this);
    for (Index item = first; item < last; ++item) {
      const Index head = item / panels_.count % problem_.heads;
      const Index batch = problem_.first_entry() + item / panels_.count / problem_.heads;
      attend(space, batch, head, panels_[item % panels_.count]);
    }
  }

 private:
  /// A panel computes what any of its queries sees. Where few queries see different keys, as under
  /// a causal mask, narrower panels save more of that than their lower register tiles cost.
  static Index panel_width(Index queries) {
    return mask_traits<Mask>.hides_nothing || queries > narrow_queries ? 3 : 2;
  }
  static constexpr Index narrow_queries = 128;

  /// Keys of a tile: as many as leave the scores in the first-level cache beside the packed queries
  /// and the output panel (192 for 64 features, 24 float lanes and 32 KiB), within 64 .. 256 and a
  /// whole number of register tiles.
  Index tile_keys() const {
    const Index lane_bytes = widest * static_cast<Index>(sizeof(Number));
    const Index panels = (problem_.key_dim + problem_.value_dim) * lane_bytes;
    const Index cache = static_cast<Index>(Eigen::l1CacheSize());
    const Index keys = (cache - panels) * 15 / 16 / lane_bytes;
    return std::clamp<Index>(keys, 64, 256) / 12 * 12;
  }

  /// Keys and values that cannot be read in place are copied a head at a time where that is no more
  /// than this (4 MiB of floats), so that all panels share the copy, and else tile by tile.
  static constexpr Index copied_numbers = Index(1) << 20;

  /// So many tiles are added up before their sums join those of the tiles before: a chain of
  /// additions has a rounding error that grows with its length.
  static constexpr Index most_tiles = 16;

  /// A copy of rows, and of which head it is, where it is of a whole one.
  struct Copy {
    Number* data = nullptr;
    Index head = -1;
  };

  /// What a thread works in: for 64 features and float lanes of 8 about 140 KiB, whatever the
  /// number of queries and keys, and the copies.
  struct Workspace {
    explicit Workspace(const Forward& f)
        : scorer(f.call_.score.similarity, f.problem_.query_dim, f.problem_.key_dim, widest,
                 f.copied_at_once_),
          scratch([&](Layout& layout) {
            const Index width = f.problem_.value_dim;
            scorer.lay(layout);
            output = layout.take<Number>(width * widest);
            older = layout.take<Number>(
                f.problem_.keys > f.tile_keys_ * most_tiles ? (width + 2) * widest : 0);
            scores = layout.take<Number>(f.tile_keys_ * widest);
            pairs = layout.take<Number>(f.tile_keys_ * widest);
            safe_values = layout.take<Number>(f.tile_keys_ * width);
            keys.data = layout.take<Number>(
                f.key_rows_.in_place() ? 0 : f.copied_at_once_ * f.problem_.key_dim);
            values.data =
                layout.take<Number>(f.value_rows_.in_place() ? 0 : f.copied_at_once_ * width);
          }) {
      scorer.start();
    }
    Scorer<Number, typename Score::Similarity> scorer;
    Number *output, *older, *scores, *pairs, *safe_values;
    Copy keys, values;
    Scratch scratch;
  };

  /// Rows first .. first + count-1 of a head, in place or in the copy.
  Rows<Number> rows(const auto& source, Index batch, Index head, Index first, Index count,
                    Index width, Copy& copy) const {
    if (source.in_place() || copied_at_once_ < problem_.keys) {
      return source.get(batch, head, first, count, copy.data);
    }
    const Index number = batch * problem_.kv_heads + head;
    if (copy.head != number) {
      source.get(batch, head, 0, problem_.keys, copy.data);
      copy.head = number;
    }
    return {copy.data + first * width, width};
  }

  EIGEN_DONT_INLINE void attend(Workspace& space, Index batch, Index head,
                                const typename Panels<Number>::Panel& panel) const {
    const Index first = panel.first, lanes = panel.vectors * L::size;
    const Index count = std::min(lanes, problem_.queries - first);
    const Index kv_head = head / (problem_.heads / problem_.kv_heads);

    space.scorer.pack(slab(call_.query, batch, head), first, count, lanes);
    Index tiles = 0;      // in the output
    bool joined = false;  // whether others are in `older`
    Softmax softmax;
    PanelMask<Mask, Number> mask(call_.mask, batch, head, first, count, lanes, problem_.keys);

    for (Index k = mask.begin(); k < mask.end(); k += tile_keys_) {
      const Index keys = std::min(tile_keys_, mask.end() - k);
      const Coverage coverage = mask.tile(k, keys, space.pairs);
      if (coverage == Coverage::empty) continue;

      if (tiles == most_tiles) {
        join_sums(space.older, space.output, softmax.sum, lanes, problem_.value_dim, joined);
        std::fill(softmax.sum, softmax.sum + lanes, Number(0));
        joined = true;
        tiles = 0;
      }
      alignas(64) Number largest[length(widest)];
      const PanelScores<Number> tile{.scores = space.scores,
                                     .lanes = lanes,
                                     .batch = batch,
                                     .head = head,
                                     .query = first,
                                     .queries = count,
                                     .key = k,
                                     .keys = keys};
      const auto key = rows(key_rows_, batch, kv_head, k, keys, problem_.key_dim, space.keys);
      space.scorer.take_keys(key, batch * problem_.kv_heads + kv_head, k, keys, problem_.keys);
      with_vectors(panel.vectors, [&]<int Vectors>() {
        score_tile<Vectors>(space, tile, key, coverage, mask, largest);
        softmax.template absorb<Vectors>(space.scores, keys, largest, mask.stairs());
      });
      if (call_.dropout.active()) drop(tile);
      if (tiles == 0 && !joined && k + keys >= mask.end() &&
          write_rows(space, tile, kv_head, coverage, mask, softmax)) {
        return;
      }
      if (joined) fade_sums(space.older, softmax.correction, lanes);
      add_values(space, tile, kv_head, coverage, mask, tiles > 0 ? softmax.correction : nullptr);
      ++tiles;
    }
    if (tiles == 0) std::fill(space.output, space.output + problem_.value_dim * lanes, Number(0));
    if (joined) {
      join_sums(space.older, space.output, softmax.sum, lanes, problem_.value_dim, true);
      const Number* sums = space.older + 2 * lanes;
      std::copy(sums - lanes, sums, softmax.sum);
      std::copy(sums, sums + problem_.value_dim * lanes, space.output);
    }
    finish(space, softmax, batch, head, first, count, lanes);
  }

  /// Scores of a tile, hidden ones -infinity, and the largest of each lane. The largest of keys
  /// that every query sees falls out of the register tiles; only the edges are gone through again.
  template <int Vectors>
  void score_tile(Workspace& space, const PanelScores<Number>& panel, const Rows<Number>& rows,
                  Coverage coverage, const auto& mask, Number* largest) const {
    const auto tile = panel.template of_width<Vectors>();
    constexpr Index lanes = Vectors * L::size, step = tile_rows<Vectors>;
    Index clear_begin = 0, clear_end = tile.keys;
    if (coverage == Coverage::partial) {
      clear_begin = (mask.clear_begin() + step - 1) / step * step;
      clear_end = std::max(clear_begin, mask.clear_end() / step * step);
      if (clear_begin >= clear_end) clear_begin = clear_end = 0;
    }
    const auto score = [&](Index first, Index last, Number* most) {
      if (first < last) space.scorer.template score<Vectors>(rows, first, last, tile.scores, most);
    };
    alignas(64) Number unused[length(lanes)] = {};
    std::fill(largest, largest + lanes, -std::numeric_limits<Number>::infinity());
    const auto hide = [&mask](Index j, int v, L s) __attribute__((always_inline)) {
      return select(mask.visible(j, v), s, L(-std::numeric_limits<Number>::infinity()));
    };
    if constexpr (Score::modified) {
      score(0, tile.keys, unused);
      if constexpr (Score::modified_on_lanes) {
        const auto& modifiers = call_.score.modifiers;
        modify_scores(tile, clear_begin, clear_end, modifiers, largest,
                      [](Index, int, L s) { return s; });
        modify_scores(tile, 0, clear_begin, modifiers, largest, hide);
        modify_scores(tile, clear_end, tile.keys, modifiers, largest, hide);
      } else {
        std::apply([&](const auto&... modifier) { (apply_modifier(tile, modifier), ...); },
                   call_.score.modifiers);
        transform_scores(tile, clear_begin, clear_end, largest, [](Index, int, L s) { return s; });
        transform_scores(tile, 0, clear_begin, largest, hide);
        transform_scores(tile, clear_end, tile.keys, largest, hide);
      }
    } else {
      score(clear_begin, clear_end, largest);
      const auto edge = [&]<int From>(Index first, Index last) {
        space.scorer.template score<Vectors, From>(rows, first, last, tile.scores, unused);
        transform_scores<From>(tile, first, last, largest, hide);
      };
      if (coverage == Coverage::partial) {
        mask.stairs().template for_each<Vectors>(0, clear_begin, edge);
        mask.stairs().template for_each<Vectors>(clear_end, tile.keys, edge);
      }
    }
  }

  EIGEN_DONT_INLINE void drop(const PanelScores<Number>& tile) const {
    for (Index lane = 0; lane < tile.queries; ++lane) {
      const auto row = call_.dropout.row(tile.batch, tile.head, tile.query + lane);
      for (Index j = 0; j < tile.keys; ++j) {
        if (!call_.dropout.keeps(row, tile.key + j)) tile.scores[j * tile.lanes + lane] = 0;
      }
    }
  }

  /// Keys up to which a panel's results are computed as rows, where turning them would take long:
  /// vectors of 64 bytes are turned by one unit of the processor.
  static constexpr bool in_rows = sizeof(typename L::Packet) == 64;
  static constexpr Index few_keys = 96;

  /// Writes the results of a panel that sees no other tile, with lanes over features: they need not
  /// be turned, and lanes that are no queries cost nothing. False where this does not suit.
  bool write_rows(Workspace& space, const PanelScores<Number>& tile, Index kv_head,
                  Coverage coverage, const auto& mask, Softmax& softmax) const {
    const Index width = problem_.value_dim;
    const auto output = slab(call_.output.output, tile.batch, tile.head);
    if (!in_rows || tile.keys > few_keys || width % L::size != 0) return false;
    const auto read =
        rows(value_rows_, tile.batch, kv_head, tile.key, tile.keys, width, space.values);
    const bool finite = coverage != Coverage::partial || edges_finite(read, tile.keys, width, mask);
    const auto values = finite ? read : finite_rows(read, tile.keys, width, space.safe_values);
    alignas(64) Number factor[length(widest)];
    L zero = output_factors(softmax, tile.head, tile.lanes, factor);
    // Who sees a row that is not finite is computed again by the definition.
    if (!finite) {
      for_each_sight_not_finite(read, tile.keys, width, tile.lanes, mask, [&](Index, Index lane) {
        factor[lane] = std::numeric_limits<Number>::quiet_NaN();
      });
    }
    for (Index first = 0; first < tile.lanes; first += L::size) {
      const L each = L::load(factor + first);
      const Index keys = mask.stair(static_cast<int>(first / L::size));
      Number* const weights = tile.scores + first;
      for (Index j = 0; j < keys; ++j) {
        (L::load(weights + j * tile.lanes) * each).store(weights + j * tile.lanes);
      }
      zero += weighted_rows(weights, tile.lanes, std::min(L::size, tile.queries - first), keys,
                            values, width, output, tile.query + first);
    }
    write_log_sum_exp(softmax, tile.batch, tile.head, tile.query, tile.queries);
    if (!(sum_of_lanes(zero) == 0)) {
      define(tile.batch, tile.head, tile.query, tile.queries, [&](Index lane) {
        Number sum = factor[lane] * 0;
        for (Index c = 0; c < width; ++c) {
          sum += static_cast<Number>(output(tile.query + lane, c)) * 0;
        }
        return sum;
      });
    }
    return true;
  }

  /// What sums of values are multiplied by, for each lane, once the sinks have joined the softmax.
  /// Returns zeros, or NaN where a factor is not finite.
  EIGEN_DONT_INLINE L output_factors(Softmax& softmax, Index head, Index lanes,
                                     Number* factor) const {
    L zero(0);
    for (int v = 0; v < static_cast<int>(lanes / L::size); ++v) {
      L fade(1);
      for_each_sink(call_.score.modifiers, head,
                    [&](Number logit) { fade *= softmax.absorb_score(v, logit); });
      const L f = softmax.normaliser(v, static_cast<Number>(call_.dropout.scale())) * fade;
      f.store(factor + v * L::size);
      zero = fma(f, L(0), zero);
    }
    return zero;
  }

  void write_log_sum_exp(const Softmax& softmax, Index batch, Index head, Index first,
                         Index count) const {
    const auto& log_sum_exp = call_.output.log_sum_exp;
    if (!log_sum_exp.data) return;
    alignas(64) Number row[length(widest)];
    for (int v = 0; v * L::size < count; ++v) softmax.log_sum_exp(v).store(row + v * L::size);
    for (Index lane = 0; lane < count; ++lane) log_sum_exp(batch, head, first + lane) = row[lane];
  }

  /// Adds weights x values to the output. A hidden pair has weight 0, but 0 times NaN or infinity
  /// is NaN: rows of values that are hidden from some query and not finite are taken out of the
  /// product and added to the queries that see them.
  void add_values(Workspace& space, const PanelScores<Number>& tile, Index kv_head,
                  Coverage coverage, const auto& mask, const Number* correction) const {
    const Index width = problem_.value_dim;
    const auto read =
        rows(value_rows_, tile.batch, kv_head, tile.key, tile.keys, width, space.values);
    const auto add = [&](const Rows<Number>& values) {
      with_vectors(tile.lanes / L::size, [&]<int Vectors>() {
        if constexpr (!HidesNothing<Mask>) {
          if (coverage == Coverage::partial) {
            return add_product<Vectors>(space.scores, values, tile.keys, mask.stairs(), width,
                                        correction, space.output);
          }
        }
        add_product<Vectors>(space.scores, values, tile.keys, width, correction, space.output);
      });
    };
    if (coverage != Coverage::partial || edges_finite(read, tile.keys, width, mask)) {
      return add(read);
    }
    add(finite_rows(read, tile.keys, width, space.safe_values));
    for_each_sight_not_finite(read, tile.keys, width, tile.lanes, mask, [&](Index j, Index lane) {
      const Number weight = tile.scores[j * tile.lanes + lane];
      for (Index c = 0; c < width; ++c) {
        space.output[c * tile.lanes + lane] += weight * read[j][c];
      }
    });
  }

  EIGEN_DONT_INLINE void finish(Workspace& space, Softmax& softmax, Index batch, Index head,
                                Index first, Index count, Index lanes) const {
    alignas(64) Number factor[length(widest)];
    L zero = output_factors(softmax, head, lanes, factor);
    zero += unpack_lanes(space.output, factor, lanes, count, problem_.value_dim,
                         slab(call_.output.output, batch, head), first);
    write_log_sum_exp(softmax, batch, head, first, count);
    if (!(sum_of_lanes(zero) == 0)) {
      define(batch, head, first, count, [&](Index lane) {
        Number sum = factor[lane] * 0;
        for (Index c = 0; c < problem_.value_dim; ++c) sum += space.output[c * lanes + lane] * 0;
        return sum;
      });
    }
  }

  /// Those queries of a panel once more, by the definition, for which zero(lane) is NaN.
  EIGEN_DONT_INLINE void define(Index batch, Index head, Index first, Index count,
                                const auto& zero) const {
    ReferenceRow<Call> row(call_);
    for (Index lane = 0; lane < count; ++lane) {
      if (!(zero(lane) == 0)) row.attend(batch, head, first + lane);
    }
  }

  const Call& call_;
  const Problem& problem_;
  Panels<Number> panels_;
  SourceRows<Number, typename Call::Keys> key_rows_;
  SourceRows<Number, typename Call::Values> value_rows_;
  Index tile_keys_, copied_at_once_;
};

}  // namespace heed::detail
