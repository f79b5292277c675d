#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/engine/backward/block.hpp"
#include "heed/engine/backward/parameters.hpp"
#include "heed/engine/backward/tile.hpp"
#include "heed/engine/call.hpp"
#include "heed/engine/tile/mask.hpp"
#include "heed/engine/tile/rows.hpp"
#include "heed/engine/tile/score_gradient.hpp"
#include "heed/kernel/outer_product.hpp"
#include "heed/kernel/pack.hpp"
#include "heed/kernel/panels.hpp"
#include "heed/kernel/register_tile.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/problem.hpp"

namespace heed::detail {

/// The gradients of attention, fused: no more than a tile of probabilities exists at a time.
///
///   for each key head (and run of blocks of its queries, where there are few heads)
///     for each block of queries, packed both ways: lanes over queries, lanes over features
///       for each tile of keys that the mask lets the block see
///         for each panel of the block
///           scores = similarity(keys, panel)      register tiles, as forwards
///           dP = values x dO                      the same
///           P = e^(scores - log-sum-exp), dS = P (dP - delta), back through the modifiers
///           dQ += dS x keys                       lanes over queries
///         dV += P x dO, dK += dS x queries        lanes over features, sums over the block
///
/// What a key head's gradients are added up from, and in which order, depends on the shapes alone.
/// See ReferenceBackward for the mathematics.
template <class Call>
class Backward {
  using Number = typename Call::Number;
  using L = Lanes<Number>;
  using Block = QueryBlock<Call>;
  using Tile = TileGradients<Call>;
  using Score = typename Call::Definition;
  using Similarity = typename Score::Similarity;
  using KeyPanels = typename Block::KeyPanels;
  using ValuePanels = typename Block::ValuePanels;
  static constexpr bool product = Block::product;
  static constexpr bool flat = score_traits<Similarity>.derivative == Derivative::zero;
  static constexpr bool by_feature = score_traits<Similarity>.parameters == Parameters::per_feature;
  static constexpr bool trains_features = trained<Similarity> && by_feature;
  static constexpr Index block_lanes = Block::lanes;

 public:
  static constexpr bool possible = Laned<Number> && score_traits<Similarity>.vectorised;
  /// Not where a score in binary units is beyond the largest number, but is not in natural ones.
  static bool suits(const Call& call) {
    if constexpr (Block::Unit::binary == 1) {
      constexpr auto most = static_cast<Number>(
          static_cast<double>(std::numeric_limits<Number>::max()) / Block::Unit::factor);
      const auto& lse = call.output.log_sum_exp;
      for (Index b = 0; b < lse.shape[0]; ++b) {
        for (Index h = 0; h < lse.shape[1]; ++h) {
          for (Index i = 0; i < lse.shape[2]; ++i) {
            const auto x = static_cast<Number>(lse(b, h, i));
            if (std::abs(x) > most && x != -std::numeric_limits<Number>::infinity()) return false;
          }
        }
      }
    }
    return true;
  }

  /// `alike`: so many calls of this size make up all the work, of which this one is a part.
  explicit Backward(const Call& call, Index alike = 1)
      : p_(call.problem),
        call_(call),
        parameters_(call.problem, call.definition),
        shared_(parameters_.shared_axes()),
        key_rows_(call.keys, p_.keys),
        value_rows_(call.values, p_.keys),
        group_(p_.kv_heads == 0 ? 0 : p_.heads / p_.kv_heads),
        vectors_((p_.queries + L::size - 1) / L::size),
        blocks_((vectors_ + Block::vectors - 1) / Block::vectors),
        key_width_(padded<Number>(p_.key_dim)),
        value_width_(padded<Number>(p_.value_dim)),
        tile_keys_(std::min(tile_keys(), p_.keys)) {
    const Index heads =
        (shared_.batch ? 1 : p_.entries() * alike) * (shared_.head ? 1 : p_.kv_heads);
    // An even number, so that two pieces of work are equal; a piece has four blocks or more, or is
    // one of two, as each has sums of its own to be added up.
    if (blocks_ >= 4) blocks_ += blocks_ % 2;
    const auto pieces =
        std::bit_floor(static_cast<std::size_t>(std::max<Index>(blocks_ / 4, blocks_ < 4 ? 1 : 2)));
    chunks_ = shared_.query ? 1
                            : std::clamp<Index>(static_cast<Index>(pieces), 1,
                                                std::max<Index>(1, 8 / std::max<Index>(1, heads)));
    key_in_place_ = product && adds_in_place(call.output.key);
    value_in_place_ = adds_in_place(call.output.value);
  }

  void run(Eigen::ThreadPoolInterface* pool) const {
    // Gradients that several heads add to have one of them at a time.
    const Index rounds = (shared_.batch ? p_.entries() : 1) * (shared_.head ? p_.kv_heads : 1);
    const Index heads = p_.entries() * p_.kv_heads / std::max<Index>(rounds, 1);
    Number *parameters = nullptr, *partials = nullptr;
    const Scratch scratch([&](Layout& layout) {
      parameters = layout.take<Number>(pieces() * parameter_numbers());
      partials = layout.take<Number>(chunks_ > 1 ? heads * chunks_ * key_value_numbers() : 0);
    });
    std::fill(parameters, parameters + pieces() * parameter_numbers(), Number(0));
    for (Index round = 0; round < rounds; ++round) {
      const Index head = round * heads, piece = head * chunks_, run = head * runs_of_head();
      parallel_for(pool, heads * chunks_, [&](Index first, Index last) {
        this->run(piece + first, piece + last, parameters, partials, head);
      });
      parallel_for(pool, chunks_ > 1 ? heads * runs_of_head() : 0, [&](Index first, Index last) {
        add_partials(run + first, run + last, partials, head);
      });
    }
    add_parameters(parameters, pieces());
  }

  /// Whether calls, for different batch entries, and their pieces add to no number in common, so
  /// that they may run beside one another.
  bool apart() const { return !shared_.batch && !shared_.head; }

  /// What run(pool) does, for who shares out the pieces of several calls: run() of all pieces, each
  /// with parameter_numbers() that begin at 0, then add_partials() of all runs of keys, then
  /// add_parameters() for the pieces of all calls together.
  Index pieces() const { return p_.entries() * p_.kv_heads * chunks_; }
  Index parameter_numbers() const { return parameters_.count(); }
  Index partial_numbers() const { return chunks_ > 1 ? pieces() * key_value_numbers() : 0; }
  Index key_runs() const { return chunks_ > 1 ? p_.entries() * p_.kv_heads * runs_of_head() : 0; }

  /// `partials` are those of heads from first_head on.
  void run(Index first, Index last, Number* parameters, Number* partials,
           Index first_head = 0) const {
    Workspace space(*this);
    for (Index piece = first; piece < last; ++piece) {
      const auto [batch, kv_head] = place(piece / chunks_);
      Number* const sums = chunks_ > 1
                               ? partials + (piece - first_head * chunks_) * key_value_numbers()
                               : space.sums;
      space.d_key = {sums, p_.keys, 0};
      space.d_value = {sums + p_.keys * key_width_, p_.keys, 0};
      if constexpr (product) {
        if (key_in_place_) space.d_key = rows_in_place(call_.output.key, batch, kv_head);
      }
      if (value_in_place_) space.d_value = rows_in_place(call_.output.value, batch, kv_head);
      space.parameters = parameters + piece * parameters_.count();
      attend_back(space, batch, kv_head, piece % chunks_);
      if (chunks_ == 1) write_keys(sums, batch, kv_head, 0, p_.keys);
    }
  }

  void add_partials(Index first, Index last, const Number* partials, Index first_head = 0) const {
    for (Index item = first; item < last; ++item) {
      const Index head = item / runs_of_head(), from = item % runs_of_head() * run_keys;
      const auto [batch, kv_head] = place(head);
      write_keys(partials + (head - first_head) * chunks_ * key_value_numbers(), batch, kv_head,
                 from, std::min(run_keys, p_.keys - from));
    }
  }

  void add_parameters(const Number* parameters, Index all) const {
    parameters_.add(parameters, all);
  }

 private:
  /// Keys of a tile: as many as leave keys and values in an eighth of the second-level cache (60
  /// for 128 features and 512 KiB), within 24 .. 96 and a whole number of register tiles.
  Index tile_keys() const {
    const Index row = (key_width_ + value_width_) * static_cast<Index>(sizeof(Number));
    const Index keys = static_cast<Index>(Eigen::l2CacheSize()) / 8 / std::max<Index>(row, 1);
    return std::clamp<Index>(keys, 24, 96) / 12 * 12;
  }

  /// Heads of keys in the order in which gradients that they share are added to.
  std::pair<Index, Index> place(Index head) const {
    if (shared_.head && !shared_.batch) {
      return {p_.first_entry() + head % p_.entries(), head / p_.entries()};
    }
    return {p_.first_entry() + head / p_.kv_heads, head % p_.kv_heads};
  }

  /// Sums over pieces are taken so many keys at a time.
  static constexpr Index run_keys = 64;
  Index runs_of_head() const { return (p_.keys + run_keys - 1) / run_keys; }

  /// Whether the sums of a head's gradients are added up in the result itself: where its rows are
  /// whole vectors and follow one another (those that lie apart meet in few sets of the caches),
  /// and take little of the second-level cache, in which a buffer that all heads share stays.
  template <class Element>
  bool adds_in_place(const View<Element, 4>& result) const {
    return std::is_same_v<Element, Number> && chunks_ == 1 && result.strides[3] == 1 &&
           result.strides[2] == result.shape[3] && result.shape[3] % L::size == 0 &&
           key_value_numbers() * static_cast<Index>(sizeof(Number)) <=
               static_cast<Index>(Eigen::l2CacheSize()) / 8;
  }
  template <class Element>
  FeatureRows<Number> rows_in_place(const View<Element, 4>& result, Index batch, Index head) const {
    if constexpr (std::is_same_v<Element, Number>) {
      Number* const data = slab(result, batch, head).data;
      // New pages are asked for all at once: a fault amid the products costs them what they have
      // in the first-level cache.
      const Index numbers = p_.keys * result.shape[3];
      for (Index at = 0; at < numbers; at += 4096 / static_cast<Index>(sizeof(Number))) {
        static_cast<volatile Number*>(data)[at] = 0;
      }
      return {data, 1, result.strides[2]};
    } else {
      return {};
    }
  }

  /// Numbers of a key head's two gradients, with lanes over features.
  Index key_value_numbers() const { return p_.keys * (key_width_ + value_width_); }

  /// What a thread works in: about 200 KiB for 64 features and float lanes of 8, and the gradients
  /// of one key head's keys and values.
  struct Workspace {
    explicit Workspace(const Backward& b)
        : block(b.call_, b.tile_keys_),
          tile(b.call_, b.parameters_, b.tile_keys_),
          scratch([&](Layout& layout) {
            const Index keys = b.tile_keys_, pairs = keys * block_lanes;
            block.lay(layout);
            tile.lay(layout);
            weights = layout.take<Number>(pairs);
            d_scores = layout.take<Number>(pairs);
            mask_pairs = layout.take<Number>(HidesNothing<typename Call::Mask> ? 0 : pairs);
            key_copy = layout.take<Number>(b.key_rows_.in_place() ? 0 : keys * b.p_.key_dim);
            value_copy = layout.take<Number>(b.value_rows_.in_place() ? 0 : keys * b.p_.value_dim);
            key = layout.take<Number>(product ? 0 : b.key_width_ * keys);
            key_exp = layout.take<Number>(Block::tanh ? b.key_width_ * keys : 0);
            parameter = layout.take<Number>(product ? 0 : b.key_width_);
            unused_parameter = layout.take<Number>(product ? 0 : b.key_width_);
            const bool sums_wanted = b.chunks_ == 1 && !(b.key_in_place_ && b.value_in_place_);
            sums = layout.take<Number>(sums_wanted ? b.key_value_numbers() : 0);
          }) {
      block.start();
      if constexpr (!product) {
        std::fill(parameter, parameter + b.key_width_, Number(0));
        std::fill(unused_parameter, unused_parameter + b.key_width_, Number(0));
        for (Index c = 0; c < b.p_.key_dim; ++c) {
          parameter[c] = feature_parameter<Number>(b.call_.definition.similarity, c);
        }
      }
    }

    Block block;
    Tile tile;
    Number *weights, *d_scores, *mask_pairs;  // of a block and a tile
    Number *key_copy, *value_copy, *key, *key_exp, *parameter, *unused_parameter, *sums;
    FeatureRows<Number> d_key{}, d_value{};  // of the piece of work
    Number* parameters = nullptr;
    bool fresh = false;  // whether nothing has been added to d_key yet
    Scratch scratch;
  };

  /// One piece of work: all queries of a key head, or a run of their blocks.
  void attend_back(Workspace& space, Index batch, Index kv_head, Index chunk) const {
    space.fresh = true;
    for (Index head = kv_head * group_; head < (kv_head + 1) * group_; ++head) {
      // Forth and back through the blocks, as under a causal mask the later ones have more to do;
      // the last first, which sees the most keys and so begins the most sums.
      for (Index turn = (blocks_ - 1) / chunks_; turn >= 0; --turn) {
        const Index n = turn * chunks_ + (turn % 2 == 0 ? chunk : chunks_ - 1 - chunk);
        if (n >= blocks_) continue;
        block_back(space, batch, head, kv_head, n * vectors_ / blocks_ * L::size,
                   (n + 1) * vectors_ / blocks_ * L::size);
        space.fresh = false;
      }
    }
    if (space.fresh) clear_sums(space, 0, p_.keys);
  }

  /// Sums of keys that the first block adds nothing to.
  void clear_sums(Workspace& space, Index first, Index count) const {
    clear_features<KeyPanels>(space.d_key, p_.key_dim, first, count);
    clear_features<ValuePanels>(space.d_value, p_.value_dim, first, count);
  }

  void block_back(Workspace& space, Index batch, Index head, Index kv_head, Index first,
                  Index end) const {
    Block& block = space.block;
    block.open(batch, head, first, end);
    Index from = p_.keys, to = 0;
    for (Index n = 0; n < block.panel_count; ++n) {
      from = std::min(from, block.masks[n]->begin());
      to = std::max(to, block.masks[n]->end());
    }
    if (space.fresh) {
      clear_sums(space, 0, std::min(from, p_.keys));
      if (from < to) clear_sums(space, to, p_.keys - to);
    }
    for (Index k = from; k < to; k += tile_keys_) {
      tile_back(space, batch, kv_head, k, std::min(tile_keys_, to - k));
    }
    block.close(space.parameters);
  }

  void tile_back(Workspace& space, Index batch, Index kv_head, Index first, Index keys) const {
    Block& block = space.block;
    bool seen = false, partial = block.dead;
    for (Index n = 0; n < block.panel_count; ++n) {
      auto& mask = *block.masks[n];
      QueryPanel& panel = block.panels[n];
      const Coverage coverage =
          mask.tile(first, keys, space.mask_pairs + n * tile_keys_ * Block::panel_lanes);
      panel.keys = coverage == Coverage::empty ? 0 : std::clamp<Index>(mask.end() - first, 0, keys);
      seen = seen || coverage != Coverage::empty;
      partial = partial || coverage != Coverage::full;
    }
    if (!seen) {
      if (space.fresh) clear_sums(space, first, keys);
      return;
    }
    const auto k = key_rows_.get(batch, kv_head, first, keys, space.key_copy);
    const auto v = value_rows_.get(batch, kv_head, first, keys, space.value_copy);
    // Hidden pairs have a gradient of 0, but 0 times NaN or infinity is NaN.
    const bool by_pairs = partial && !(all_finite(k, keys, p_.key_dim) && block.finite());
    for (Index n = 0; n < block.panel_count; ++n) {
      const QueryPanel& panel = block.panels[n];
      if (panel.keys == 0) continue;
      block.key_scorer(n).take_keys(k, batch * p_.kv_heads + kv_head, first, panel.keys, p_.keys);
      with_vectors(panel.lanes / L::size, [&]<int Vectors>() {
        panel_back<Vectors>(space, n, k, v, first, keys, by_pairs);
      });
    }
    if (by_pairs) {
      if (space.fresh) clear_sums(space, first, keys);
      for (Index n = 0; n < block.panel_count; ++n) block.start_query(n);
      add_pairs(space, k, first, keys);
      return;
    }
    add_outer(block.panels, block.panel_count, space.weights, tile_keys_, keys, block.d_output,
              block_lanes, p_.value_dim, space.d_value, first, space.fresh);
    if constexpr (product) {
      add_outer(block.panels, block.panel_count, space.d_scores, tile_keys_, keys, block.query,
                block_lanes, p_.key_dim, space.d_key, first, space.fresh);
    } else {
      if (space.fresh) {
        clear_features<KeyPanels>(space.d_key, p_.key_dim, first, keys);
      }
      if constexpr (flat) return;
      pack_features<KeyPanels>(Slab<const Number>{k.data, k.stride, 1}, 0, keys, p_.key_dim,
                               tile_keys_, space.key);
      ScoreGradientTile<Number> tile{
          .panels = block.panels,
          .panel_count = block.panel_count,
          .gradients = space.d_scores,
          .gradient_capacity = tile_keys_,
          .keys = keys,
          .dim = p_.key_dim,
          .query = block.query,
          .key = space.key,
          .query_capacity = block_lanes,
          .key_capacity = tile_keys_,
          .parameter = space.parameter,
          .d_query = block.d_query,
          .d_key = space.d_key.at(first, 0, L::size),
          .d_parameter = trains_features ? space.parameters : space.unused_parameter,
          .d_key_capacity = p_.keys};
      if constexpr (Block::tanh) {
        if (block.exp_in_range &&
            double_exponentials(space.key, tile_keys_, keys, p_.key_dim, space.key_exp)) {
          tile.query = block.query_exp;
          tile.key = space.key_exp;
          return add_tanh_slopes(tile, trains_features);
        }
      }
      add_slopes(call_.definition.similarity, tile);
    }
  }

  /// P and dS of a panel and a tile, and, where the similarity is a product, dQ.
  template <int Vectors>
  EIGEN_DONT_INLINE void panel_back(Workspace& space, Index n, const Rows<Number>& key,
                                    const Rows<Number>& value, Index first, Index keys,
                                    bool by_pairs) const {
    constexpr Index lanes = Vectors * L::size;
    Block& block = space.block;
    const QueryPanel& panel = block.panels[n];
    Number* weights = space.weights + panel.first * tile_keys_;
    Number* d_scores = space.d_scores + panel.first * tile_keys_;
    alignas(64) Number largest[length(lanes)] = {};  // not looked at
    block.key_scorer(n).template score<Vectors>(key, 0, panel.keys, weights, largest);
    block.value_scorer(n).template score<Vectors>(value, 0, panel.keys, d_scores, largest);

    const ScoreTile<Number, Vectors> tile{.scores = weights,
                                          .batch = block.batch,
                                          .head = block.head,
                                          .query = block.first + panel.first,
                                          .queries = panel.count,
                                          .key = first,
                                          .keys = panel.keys};
    ScoreTile<Number, Vectors> gradients = tile;
    gradients.scores = d_scores;
    space.tile.run(block, n, tile, gradients, key, space.parameters);
    // Keys that the panel sees none of, but others do.
    std::fill(weights + panel.keys * lanes, weights + keys * lanes, Number(0));
    std::fill(d_scores + panel.keys * lanes, d_scores + keys * lanes, Number(0));
    if constexpr (product) {
      if (by_pairs) return;
      alignas(64) Number ones[length(lanes)];
      std::fill(ones, ones + lanes, Number(1));
      add_product<Vectors>(d_scores, key, panel.keys, p_.key_dim,
                           block.add_to_query(n) ? ones : nullptr,
                           block.d_query + panel.first * p_.key_dim);
    }
  }

  /// The products of a tile pair by pair, over pairs that are seen only.
  EIGEN_DONT_INLINE void add_pairs(Workspace& space, const Rows<Number>& key, Index first,
                                   Index keys) const {
    const Block& block = space.block;
    for (Index n = 0; n < block.panel_count; ++n) {
      const QueryPanel& panel = block.panels[n];
      const auto& mask = *block.masks[n];
      for (Index j = 0; j < std::min(keys, panel.keys); ++j) {
        const bool clear = mask.clear_begin() <= j && j < mask.clear_end();
        for (Index lane = 0; lane < panel.count; ++lane) {
          if (block.alive[panel.first + lane] == 0 || !(clear || mask.visible_to(j, lane)))
            continue;
          const Index at = panel.first * tile_keys_ + j * panel.lanes + lane;
          add_pair(space, panel, lane, key[j], first + j, space.weights[at], space.d_scores[at]);
        }
      }
    }
  }

  void add_pair(Workspace& space, const QueryPanel& panel, Index lane, const Number* key, Index j,
                Number weight, Number d_score) const {
    const Block& block = space.block;
    const Index i = panel.first + lane;
    for (Index c = 0; c < p_.value_dim; ++c) {
      feature<ValuePanels>(space.d_value, p_.value_dim, j, c) +=
          weight * block.d_output[block.value_offset(i, c)];
    }
    if constexpr (flat) return;
    for (Index c = 0; c < p_.key_dim; ++c) {
      const Number q = block.query[block.key_offset(i, c)];
      Number& dk = feature<KeyPanels>(space.d_key, p_.key_dim, j, c);
      if constexpr (product) {
        dk += d_score * q;
        block.d_query[panel.first * p_.key_dim + c * panel.lanes + lane] += d_score * key[c];
      } else {
        if (d_score == 0) continue;
        const auto slopes =
            term_slopes(call_.definition.similarity, q, key[c], space.parameter[c], c, 1);
        dk += d_score * slopes.key;
        block.d_query[block.key_offset(i, c)] += d_score * slopes.query;
        if constexpr (trains_features) space.parameters[c] += d_score * slopes.parameter;
      }
    }
  }

  /// The sums that were not added up in the results themselves.
  void write_keys(const Number* from, Index batch, Index kv_head, Index first, Index count) const {
    const Index distance = key_value_numbers();
    if (!key_in_place_) {
      unpack_features<KeyPanels>(from, chunks_, distance, p_.keys, p_.key_dim,
                                 slab(call_.output.key, batch, kv_head), first, count, first);
    }
    if (!value_in_place_) {
      unpack_features<ValuePanels>(from + p_.keys * key_width_, chunks_, distance, p_.keys,
                                   p_.value_dim, slab(call_.output.value, batch, kv_head), first,
                                   count, first);
    }
  }

  const Problem& p_;
  const Call& call_;
  ParameterGradients<Number, Score> parameters_;
  ScoreAxes shared_;
  SourceRows<Number, typename Call::Keys> key_rows_;
  SourceRows<Number, typename Call::Values> value_rows_;
  Index group_, vectors_, blocks_, chunks_;
  Index key_width_, value_width_;  // features rounded up to whole vectors
  Index tile_keys_;
  bool key_in_place_ = false, value_in_place_ = false;
};

}  // namespace heed::detail
