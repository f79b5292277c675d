#pragma once

#include <algorithm>
#include <cstddef>
#include <tuple>
#include <type_traits>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/engine/backward/block.hpp"
#include "heed/engine/backward/parameters.hpp"
#include "heed/engine/tile/modify.hpp"
#include "heed/kernel/online_softmax.hpp"
#include "heed/kernel/outer_product.hpp"
#include "heed/kernel/pack.hpp"
#include "heed/kernel/panels.hpp"
#include "heed/kernel/register_tile.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/simd/math.hpp"

namespace heed::detail {

/// Every query sees every key.
struct AllSeen {
  template <class L>
  EIGEN_ALWAYS_INLINE L operator()(Index, int, L x) const {
    return x;
  }
};

/// The queries of a panel that are alive, where the mask shows them the key.
template <class Number, class Mask>
struct SeenThrough {
  using L = Lanes<Number>;
  const Number* alive;
  const Mask& mask;
  EIGEN_ALWAYS_INLINE L operator()(Index j, int v, L x) const {
    const auto lives = L::load(alive + v * L::size) > L(0);
    const bool clear = mask.clear_begin() <= j && j < mask.clear_end();
    return select(clear ? lives : lives & mask.visible(j, v), x, L(0));
  }
};

/// What a panel of queries has for the way back through the softmax, lane by lane; keeps is null
/// where nothing is dropped. The log-sum-exp is in two parts.
template <class Number>
struct SoftmaxLanes {
  const Number *log_sum_exp, *rest, *delta, *keeps;
};

/// Scores become P keep, dP becomes dS, for keys begin .. end-1 of a tile. A function of numbers
/// alone, so that it is compiled once for all scores of a unit.
template <class Unit, class Number, int Vectors, class Seen>
EIGEN_DONT_INLINE void softmax_back_rows(const SoftmaxLanes<Number>& lanes,
                                         const ScoreTile<Number, Vectors>& tile, Number* d_scores,
                                         Index begin, Index end, const Seen& seen,
                                         const Rows<Number>& key, Index key_dim) {
  using L = Lanes<Number>;
  L lse[length(Vectors)], rest[length(Vectors)], delta[length(Vectors)];
#pragma GCC unroll 16
  for (int v = 0; v < Vectors; ++v) {
    lse[v] = L::load(lanes.log_sum_exp + v * L::size);
    rest[v] = L::load(lanes.rest + v * L::size);
    delta[v] = L::load(lanes.delta + v * L::size);
  }
  for_each_tile<(accumulator_registers > 12 ? 6 : 3) / Vectors>(
      end,
      [&]<int Keys>(Index j) __attribute__((always_inline)) {
        L weight[length(Keys * Vectors)];
        Number* score = tile.scores + j * tile.lanes;
        Number* d_score = d_scores + j * tile.lanes;
        // The product with the keys comes next, and goes down their columns.
        for (int r = 0; r < Keys; ++r) fetch(key[j + r], key_dim);
    // The difference first: it is exact where it matters. At most 0, as log_sum_exp may be
    // rounded to below the score of an only key.
#pragma GCC unroll 16
        for (int i = 0; i < Keys * Vectors; ++i) {
          weight[i] = L::load(score + i * L::size) - lse[i % Vectors];
          if constexpr (Unit::binary == 1) weight[i] -= rest[i % Vectors];
          weight[i] = min(weight[i], L(0));
        }
        weigh<Unit>(weight);
#pragma GCC unroll 16
        for (int i = 0; i < Keys * Vectors; ++i) {
          const L ds = weight[i] * (L::load(d_score + i * L::size) - delta[i % Vectors]);
          if (lanes.keeps) weight[i] *= L::load(lanes.keeps + j * tile.lanes + i * L::size);
          seen(j + i / Vectors, i % Vectors, weight[i]).store(score + i * L::size);
          seen(j + i / Vectors, i % Vectors, ds).store(d_score + i * L::size);
        }
      },
      begin);
}

/// From the sums of terms and dP of a panel of queries and a tile of keys to P and to the gradients
/// of those sums: the rest of the score and the modifiers forth, dropout, softmax, and back.
template <class Call>
class TileGradients {
  using Number = typename Call::Number;
  using L = Lanes<Number>;
  using Similarity = typename Call::Definition::Similarity;
  using Modifiers = typename Call::Definition::Modifiers;
  using Block = QueryBlock<Call>;
  static constexpr std::size_t modifiers = std::tuple_size_v<Modifiers>;
  static constexpr bool product = Block::product;
  static constexpr bool flat = score_traits<Similarity>.derivative == Derivative::zero;
  static constexpr bool trains_shared =
      trained<Similarity> && score_traits<Similarity>.parameters == Parameters::shared;

 public:
  TileGradients(const Call& call,
                const ParameterGradients<Number, typename Call::Definition>& parameters,
                Index tile_keys)
      : call_(call), parameters_(parameters), pairs_(tile_keys * Block::panel_lanes) {}
  void lay(Layout& layout) {
    sums_ = layout.take<Number>(product ? 0 : pairs_);
    derivatives_ = layout.take<Number>(static_cast<Index>(modifiers) * pairs_);
    keeps_ = layout.take<Number>(call_.dropout.active() ? pairs_ : 0);
  }

  /// Sums become P keep, dP the gradients of the sums. Those of parameters that scores share are
  /// added to `sums`, those of biases to the biases' own.
  template <int Vectors>
  void run(const Block& block, Index n, const ScoreTile<Number, Vectors>& tile,
           const ScoreTile<Number, Vectors>& gradients, const Rows<Number>& key,
           Number* sums) const {
    if constexpr (!product) finish_scores(tile);
    Number* derivatives = derivatives_;
    std::apply(
        [&](const auto&... modifier) {
          ((differentiate_modifier(tile, modifier, derivatives), derivatives += pairs_), ...);
        },
        call_.definition.modifiers);
    if (call_.dropout.active()) drop(tile.pairs(), gradients.scores);
    softmax_back(block, n, tile, gradients.scores, key);
    modify_back(gradients, sums);
    if constexpr (!product && !flat) finish_back(gradients, sums);
  }

 private:
  /// Keeps the sums of terms and turns them into scores.
  template <int Vectors>
  EIGEN_DONT_INLINE void finish_scores(const ScoreTile<Number, Vectors>& tile) const {
    for (Index at = 0; at < tile.keys * tile.lanes; at += L::size) {
      const L sum = L::load(tile.scores + at);
      sum.store(sums_ + at);
      call_.definition.similarity.finish(sum).store(tile.scores + at);
    }
  }

  template <int Vectors>
  EIGEN_DONT_INLINE void finish_back(const ScoreTile<Number, Vectors>& gradients,
                                     [[maybe_unused]] Number* sums) const {
    [[maybe_unused]] L by_shared(0);
    for (Index at = 0; at < gradients.keys * gradients.lanes; at += L::size) {
      const L sum = L::load(sums_ + at), g = L::load(gradients.scores + at);
      const auto hidden = g == L(0);
      if constexpr (trains_shared) {
        by_shared += select(hidden, L(0), g * call_.definition.similarity.shared_slope(sum));
      }
      select(hidden, L(0), g * finish_slope(call_.definition.similarity, sum))
          .store(gradients.scores + at);
    }
    if constexpr (trains_shared) {
      *sums += sum_of_lanes(by_shared);
    }
  }

  template <int Vectors, std::size_t m = modifiers>
  void modify_back(const ScoreTile<Number, Vectors>& gradients, Number* sums) const {
    if constexpr (m > 0) {
      using Modifier = std::tuple_element_t<m - 1, Modifiers>;
      if constexpr (trained<Modifier>) {
        std::get<m - 1>(call_.definition.modifiers)
            .add_gradient(gradients.pairs(), sums + parameters_.offset(m - 1));
      }
      if constexpr (modifier_traits<Modifier>.effect != Effect::shifts) {
        multiply_derivatives(gradients, derivatives_ + static_cast<Index>(m - 1) * pairs_);
      }
      modify_back<Vectors, m - 1>(gradients, sums);
    }
  }

  /// keep_ij, and dP_ij keep_ij in place of dP_ij.
  EIGEN_DONT_INLINE void drop(const PairTile<Number>& tile, Number* d_weights) const {
    const auto scale = static_cast<Number>(call_.dropout.scale());
    for (Index lane = 0; lane < tile.lanes; ++lane) {
      const auto row = call_.dropout.row(tile.batch, tile.head, tile.query + lane);
      for (Index j = 0; j < tile.keys; ++j) {
        const Index at = j * tile.lanes + lane;
        const bool kept = call_.dropout.keeps(row, tile.key + j);
        keeps_[at] = kept ? scale : Number(0);
        d_weights[at] = kept ? d_weights[at] * scale : Number(0);
      }
    }
  }

  /// Scores become P keep, dP becomes dS.
  template <int Vectors>
  void softmax_back(const Block& block, Index n, const ScoreTile<Number, Vectors>& tile,
                    Number* d_scores, const Rows<Number>& key) const {
    const QueryPanel& panel = block.panels[n];
    const auto& mask = *block.masks[n];
    const SoftmaxLanes<Number> lanes{block.log_sum_exp + panel.first, block.rest + panel.first,
                                     block.delta + panel.first,
                                     call_.dropout.active() ? keeps_ : nullptr};
    const auto go = [&](Index begin, Index end, const auto& seen) {
      softmax_back_rows<typename Block::Unit>(lanes, tile, d_scores, begin, end, seen, key,
                                              call_.problem.key_dim);
    };
    const SeenThrough<Number, std::remove_cvref_t<decltype(mask)>> visible{
        block.alive + panel.first, mask};
    // Keys that every query sees need no look at the mask, unless a lane is idle.
    Index clear_begin = std::min(mask.clear_begin(), tile.keys), clear_end = clear_begin;
    if (!block.idle[n]) {
      clear_end = std::clamp(mask.clear_end(), clear_begin, tile.keys);
      go(clear_begin, clear_end, AllSeen{});
    }
    go(0, clear_begin, visible);
    go(clear_end, tile.keys, visible);
  }

  const Call& call_;
  const ParameterGradients<Number, typename Call::Definition>& parameters_;
  Index pairs_;  // of the largest tile
  Number *sums_ = nullptr, *derivatives_ = nullptr, *keeps_ = nullptr;
};

}  // namespace heed::detail
