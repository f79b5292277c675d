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

/// A similarity that stops at the sum of its terms, where the slope of the rest is taken.
template <class Similarity>
struct Sums : Similarity {
  template <class T>
  EIGEN_ALWAYS_INLINE T finish(const T& sum) const {
    return sum;
  }
};

/// A block of queries of one head: queries and dO packed both ways, with lanes over queries in the
/// scorers and lanes over features; what its lanes have; and its dQ.
template <class Accumulator, class Call>
struct QueryBlock {
  using L = Lanes<Accumulator>;
  using Similarity = typename Call::Score::Similarity;
  static constexpr bool product = Similarity::one_instruction;
  static constexpr bool transforms = Transforms<Similarity>;
  static constexpr bool tanh = SumOfTanh<Similarity>;
  using KeySimilarity =
      std::conditional_t<product, Product<Accumulator>,
                         Sums<std::conditional_t<product, Product<Accumulator>, Similarity>>>;
  using KeyScorer = Scorer<Accumulator, KeySimilarity>;
  using ValueScorer = Scorer<Accumulator, Product<Accumulator>>;
  using KeyPanels = std::conditional_t<product, Panels<Accumulator>, SingleVectors<Accumulator>>;
  using ValuePanels = Panels<Accumulator>;
  using Mask = PanelMask<typename Call::Mask, Accumulator, Panels<Accumulator>::widest>;

  /// Queries of a block: the sums over them stay in registers, so the more the better, as long as a
  /// tile of their P fits the first-level cache beside a panel of dO: 96 float lanes of 8, and 48
  /// keys, are 18 KiB + 9 KiB.
  static constexpr Index vectors = 12;
  static constexpr Index lanes = vectors * L::size;
  static constexpr Index panel_lanes = Panels<Accumulator>::widest * L::size;
  static constexpr Index most_panels = vectors / Panels<Accumulator>::widest;

  QueryBlock(const Call& of, Index tile_keys, Scratch& scratch)
      : call(of),
        p(of.problem),
        key_similarity(similarity_of(of.score.similarity)),
        key_scorers(scorers<KeyScorer>(key_similarity, p.key_dim, tile_keys, scratch)),
        value_scorers(scorers<ValueScorer>(value_similarity, p.value_dim, tile_keys, scratch)) {
    for_each_buffer(
        p, [&](auto buffer, Index size) { this->*buffer = scratch.take<Accumulator>(size); });
    if constexpr (transforms) {
      for (Index r = 0; r < p.query_dim; ++r) {
        for (Index c = 0; c < p.key_dim; ++c) {
          const auto x = static_cast<Accumulator>(call.score.similarity.transform(r, c));
          matrix[r * p.key_dim + c] = matrix_transposed[c * p.query_dim + r] = x;
        }
      }
    }
  }
  QueryBlock(const QueryBlock&) = delete;  // scorers refer to its similarities
  QueryBlock& operator=(const QueryBlock&) = delete;

  static std::size_t bytes(const Problem& p, Index tile_keys) {
    std::size_t total =
        most_panels * (KeyScorer::bytes(p.key_dim, p.key_dim, panel_lanes, tile_keys) +
                       ValueScorer::bytes(p.value_dim, p.value_dim, panel_lanes, tile_keys));
    for_each_buffer(p, [&](auto, Index size) { total += Scratch::bytes<Accumulator>(size); });
    return total;
  }

  KeyScorer& key_scorer(Index n) { return key_scorers[static_cast<std::size_t>(n)]; }
  ValueScorer& value_scorer(Index n) { return value_scorers[static_cast<std::size_t>(n)]; }

  /// Where feature c of a lane is in `query`, and that of `d_output`.
  Index key_offset(Index lane, Index c) const {
    return feature_offset<KeyPanels, Accumulator>(p.key_dim, lanes, lane, c);
  }
  Index value_offset(Index lane, Index c) const {
    return feature_offset<ValuePanels, Accumulator>(p.value_dim, lanes, lane, c);
  }

  /// Takes queries from .. end-1 of a head, as far as there are so many.
  void open(Index of_batch, Index of_head, Index from, Index end) {
    batch = of_batch;
    head = of_head;
    first = from;
    count = std::min(end, p.queries) - first;
    dead = false;
    known_finite.reset();
    const Panels<Accumulator> widths(end - first);
    panel_count = widths.count;
    const auto queries = slab(call.in.query, batch, head);
    const auto grad_output = slab(call.pass.grad_output, batch, head);
    if constexpr (!product) {
      std::fill(d_query, d_query + padded<Accumulator>(p.key_dim) * lanes, Accumulator(0));
    }
    pack_features<ValuePanels>(grad_output, first, count, p.value_dim, lanes, d_output);
    if constexpr (!transforms) {
      pack_features<KeyPanels>(queries, first, count, p.key_dim, lanes, query,
                               Accumulator(call.score.similarity.query_factor));
    }
    for (Index n = 0; n < panel_count; ++n) {
      const Index start = widths[n].first, width = widths[n].vectors * L::size;
      QueryPanel& panel = panels[n];
      panel = {start, width, std::min(width, count - start), p.keys};
      started[n] = false;
      read_lanes(n);
      masks[n].emplace(call.mask, batch, head, first + start, panel.count, p.keys);
      with_vectors(widths[n].vectors, [&]<int Vectors>() {
        value_scorer(n).template pack<Vectors>(grad_output, first + start, panel.count);
        if constexpr (transforms) {
          transform_queries<Vectors>(n);
        } else {
          key_scorer(n).template pack<Vectors>(queries, first + start, panel.count);
        }
      });
    }
    if constexpr (transforms) pack_rows();
    if (dead) clear_dead();
    if constexpr (tanh) tame = double_exponentials(query, lanes, count, p.key_dim, query_exp);
  }

  /// dQ of a panel that no tile has written begins at 0.
  void start_query(Index n) {
    Accumulator* sums = d_query + panels[n].first * p.key_dim;
    if (product && !std::exchange(started[n], true)) {
      std::fill(sums, sums + panels[n].lanes * p.key_dim, Accumulator(0));
    }
  }

  /// Whether the queries and dO hold neither NaN nor infinity.
  bool finite() {
    if (!known_finite) {
      const auto all = [&]<class PanelsOf>(const PanelsOf& of, const Accumulator* features) {
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
  void close(Accumulator* parameters) {
    const auto to = slab(call.gradients.query, batch, head);
    if constexpr (!product) {
      unpack_features<KeyPanels>(static_cast<const Accumulator*>(d_query), 1, 0, lanes, p.key_dim,
                                 to, first, count, 0);
      return;
    }
    alignas(64) Accumulator factor[panel_lanes];
    std::fill(factor, factor + panel_lanes, call.score.similarity.query_factor);
    for (Index n = 0; n < panel_count; ++n) {
      QueryPanel& panel = panels[n];
      start_query(n);
      const Accumulator* from = d_query + panel.first * p.key_dim;
      const Slab<Accumulator> transformed{rows, p.key_dim, 1};
      if constexpr (transforms) {
        unpack_lanes(from, factor, panel.lanes, panel.count, p.key_dim, transformed, panel.first);
        with_vectors(panel.lanes / L::size, [&]<int Vectors>() {
          add_product<Vectors>(from, Rows<Accumulator>{matrix_transposed, p.query_dim}, p.key_dim,
                               p.query_dim, static_cast<const Accumulator*>(nullptr), raw_d_query);
        });
        from = raw_d_query;
        panel.keys = p.query_dim;  // the rows of the matrix
      }
      unpack_lanes(from, factor, panel.lanes, panel.count, p.query_dim, to, first + panel.first);
    }
    if constexpr (transforms && Trained<Similarity>) {
      pack_rows();
      add_outer(panels, panel_count, raw_query, p.query_dim, p.query_dim, query, lanes, p.key_dim,
                parameters, p.query_dim, 0, false);
    }
  }

  const Call& call;
  const Problem& p;
  KeySimilarity key_similarity;
  Product<Accumulator> value_similarity{Accumulator(1)};
  std::array<KeyScorer, most_panels> key_scorers;
  std::array<ValueScorer, most_panels> value_scorers;

  Index batch, head, first, count, panel_count;
  QueryPanel panels[most_panels];
  std::optional<Mask> masks[most_panels];
  bool started[most_panels];                   // whether the panel's dQ is
  bool idle[most_panels];                      // whether a lane of the panel is
  bool dead = false;                           // whether a query is
  bool tame = false;                           // whether query_exp can be used
  alignas(64) Accumulator log_sum_exp[lanes];  // infinity where a lane is idle
  alignas(64) Accumulator delta[lanes];
  alignas(64) Accumulator alive[lanes];  // 1, or 0 for queries without keys and no queries

  Accumulator *query, *d_output, *query_exp;  // by features
  Accumulator* d_query;                       // by queries if the similarity is a product

 private:
  static void for_each_buffer(const Problem& p, const auto& body) {
    const Index key_numbers = padded<Accumulator>(p.key_dim) * lanes;
    const Index query_dim = transforms ? p.query_dim : 0;
    body(&QueryBlock::query, key_numbers);
    body(&QueryBlock::d_output, padded<Accumulator>(p.value_dim) * lanes);
    body(&QueryBlock::d_query, key_numbers);
    body(&QueryBlock::query_exp, tanh ? key_numbers : 0);
    body(&QueryBlock::raw_query, query_dim * lanes);
    body(&QueryBlock::matrix, query_dim * p.key_dim);
    body(&QueryBlock::matrix_transposed, query_dim * p.key_dim);
    body(&QueryBlock::rows, transforms ? lanes * p.key_dim : 0);
    body(&QueryBlock::raw_d_query, query_dim * panel_lanes);
  }

  static KeySimilarity similarity_of(const Similarity& similarity) {
    if constexpr (product) {
      return {transforms ? Accumulator(1) : similarity.query_factor};
    } else {
      return {similarity};
    }
  }

  template <class S>
  static std::array<S, most_panels> scorers(const auto& similarity, Index dim, Index tile_keys,
                                            Scratch& scratch) {
    return [&]<std::size_t... n>(std::index_sequence<n...>) {
      return std::array<S, most_panels>{
          (static_cast<void>(n), S(similarity, dim, dim, panel_lanes, tile_keys, scratch))...};
    }(std::make_index_sequence<static_cast<std::size_t>(most_panels)>());
  }

  /// Log-sum-exp, delta and whether there is anything to do, for the lanes of a panel.
  void read_lanes(Index n) {
    constexpr auto infinity = std::numeric_limits<Accumulator>::infinity();
    const auto grad_output = slab(call.pass.grad_output, batch, head);
    const auto output = slab(call.pass.output, batch, head);
    idle[n] = false;
    for (Index lane = panels[n].first; lane < panels[n].first + panels[n].lanes; ++lane) {
      const bool there = lane < count;
      const auto lse =
          there ? static_cast<Accumulator>(call.pass.log_sum_exp(batch, head, first + lane))
                : -infinity;
      const bool lives = lse != -infinity;
      idle[n] = idle[n] || !lives;
      dead = dead || (there && !lives);
      log_sum_exp[lane] = lives ? lse : infinity;
      delta[lane] = lives ? row_dot<Accumulator>(grad_output, output, first + lane, p.value_dim)
                          : Accumulator(0);
      alive[lane] = lives;
    }
  }

  /// q M, to lanes over queries in the scorer and to rows.
  template <int Vectors>
  void transform_queries(Index n) {
    const QueryPanel& panel = panels[n];
    Accumulator* raw = raw_query + panel.first * p.query_dim;
    pack_lanes(slab(call.in.query, batch, head), first + panel.first, panel.count, p.query_dim,
               panel.lanes, raw);
    Accumulator* transformed = d_query + panel.first * p.key_dim;  // not in use yet
    add_product<Vectors>(raw, Rows<Accumulator>{matrix, p.key_dim}, p.query_dim, p.key_dim,
                         static_cast<const Accumulator*>(nullptr), transformed);
    Accumulator factor[panel_lanes];
    std::fill(factor, factor + panel.lanes, call.score.similarity.query_factor);
    const Slab<Accumulator> to{rows, p.key_dim, 1};
    unpack_lanes(transformed, factor, panel.lanes, panel.count, p.key_dim, to, panel.first);
    const Slab<const Accumulator> from{rows, p.key_dim, 1};
    key_scorer(n).template pack<Vectors>(from, panel.first, panel.count);
  }

  void pack_rows() {
    const Slab<const Accumulator> from{rows, p.key_dim, 1};
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
        for (Index r = 0; r < (transforms ? p.query_dim : 0); ++r) {
          raw_query[panel.first * p.query_dim + r * panel.lanes + lane] = 0;
        }
      }
    }
  }

  Accumulator *raw_query, *matrix, *matrix_transposed, *rows, *raw_d_query;  // of a matrix
  std::optional<bool> known_finite;                                          // once asked for
};

}  // namespace heed::detail
