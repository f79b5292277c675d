#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/engine/call.hpp"
#include "heed/engine/tile/mask.hpp"
#include "heed/engine/tile/score.hpp"
#include "heed/engine/tile/score_additive.hpp"
#include "heed/engine/tile/score_gradient.hpp"
#include "heed/kernel/outer_product.hpp"
#include "heed/kernel/pack.hpp"
#include "heed/kernel/panels.hpp"
#include "heed/kernel/register_tile.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"

namespace heed::detail {

/// A similarity that stops at the sum of its terms, where the derivative of the rest is taken.
template <class Similarity>
struct TermSums : Similarity {
  template <class T>
  EIGEN_ALWAYS_INLINE T finish(const T& sum) const {
    return sum;
  }
};

/// A block of queries of one head: queries and dO packed both ways, with lanes over queries in the
/// scorers and lanes over features; what its lanes have; and its dQ.
template <class Call>
struct QueryBlock {
  using Number = typename Call::Number;
  using L = Lanes<Number>;
  using Similarity = typename Call::Definition::Similarity;
  static constexpr bool product = is_product<Similarity>;
  /// Scores are taken as the forward pass takes them, where that is a product: the rounding errors
  /// that are in the log-sum-exp are then those in the scores, and cancel.
  using Unit = std::conditional_t<is_product<Similarity> && !transforms<Similarity>,
                                  typename Call::Score::Unit, NaturalUnit>;
  static constexpr bool has_matrix = transforms<Similarity>;
  static constexpr bool tanh = SumOfTanh<Similarity>;
  using KeySimilarity =
      std::conditional_t<product, Product<Number>,
                         TermSums<std::conditional_t<product, Product<Number>, Similarity>>>;
  using KeyScorer = Scorer<Number, KeySimilarity>;
  using ValueScorer = Scorer<Number, Product<Number>>;
  using KeyPanels = std::conditional_t<product, FeaturePanels<Number>, SingleVectors<Number>>;
  using ValuePanels = FeaturePanels<Number>;
  using Mask = PanelMask<typename Call::Mask, Number>;

  /// Queries of a block: the sums over them stay in registers, so the more the better, as long as a
  /// tile of their P fits the first-level cache beside a panel of dO: 96 float lanes of 8, and 48
  /// keys, are 18 KiB + 9 KiB.
  static constexpr Index vectors = 12;
  static constexpr Index lanes = vectors * L::size;
  static constexpr Index panel_lanes = Panels<Number>::widest * L::size;
  static constexpr Index most_panels = vectors / Panels<Number>::widest;

  QueryBlock(const Call& of, Index tile_keys)
      : call(of),
        p(of.problem),
        key_similarity(similarity_of(of)),
        key_scorers(scorers<KeyScorer>(key_similarity, p.key_dim, tile_keys)),
        value_scorers(scorers<ValueScorer>(value_similarity, p.value_dim, tile_keys)) {}
  QueryBlock(const QueryBlock&) = delete;  // scorers refer to its similarities
  QueryBlock& operator=(const QueryBlock&) = delete;

  /// What it works in. start() follows, once.
  void lay(Layout& layout) {
    const Index key_numbers = padded<Number>(p.key_dim) * lanes;
    const Index query_dim = has_matrix ? p.query_dim : 0;
    for (auto& scorer : key_scorers) scorer.lay(layout);
    for (auto& scorer : value_scorers) scorer.lay(layout);
    query = layout.take<Number>(key_numbers);
    d_output = layout.take<Number>(padded<Number>(p.value_dim) * lanes);
    d_query = layout.take<Number>(key_numbers);
    older_d_query = layout.take<Number>(product ? key_numbers : 0);
    query_exp = layout.take<Number>(tanh ? key_numbers : 0);
    raw_query = layout.take<Number>(query_dim * lanes);
    matrix = layout.take<Number>(query_dim * p.key_dim);
    matrix_transposed = layout.take<Number>(query_dim * p.key_dim);
    rows = layout.take<Number>(has_matrix ? lanes * p.key_dim : 0);
    raw_d_query = layout.take<Number>(query_dim * panel_lanes);
  }
  void start() {
    for (auto& scorer : key_scorers) scorer.start();
    for (auto& scorer : value_scorers) scorer.start();
    if constexpr (has_matrix) {
      for (Index r = 0; r < p.query_dim; ++r) {
        for (Index c = 0; c < p.key_dim; ++c) {
          const auto x = static_cast<Number>(call.definition.similarity.transform(r, c));
          matrix[r * p.key_dim + c] = matrix_transposed[c * p.query_dim + r] = x;
        }
      }
    }
  }

  KeyScorer& key_scorer(Index n) { return key_scorers[static_cast<std::size_t>(n)]; }
  ValueScorer& value_scorer(Index n) { return value_scorers[static_cast<std::size_t>(n)]; }

  /// Where feature c of a lane is in `query`, and that of `d_output`.
  Index key_offset(Index lane, Index c) const {
    return feature_offset<KeyPanels, Number>(p.key_dim, lanes, lane, c);
  }
  Index value_offset(Index lane, Index c) const {
    return feature_offset<ValuePanels, Number>(p.value_dim, lanes, lane, c);
  }

  /// Takes queries from .. end-1 of a head, as far as there are so many.
  void open(Index of_batch, Index of_head, Index from, Index end) {
    batch = of_batch;
    head = of_head;
    first = from;
    count = std::min(end, p.queries) - first;
    dead = false;
    known_finite.reset();
    const Panels<Number> widths(end - first);
    panel_count = widths.count;
    const auto queries = slab(call.query, batch, head);
    const auto grad_output = slab(call.output.grad_output, batch, head);
    if constexpr (!product) {
      std::fill(d_query, d_query + padded<Number>(p.key_dim) * lanes, Number(0));
    }
    pack_features<ValuePanels>(grad_output, first, count, p.value_dim, lanes, d_output);
    if constexpr (!has_matrix) {
      pack_features<KeyPanels>(queries, first, count, p.key_dim, lanes, query,
                               Number(factor_of_query()));
    }
    for (Index n = 0; n < panel_count; ++n) {
      const Index start = widths[n].first, width = widths[n].vectors * L::size;
      QueryPanel& panel = panels[n];
      panel = {start, width, std::min(width, count - start), p.keys};
      tiles[n] = 0;
      joined[n] = false;
      read_lanes(n);
      masks[n].emplace(call.mask, batch, head, first + start, panel.count, width, p.keys);
      value_scorer(n).pack(grad_output, first + start, panel.count, width);
      if constexpr (has_matrix) {
        transform_queries(n);
      } else {
        key_scorer(n).pack(queries, first + start, panel.count, width);
      }
    }
    if constexpr (has_matrix) pack_rows();
    if (dead) clear_dead();
    if constexpr (tanh)
      exp_in_range = double_exponentials(query, lanes, count, p.key_dim, query_exp);
  }

  /// So many tiles are added up before their sum joins that of the tiles before: a chain of
  /// additions has a rounding error that grows with its length.
  static constexpr Index most_tiles = 16;

  /// Announces that a tile is added to the dQ of a panel; false where it is written instead.
  bool add_to_query(Index n) {
    if (tiles[n] == most_tiles) {
      join_query(n);
      tiles[n] = 0;
    }
    return tiles[n]++ > 0;
  }

  /// What has been added up joins the tiles before.
  EIGEN_DONT_INLINE void join_query(Index n) {
    const Index begin = panels[n].first * p.key_dim, end = begin + panels[n].lanes * p.key_dim;
    for (Index at = begin; at < end; at += L::size) {
      const L x = L::load(d_query + at);
      (joined[n] ? x + L::load(older_d_query + at) : x).store(older_d_query + at);
    }
    joined[n] = true;
  }

  /// dQ of a panel that no tile has written begins at 0.
  void start_query(Index n) {
    Number* sums = d_query + panels[n].first * p.key_dim;
    if (product && tiles[n] == 0 && !joined[n]) {
      std::fill(sums, sums + panels[n].lanes * p.key_dim, Number(0));
      tiles[n] = 1;
    }
  }

  /// Whether the queries and dO hold neither NaN nor infinity.
  bool finite() {
    if (!known_finite) {
      const auto all = [&]<class PanelsOf>(const PanelsOf& of, const Number* features) {
        bool result = true;
        for (Index n = 0; n < of.count && result; ++n) {
          result = all_finite(features + of[n].first * lanes, count * of[n].vectors * L::size);
        }
        return result;
      };
      known_finite = all(KeyPanels(p.key_dim), query) && all(ValuePanels(p.value_dim), d_output);
    }
    return *known_finite;
  }

  /// Writes dQ; the gradient of a matrix between query and key is added to `parameters`.
  void close(Number* parameters) {
    const auto to = slab(call.output.query, batch, head);
    if constexpr (!product) {
      unpack_features<KeyPanels>(static_cast<const Number*>(d_query), 1, 0, lanes, p.key_dim, to,
                                 first, count, 0);
      return;
    }
    alignas(64) Number factor[length(panel_lanes)];
    std::fill(factor, factor + panel_lanes, factor_of_query());
    for (Index n = 0; n < panel_count; ++n) {
      QueryPanel& panel = panels[n];
      start_query(n);
      if (joined[n]) join_query(n);
      const Number* from = (joined[n] ? older_d_query : d_query) + panel.first * p.key_dim;
      const Slab<Number> transformed{rows, p.key_dim, 1};
      if constexpr (has_matrix) {
        unpack_lanes(from, factor, panel.lanes, panel.count, p.key_dim, transformed, panel.first);
        with_vectors(panel.lanes / L::size, [&]<int Vectors>() {
          add_product<Vectors>(from, Rows<Number>{matrix_transposed, p.query_dim}, p.key_dim,
                               p.query_dim, static_cast<const Number*>(nullptr), raw_d_query);
        });
        from = raw_d_query;
        panel.keys = p.query_dim;  // the rows of the matrix
      }
      unpack_lanes(from, factor, panel.lanes, panel.count, p.query_dim, to, first + panel.first);
    }
    if constexpr (has_matrix && trained<Similarity>) {
      pack_rows();
      add_outer(panels, panel_count, raw_query, p.query_dim, p.query_dim, query, lanes, p.key_dim,
                FeatureRows<Number>{parameters, p.query_dim, 0}, 0, false);
    }
  }

  const Call& call;
  const Problem& p;
  KeySimilarity key_similarity;
  Product<Number> value_similarity{Number(1)};
  std::array<KeyScorer, length(most_panels)> key_scorers;
  std::array<ValueScorer, length(most_panels)> value_scorers;

  Index batch, head, first, count, panel_count;
  QueryPanel panels[length(most_panels)];
  std::optional<Mask> masks[length(most_panels)];
  Index tiles[length(most_panels)];               // how many are in the panel's dQ
  bool joined[length(most_panels)];               // whether there are older ones
  bool idle[length(most_panels)];                 // whether a lane of the panel is
  bool dead = false;                              // whether a query is
  bool exp_in_range = false;                      // whether query_exp can be used
  alignas(64) Number log_sum_exp[length(lanes)];  // infinity where a lane is idle; in `Unit`,
  alignas(64) Number rest[length(lanes)];         // rounded, and the rest of it
  alignas(64) Number delta[length(lanes)];
  alignas(64) Number alive[length(lanes)];  // 1, or 0 for queries without keys and no queries

  Number *query = nullptr, *d_output = nullptr, *query_exp = nullptr;  // by features
  Number* d_query = nullptr;  // by queries if the similarity is a product
  Number* older_d_query = nullptr;

 private:
  Number factor_of_query() const { return query_factor<Number>(call.definition.similarity); }

  static KeySimilarity similarity_of(const Call& call) {
    if constexpr (has_matrix) {
      return {Number(1)};
    } else if constexpr (product) {
      return {query_factor<Number>(call.score.similarity)};
    } else {
      return {call.definition.similarity};
    }
  }

  template <class S>
  static std::array<S, length(most_panels)> scorers(const auto& similarity, Index dim,
                                                    Index tile_keys) {
    return [&]<std::size_t... n>(std::index_sequence<n...>) {
      return std::array<S, length(most_panels)>{
          (static_cast<void>(n), S(similarity, dim, dim, panel_lanes, tile_keys))...};
    }(std::make_index_sequence<static_cast<std::size_t>(most_panels)>());
  }

  /// Log-sum-exp, delta and whether there is anything to do, for the lanes of a panel.
  void read_lanes(Index n) {
    constexpr auto infinity = std::numeric_limits<Number>::infinity();
    const auto grad_output = slab(call.output.grad_output, batch, head);
    const auto output = slab(call.output.output, batch, head);
    idle[n] = false;
    for (Index lane = panels[n].first; lane < panels[n].first + panels[n].lanes; ++lane) {
      const bool there = lane < count;
      const auto lse = there
                           ? static_cast<Number>(call.output.log_sum_exp(batch, head, first + lane))
                           : -infinity;
      const bool lives = lse != -infinity;
      idle[n] = idle[n] || !lives;
      dead = dead || (there && !lives);
      log_sum_exp[lane] = infinity;
      rest[lane] = 0;
      if (lives) {
        const double exact = static_cast<double>(lse) * Unit::factor;
        log_sum_exp[lane] = static_cast<Number>(exact);
        rest[lane] = static_cast<Number>(exact - static_cast<double>(log_sum_exp[lane]));
      }
      delta[lane] =
          lives ? row_dot<Number>(grad_output, output, first + lane, p.value_dim) : Number(0);
      alive[lane] = lives;
    }
  }

  /// q M, to lanes over queries in the scorer and to rows.
  void transform_queries(Index n) {
    const QueryPanel& panel = panels[n];
    Number* raw = raw_query + panel.first * p.query_dim;
    pack_lanes(slab(call.query, batch, head), first + panel.first, panel.count, p.query_dim,
               panel.lanes, raw);
    Number* transformed = d_query + panel.first * p.key_dim;  // not in use yet
    with_vectors(panel.lanes / L::size, [&]<int Vectors>() {
      add_product<Vectors>(raw, Rows<Number>{matrix, p.key_dim}, p.query_dim, p.key_dim,
                           static_cast<const Number*>(nullptr), transformed);
    });
    Number factor[length(panel_lanes)];
    std::fill(factor, factor + panel.lanes, factor_of_query());
    const Slab<Number> to{rows, p.key_dim, 1};
    unpack_lanes(transformed, factor, panel.lanes, panel.count, p.key_dim, to, panel.first);
    const Slab<const Number> from{rows, p.key_dim, 1};
    key_scorer(n).pack(from, panel.first, panel.count, panel.lanes);
  }

  void pack_rows() {
    const Slab<const Number> from{rows, p.key_dim, 1};
    pack_features<KeyPanels>(from, 0, count, p.key_dim, lanes, query);
  }

  /// Nothing of a query without keys may reach a sum, whatever it holds.
  void clear_dead() {
    for (Index n = 0; n < panel_count; ++n) {
      const QueryPanel& panel = panels[n];
      for (Index lane = 0; lane < panel.count; ++lane) {
        const Index i = panel.first + lane;
        if (alive[i] != 0) continue;
        for (Index c = 0; c < p.key_dim; ++c) query[key_offset(i, c)] = 0;
        for (Index c = 0; c < p.value_dim; ++c) d_output[value_offset(i, c)] = 0;
        for (Index r = 0; r < (has_matrix ? p.query_dim : 0); ++r) {
          raw_query[panel.first * p.query_dim + r * panel.lanes + lane] = 0;
        }
      }
    }
  }

  // Of a matrix.
  Number *raw_query = nullptr, *matrix = nullptr, *matrix_transposed = nullptr, *rows = nullptr;
  Number* raw_d_query = nullptr;
  std::optional<bool> known_finite;  // once asked for
};

}  // namespace heed::detail
