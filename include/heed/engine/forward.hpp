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
#include "heed/engine/key_blocks.hpp"
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
/// Where keys and values are too many for the second-level cache, several panels take a block of
/// them in turn, each with sums of its own, before any goes on to the next block. A panel takes its
/// tiles in the same order whoever stands beside it, so that its result does not depend on that.
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
        blocks_(problem_, in_blocks) {}

  /// A piece is one panel of one head.
  Index pieces() const { return problem_.entries() * problem_.heads * panels_.count; }
  /// Of all pieces, by which few are not shared; scores that are no products take far longer.
  double multiply_adds() const
    requires(is_product<typename Score::Similarity>)
  {
    return static_cast<double>(problem_.entries() * problem_.heads * problem_.queries) *
           static_cast<double>(problem_.keys * (problem_.key_dim + problem_.value_dim));
  }
  void run(Index first, Index last) const {
    Workspace space(*this);
    for (Index item = first; item < last;) {
      const Index panel = item % panels_.count;
      const Index head = item / panels_.count % problem_.heads;
      const Index batch = problem_.first_entry() + item / panels_.count / problem_.heads;
      if constexpr (in_blocks) {
        const Index count = std::min(blocks_.panels, std::min(last - item, panels_.count - panel));
        if (count > 1) {
          attend_side_by_side(space, batch, head, panel, count);
          item += count;
          continue;
        }
      }
      attend(space, batch, head, panels_[panel]);
      ++item;
    }
  }

 private:
  /// A panel computes what any of its queries sees. Where few queries see different keys, as under
  /// a causal mask, narrower panels save more of that than their lower register tiles cost.
  static Index panel_width(Index queries) {
    return mask_traits<Mask>.hides_nothing || queries > narrow_queries ? 3 : 2;
  }
  static constexpr Index narrow_queries = 128;
  static constexpr bool in_blocks = is_product<typename Score::Similarity>;

  /// So many tiles are added up before their sums join those of the tiles before: a chain of
  /// additions has a rounding error that grows with its length.
  static constexpr Index most_tiles = 16;

  using PanelScorer = Scorer<Number, typename Score::Similarity>;

  /// What a panel has of its own: its queries and its sums.
  struct Room {
    explicit Room(const Forward& f)
        : scorer(f.call_.score.similarity, f.problem_.query_dim, f.problem_.key_dim, widest,
                 f.blocks_.copied) {}
    void lay(Layout& layout, const Forward& f) {
      const Index width = f.problem_.value_dim;
      scorer.lay(layout);
      output = layout.take<Number>(width * widest);
      older = layout.take<Number>(
          f.problem_.keys > f.blocks_.tile * most_tiles ? (width + 2) * widest : 0);
    }
    PanelScorer scorer;
    Number *output = nullptr, *older = nullptr;
  };

  /// What a thread works in: for 64 features and float lanes of 8 about 75 KiB, whatever the number
  /// of queries and keys, and the copies.
  struct Workspace {
    explicit Workspace(const Forward& f)
        : room(f), scratch([&](Layout& layout) {
            const Index width = f.problem_.value_dim;
            room.lay(layout, f);
            scores = layout.take<Number>(f.blocks_.tile * widest);
            pairs = layout.take<Number>(f.blocks_.tile * widest);
            safe_values = layout.take<Number>(f.blocks_.tile * width);
            const Index most = std::max(
                f.blocks_.copied, f.blocks_.panels > 1 ? f.blocks_.block + f.blocks_.tile : 0);
            keys.data = layout.take<Number>(f.key_rows_.in_place() ? 0 : most * f.problem_.key_dim);
            values.data = layout.take<Number>(f.value_rows_.in_place() ? 0 : most * width);
          }) {
      room.scorer.start();
    }
    Room room;
    Number *scores, *pairs, *safe_values;
    RowCopy<Number> keys, values;
    KeyRange copied{0, 0};  // where rows are copied, as many as these at once; none: a tile of them
    Scratch scratch;
  };

  /// A panel of queries on its way through the keys, and what it has summed up.
  struct Walk {
    Walk(const Forward& f, Room& of_its_own, Number* scores, Index batch, Index head,
         const typename Panels<Number>::Panel& panel)
        : room(of_its_own),
          tile{.scores = scores,
               .lanes = panel.vectors * L::size,
               .batch = batch,
               .head = head,
               .query = panel.first,
               .queries = std::min(panel.vectors * L::size, f.problem_.queries - panel.first),
               .key = 0,
               .keys = 0},
          mask(f.call_.mask, batch, head, tile.query, tile.queries, tile.lanes, f.problem_.keys) {
      tile.key = mask.begin();
      room.scorer.pack(slab(f.call_.query, batch, head), tile.query, tile.queries, tile.lanes);
    }
    Room& room;
    PanelScores<Number> tile;  // the next
    Softmax softmax;
    PanelMask<Mask, Number> mask;
    Index tiles = 0;       // in the output
    bool joined = false;   // whether others are in `older`
    bool written = false;  // whether the results are
  };

  /// The rows of a tile.
  Rows<Number> rows(const Workspace& space, const auto& source, Index head,
                    const PanelScores<Number>& tile, RowCopy<Number>& copy) const {
    return source.get(tile.batch, head, {tile.key, tile.key + tile.keys}, space.copied, copy);
  }

  EIGEN_DONT_INLINE void attend(Workspace& space, Index batch, Index head,
                                const typename Panels<Number>::Panel& panel) const {
    Walk walk(*this, space.room, space.scores, batch, head, panel);
    space.copied = {0, blocks_.copied == problem_.keys ? problem_.keys : 0};
    take_keys(space, walk, problem_.keys);
    finish(walk);
  }

  /// `count` panels of a head from number `panel` on.
  EIGEN_DONT_INLINE void attend_side_by_side(Workspace& space, Index batch, Index head, Index panel,
                                             Index count) const {
    std::optional<Room> room[length(KeyBlocks<Number>::most_panels)];
    const Scratch scratch([&](Layout& layout) {
      for (Index n = 0; n < count; ++n) {
        if (!room[n]) room[n].emplace(*this);
        room[n]->lay(layout, *this);
      }
    });
    std::optional<Walk> walk[length(KeyBlocks<Number>::most_panels)];
    Index begin = problem_.keys, end = 0;
    for (Index n = 0; n < count; ++n) {
      room[n]->scorer.start();
      walk[n].emplace(*this, *room[n], space.scores, batch, head, panels_[panel + n]);
      begin = std::min(begin, walk[n]->mask.begin());
      end = std::max(end, walk[n]->mask.end());
    }
    for (Index k = begin; k < end; k += blocks_.block) {
      space.copied = {k, std::min(k + blocks_.block + blocks_.tile, end)};
      if (blocks_.copied == problem_.keys) space.copied = {0, problem_.keys};
      for (Index n = 0; n < count; ++n) take_keys(space, *walk[n], k + blocks_.block);
    }
    for (Index n = 0; n < count; ++n) finish(*walk[n]);
  }

  /// The tiles of keys that begin before key `end`.
  EIGEN_DONT_INLINE void take_keys(Workspace& space, Walk& walk, Index end) const {
    PanelScores<Number>& tile = walk.tile;
    const Index kv_head = problem_.kv_head(tile.head);
    Softmax& softmax = walk.softmax;
    auto& mask = walk.mask;
    for (; tile.key < std::min(end, mask.end()); tile.key += blocks_.tile) {
      tile.keys = std::min(blocks_.tile, mask.end() - tile.key);
      const Coverage coverage = mask.tile(tile.key, tile.keys, space.pairs);
      if (coverage == Coverage::empty) continue;

      if (walk.tiles == most_tiles) {
        join_sums(walk.room.older, walk.room.output, softmax.sum, tile.lanes, problem_.value_dim,
                  walk.joined);
        std::fill(softmax.sum, softmax.sum + tile.lanes, Number(0));
        walk.joined = true;
        walk.tiles = 0;
      }
      alignas(64) Number largest[length(widest)];
      const auto key = rows(space, key_rows_, kv_head, tile, space.keys);
      walk.room.scorer.take_keys(key, tile.batch * problem_.kv_heads + kv_head, tile.key, tile.keys,
                                 problem_.keys);
      with_vectors(tile.lanes / L::size, [&]<int Vectors>() {
        score_tile<Vectors>(walk.room.scorer, tile, key, coverage, mask, largest);
        softmax.template absorb<Vectors>(space.scores, tile.keys, largest, mask.stairs());
      });
      if (call_.dropout.active()) drop(tile);
      if (walk.tiles == 0 && !walk.joined && tile.key + tile.keys >= mask.end() &&
          write_rows(space, walk, kv_head, coverage)) {
        walk.written = true;
        continue;
      }
      if (walk.joined) fade_sums(walk.room.older, softmax.correction, tile.lanes);
      add_values(space, walk, kv_head, coverage);
      ++walk.tiles;
    }
  }

  /// Scores of a tile, hidden ones -infinity, and the largest of each lane. The largest of keys
  /// that every query sees falls out of the register tiles; only the edges are gone through again.
  template <int Vectors>
  void score_tile(const PanelScorer& scorer, const PanelScores<Number>& panel,
                  const Rows<Number>& rows, Coverage coverage, const auto& mask,
                  Number* largest) const {
    const auto tile = panel.template of_width<Vectors>();
    constexpr Index lanes = Vectors * L::size, step = tile_rows<Vectors>;
    Index clear_begin = 0, clear_end = tile.keys;
    if (coverage == Coverage::partial) {
      clear_begin = (mask.clear_begin() + step - 1) / step * step;
      clear_end = std::max(clear_begin, mask.clear_end() / step * step);
      if (clear_begin >= clear_end) clear_begin = clear_end = 0;
    }
    const auto score = [&](Index first, Index last, Number* most) {
      if (first < last) scorer.template score<Vectors>(rows, first, last, tile.scores, most);
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
        scorer.template score<Vectors, From>(rows, first, last, tile.scores, unused);
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
  /// vectors of 64 bytes are turned by one unit of the processor. Of those of 32 bytes three side
  /// by side make register tiles as good as the ones of rows, which then gain on few keys alone.
  static constexpr Index few_keys(Index lanes) {
    constexpr auto bytes = sizeof(typename L::Packet);
    return bytes < 32 ? 0 : bytes == 32 && lanes == widest ? 48 : 96;
  }

  /// Writes the results of a panel that sees no other tile, with lanes over features: they need not
  /// be turned, and lanes that are no queries cost nothing. False where this does not suit.
  bool write_rows(Workspace& space, Walk& walk, Index kv_head, Coverage coverage) const {
    const PanelScores<Number>& tile = walk.tile;
    const auto& mask = walk.mask;
    Softmax& softmax = walk.softmax;
    const Index width = problem_.value_dim;
    const auto output = slab(call_.output.output, tile.batch, tile.head);
    if (tile.keys > few_keys(tile.lanes) || width % L::size != 0 || output.column_stride != 1) {
      return false;
    }
    const auto read = rows(space, value_rows_, kv_head, tile, space.values);
    alignas(64) Number factor[length(widest)];
    const L factors_zero = output_factors(softmax, tile.head, tile.lanes, factor);
    const auto product = [&](const Rows<Number>& values) {
      L zero = factors_zero;
      for (Index first = 0; first < tile.lanes; first += L::size) {
        zero += weighted_rows(tile.scores + first, factor + first, tile.lanes,
                              std::min(L::size, tile.queries - first),
                              mask.stair(static_cast<int>(first / L::size)), values, width,
                              output.at(tile.query + first, 0), output.row_stride);
      }
      return sum_of_lanes(zero) == 0;
    };
    bool finite = product(read);
    if (!finite && coverage == Coverage::partial && !edges_finite(read, tile.keys, width, mask)) {
      finite = product(finite_rows(read, tile.keys, width, space.safe_values));
      // Who sees a row that is not finite is computed again by the definition.
      for_each_sight_not_finite(read, tile.keys, width, tile.lanes, mask, [&](Index, Index lane) {
        factor[lane] = std::numeric_limits<Number>::quiet_NaN();
        finite = false;
      });
    }
    write_log_sum_exp(softmax, tile);
    if (!finite) {
      define(tile, softmax, [&](Index lane) {
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
  /// Returns zeros, or NaN where a factor is not finite, or no score counts that may be out of
  /// range.
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
      if constexpr (lacks_range<Score>) {
        constexpr Number infinity = std::numeric_limits<Number>::infinity();
        zero = select(L::load(softmax.largest + v * L::size) == L(-infinity),
                      L(std::numeric_limits<Number>::quiet_NaN()), zero);
      }
    }
    return zero;
  }

  void write_log_sum_exp(const Softmax& softmax, const PanelScores<Number>& tile) const {
    const auto& log_sum_exp = call_.output.log_sum_exp;
    if (!log_sum_exp.data) return;
    alignas(64) Number row[length(widest)];
    for (int v = 0; v * L::size < tile.queries; ++v)
      softmax.log_sum_exp(v).store(row + v * L::size);
    for (Index lane = 0; lane < tile.queries; ++lane) {
      log_sum_exp(tile.batch, tile.head, tile.query + lane) = row[lane];
    }
  }

  /// Adds weights x values to the output. A hidden pair has weight 0, but 0 times NaN or infinity
  /// is NaN: rows of values that are hidden from some query and not finite are taken out of the
  /// product and added to the queries that see them.
  void add_values(Workspace& space, const Walk& walk, Index kv_head, Coverage coverage) const {
    const Index width = problem_.value_dim;
    const PanelScores<Number>& tile = walk.tile;
    const auto& mask = walk.mask;
    const Number* const correction = walk.tiles > 0 ? walk.softmax.correction : nullptr;
    const auto read = rows(space, value_rows_, kv_head, tile, space.values);
    const auto add = [&](const Rows<Number>& values) {
      with_vectors(tile.lanes / L::size, [&]<int Vectors>() {
        if constexpr (!HidesNothing<Mask>) {
          if (coverage == Coverage::partial) {
            return add_product<Vectors>(space.scores, values, tile.keys, mask.stairs(), width,
                                        correction, walk.room.output);
          }
        }
        add_product<Vectors>(space.scores, values, tile.keys, width, correction, walk.room.output);
      });
    };
    if (coverage != Coverage::partial || edges_finite(read, tile.keys, width, mask)) {
      return add(read);
    }
    add(finite_rows(read, tile.keys, width, space.safe_values));
    for_each_sight_not_finite(read, tile.keys, width, tile.lanes, mask, [&](Index j, Index lane) {
      const Number weight = tile.scores[j * tile.lanes + lane];
      for (Index c = 0; c < width; ++c) {
        walk.room.output[c * tile.lanes + lane] += weight * read[j][c];
      }
    });
  }

  EIGEN_DONT_INLINE void finish(Walk& walk) const {
    if (walk.written) return;
    const PanelScores<Number>& tile = walk.tile;
    const Index width = problem_.value_dim, lanes = tile.lanes;
    if (walk.tiles == 0) std::fill(walk.room.output, walk.room.output + width * lanes, Number(0));
    const Number* sums = walk.room.output;
    if (walk.joined) {
      join_sums(walk.room.older, walk.room.output, walk.softmax.sum, lanes, width, true);
      sums = walk.room.older + 2 * lanes;
      std::copy(sums - lanes, sums, walk.softmax.sum);
    }
    alignas(64) Number factor[length(widest)];
    L zero = output_factors(walk.softmax, tile.head, lanes, factor);
    zero += unpack_lanes(sums, factor, lanes, tile.queries, width,
                         slab(call_.output.output, tile.batch, tile.head), tile.query);
    write_log_sum_exp(walk.softmax, tile);
    // A panel without a tile sees no key.
    if ((walk.tiles > 0 || walk.joined) && !(sum_of_lanes(zero) == 0)) {
      define(tile, walk.softmax, [&](Index lane) {
        Number sum = factor[lane] * 0;
        for (Index c = 0; c < width; ++c) sum += sums[c * lanes + lane] * 0;
        return sum;
      });
    }
  }

  /// Those queries of a panel once more, by the definition, for which zero(lane) is NaN, and those
  /// that see keys of which none counts.
  EIGEN_DONT_INLINE void define(const PanelScores<Number>& tile, const Softmax& softmax,
                                const auto& zero) const {
    std::optional<ReferenceRow<Call>> row;
    for (Index lane = 0; lane < tile.queries; ++lane) {
      const Index query = tile.query + lane;
      if (!(zero(lane) == 0) ||
          out_of_range(call_, softmax.largest[lane], tile.batch, tile.head, query)) {
        if (!row) row.emplace(call_);
        row->attend(tile.batch, tile.head, query);
      }
    }
  }

  const Call& call_;
  const Problem& problem_;
  Panels<Number> panels_;
  SourceRows<Number, typename Call::Keys> key_rows_;
  SourceRows<Number, typename Call::Values> value_rows_;
  KeyBlocks<Number> blocks_;
};

}  // namespace heed::detail
