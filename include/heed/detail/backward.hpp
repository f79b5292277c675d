#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "heed/detail/additive_scorer.hpp"
#include "heed/detail/features.hpp"
#include "heed/detail/masking.hpp"
#include "heed/detail/math.hpp"
#include "heed/detail/modify.hpp"
#include "heed/detail/pack.hpp"
#include "heed/detail/parallel.hpp"
#include "heed/detail/policy.hpp"
#include "heed/detail/problem.hpp"
#include "heed/detail/scorer.hpp"
#include "heed/detail/slopes.hpp"
#include "heed/detail/tile.hpp"

namespace heed::detail {

/// The similarity of every matrix product.
template <class Accumulator>
struct Product {
  static constexpr bool one_instruction = true;
  Accumulator query_factor;
  template <class T>
  EIGEN_ALWAYS_INLINE T step(const T& sum, const T& q, const T& k, Index) const {
    return multiply_add(q, k, sum);
  }
  template <class T>
  EIGEN_ALWAYS_INLINE T finish(const T& sum) const {
    return sum;
  }
};

/// A similarity that stops at the sum of its terms, where the slope of the rest is taken.
template <class Similarity>
struct Sums : Similarity {
  template <class T>
  EIGEN_ALWAYS_INLINE T finish(const T& sum) const {
    return sum;
  }
};

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
/// See MaterialisedBackward for the mathematics.
template <class Accumulator, class In, class Pass, class Score, class BoundMask,
          class DropoutPolicy, class Gradients>
class Backward {
  using L = Lanes<Accumulator>;
  using Similarity = typename Score::Similarity;
  using Modifiers = decltype(Score::modifiers);
  static constexpr bool product = Similarity::one_instruction;
  static constexpr bool flat = requires(const Similarity& s) { s.flat; };
  static constexpr bool transforms = requires(const Similarity& s) { s.transform; };
  static constexpr bool by_feature = requires(const Similarity& s) { s.parameter(0); };
  static constexpr bool tanh = SumOfTanh<Similarity>;
  using KeySimilarity =
      std::conditional_t<product, Product<Accumulator>,
                         Sums<std::conditional_t<product, Product<Accumulator>, Similarity>>>;
  using Mask = PanelMask<BoundMask, Accumulator, Panels<Accumulator>::widest>;
  static constexpr bool hides = !HidesNothing<BoundMask>;

  /// Queries of a block: the sums over them stay in registers, so the more the better, as long as a
  /// tile of their P fits the first-level cache beside a panel of dO: 96 float lanes of 8, and 48
  /// keys, are 18 KiB + 9 KiB.
  static constexpr Index block_vectors = 12;
  static constexpr Index block_lanes = block_vectors * L::size;
  static constexpr Index panel_lanes = Panels<Accumulator>::widest * L::size;
  static constexpr Index block_panels = block_vectors / Panels<Accumulator>::widest;

 public:
  Backward(const Problem& problem, const In& in, const Pass& pass, const Score& score,
           const BoundMask& mask, const DropoutPolicy& dropout, const Gradients& gradients)
      : p_(problem),
        in_(in),
        pass_(pass),
        score_(score),
        mask_(mask),
        dropout_(dropout),
        gradients_(gradients),
        key_similarity_(key_similarity(score.similarity)),
        key_in_place_(readable_in_place<Accumulator>(in.key)),
        value_in_place_(readable_in_place<Accumulator>(in.value)),
        group_(problem.kv_heads == 0 ? 0 : problem.heads / problem.kv_heads),
        vectors_((problem.queries + L::size - 1) / L::size),
        blocks_((vectors_ + block_vectors - 1) / block_vectors),
        key_width_(padded<Accumulator>(problem.key_dim)),
        value_width_(padded<Accumulator>(problem.value_dim)),
        tile_keys_(std::min(tile_keys(), problem.keys)) {
    find_shared_biases();
    const Index heads = (batch_shared_ ? 1 : p_.batch) * (head_shared_ ? 1 : p_.kv_heads);
    // An even number, so that two pieces of work are equal; a piece has four blocks or more, or is
    // one of two, as each has sums of its own to be added up.
    if (blocks_ >= 4) blocks_ += blocks_ % 2;
    const auto pieces =
        std::bit_floor(static_cast<std::size_t>(std::max<Index>(blocks_ / 4, blocks_ < 4 ? 1 : 2)));
    chunks_ = query_shared_ ? 1
                            : std::clamp<Index>(static_cast<Index>(pieces), 1,
                                                std::max<Index>(1, 8 / std::max<Index>(1, heads)));
  }

  void run(Eigen::ThreadPoolInterface* pool) const {
    // Gradients that several heads add to have one of them at a time.
    const Index rounds = (batch_shared_ ? p_.batch : 1) * (head_shared_ ? p_.kv_heads : 1);
    const Index heads = p_.batch * p_.kv_heads / std::max<Index>(rounds, 1);
    const Index all = p_.batch * p_.kv_heads * chunks_, partial = key_value_numbers();
    Scratch scratch(Scratch::bytes<Accumulator>(all * parameter_numbers()) +
                    Scratch::bytes<Accumulator>(chunks_ > 1 ? heads * chunks_ * partial : 0));
    Accumulator* parameters = scratch.take<Accumulator>(all * parameter_numbers());
    Accumulator* partials = scratch.take<Accumulator>(chunks_ > 1 ? heads * chunks_ * partial : 0);
    std::fill(parameters, parameters + all * parameter_numbers(), Accumulator(0));
    for (Index round = 0; round < rounds; ++round) {
      const auto place = [&](Index head) -> std::pair<Index, Index> {
        if (batch_shared_ && head_shared_) return {round / p_.kv_heads, round % p_.kv_heads};
        if (batch_shared_) return {round, head};
        if (head_shared_) return {head, round};
        return {head / p_.kv_heads, head % p_.kv_heads};
      };
      parallel_for(pool, heads * chunks_, [&](Index first, Index last) {
        Workspace space(*this);
        for (Index item = first; item < last; ++item) {
          const Index head = item / chunks_, chunk = item % chunks_;
          const auto [batch, kv_head] = place(head);
          space.d_key = chunks_ > 1 ? partials + (head * chunks_ + chunk) * partial : space.sums;
          space.d_value = space.d_key + p_.keys * key_width_;
          space.parameters = parameters + ((batch * p_.kv_heads + kv_head) * chunks_ + chunk) *
                                              parameter_numbers();
          attend_back(space, batch, kv_head, chunk);
          if (chunks_ == 1) write_keys(space.d_key, batch, kv_head, 0, p_.keys);
        }
      });
      if (chunks_ == 1) continue;
      constexpr Index run = 64;
      const Index runs = (p_.keys + run - 1) / run;
      parallel_for(pool, heads * runs, [&](Index first, Index last) {
        for (Index item = first; item < last; ++item) {
          const auto [batch, kv_head] = place(item / runs);
          const Index from = item % runs * run;
          write_keys(partials + item / runs * chunks_ * partial, batch, kv_head, from,
                     std::min(run, p_.keys - from));
        }
      });
    }
    add_parameters(parameters, all);
  }

 private:
  using KeyScorer = Scorer<Accumulator, KeySimilarity>;
  using ValueScorer = Scorer<Accumulator, Product<Accumulator>>;
  using KeyPanels = std::conditional_t<product, Panels<Accumulator>, SingleVectors<Accumulator>>;
  using ValuePanels = Panels<Accumulator>;
  static constexpr std::size_t modifiers = std::tuple_size_v<Modifiers>;
  static constexpr bool trains_features = Trained<Similarity> && by_feature;
  static constexpr bool trains_width = Trained<Similarity> && !by_feature && !transforms;

  /// Keys of a tile: as many as leave keys and values in an eighth of the second-level cache (60
  /// for 128 features and 512 KiB), within 24 .. 96 and a whole number of register tiles.
  Index tile_keys() const {
    const Index row = (key_width_ + value_width_) * static_cast<Index>(sizeof(Accumulator));
    const Index keys = static_cast<Index>(Eigen::l2CacheSize()) / 8 / std::max<Index>(row, 1);
    return std::clamp<Index>(keys, 24, 96) / 12 * 12;
  }

  static KeySimilarity key_similarity(const Similarity& similarity) {
    if constexpr (product) {
      return {transforms ? Accumulator(1) : similarity.query_factor};
    } else {
      return {similarity};
    }
  }

  /// Numbers of a key head's two gradients, with lanes over features.
  Index key_value_numbers() const { return p_.keys * (key_width_ + value_width_); }

  /// Numbers that a piece of work adds up for parameters: the similarity's, then those of alibi.
  Index similarity_numbers() const {
    if constexpr (!Trained<Similarity>) return 0;
    return transforms ? p_.query_dim * key_width_ : by_feature ? key_width_ : 1;
  }
  Index parameter_numbers() const {
    return similarity_numbers() +
           (any_trained<Modifiers> ? static_cast<Index>(modifiers) * p_.heads : 0);
  }

  /// A gradient of bias that repeats over an axis is added to by all of that axis.
  void find_shared_biases() {
    const auto look = [this](const auto& modifier) {
      if constexpr (Trained<std::remove_cvref_t<decltype(modifier)>> &&
                    requires { modifier.added; }) {
        const auto& shape = modifier.gradient.shape;
        batch_shared_ = batch_shared_ || (shape[0] == 1 && p_.batch > 1);
        head_shared_ = head_shared_ || (shape[1] == 1 && p_.kv_heads > 1);
        query_shared_ = query_shared_ || (shape[2] == 1 && p_.queries > 1);
      }
    };
    std::apply([&](const auto&... modifier) { (look(modifier), ...); }, score_.modifiers);
  }

  /// What a thread works in: about 200 KiB for 64 features and float lanes of 8, and the gradients
  /// of one key head's keys and values.
  struct Workspace {
    explicit Workspace(const Backward& b)
        : scratch(bytes(b)),
          key_scorers(scorers<KeyScorer>(b, b.key_similarity_, b.p_.key_dim)),
          value_scorers(scorers<ValueScorer>(b, b.value_similarity_, b.p_.value_dim)) {
      for_each_buffer(b, [this](Accumulator*& buffer, Index count) {
        buffer = scratch.take<Accumulator>(count);
      });
    }

    /// Every buffer with the numbers it needs.
    void for_each_buffer(const Backward& b, const auto& body) {
      const Index keys = b.tile_keys_, pairs = keys * block_lanes;
      body(weights, pairs);
      body(slopes, pairs);
      body(scores, product ? 0 : keys * panel_lanes);
      body(modifier_slopes, static_cast<Index>(modifiers) * keys * panel_lanes);
      body(keeps, b.dropout_.active() ? keys * panel_lanes : 0);
      body(mask_pairs, hides ? pairs : 0);
      body(query, b.key_width_ * block_lanes);
      body(d_output, b.value_width_ * block_lanes);
      body(d_query, b.key_width_ * block_lanes);
      body(key_copy, b.key_in_place_ ? 0 : keys * b.p_.key_dim);
      body(value_copy, b.value_in_place_ ? 0 : keys * b.p_.value_dim);
      body(key, product ? 0 : b.key_width_ * keys);
      body(query_exp, tanh ? b.key_width_ * block_lanes : 0);
      body(key_exp, tanh ? b.key_width_ * keys : 0);
      body(parameter, product ? 0 : b.key_width_);
      body(unused_parameter, product ? 0 : b.key_width_);
      const Index query_dim = transforms ? b.p_.query_dim : 0;
      body(raw_query, query_dim * block_lanes);
      body(matrix, query_dim * b.p_.key_dim);
      body(matrix_transposed, query_dim * b.p_.key_dim);
      body(rows, transforms ? block_lanes * b.p_.key_dim : 0);
      body(raw_d_query, query_dim * panel_lanes);
      body(sums, b.chunks_ > 1 ? 0 : b.key_value_numbers());
    }
    std::size_t bytes(const Backward& b) {
      std::size_t total =
          block_panels *
          (KeyScorer::bytes(b.p_.key_dim, b.p_.key_dim, panel_lanes, b.tile_keys_) +
           ValueScorer::bytes(b.p_.value_dim, b.p_.value_dim, panel_lanes, b.tile_keys_));
      for_each_buffer(
          b, [&total](Accumulator*&, Index count) { total += Scratch::bytes<Accumulator>(count); });
      return total;
    }
    template <class S, class Similar>
    std::array<S, block_panels> scorers(const Backward& b, const Similar& similarity, Index dim) {
      return [&]<std::size_t... n>(std::index_sequence<n...>) {
        return std::array<S, block_panels>{
            (static_cast<void>(n), S(similarity, dim, dim, panel_lanes, b.tile_keys_, scratch))...};
      }
      (std::make_index_sequence<static_cast<std::size_t>(block_panels)>());
    }

    Scratch scratch;
    std::array<KeyScorer, block_panels> key_scorers;
    std::array<ValueScorer, block_panels> value_scorers;
    Accumulator *weights, *slopes, *scores, *modifier_slopes, *keeps, *mask_pairs;
    Accumulator *query, *d_output, *d_query, *key_copy, *value_copy, *key, *parameter, *query_exp,
        *key_exp;
    Accumulator *unused_parameter, *raw_query, *matrix, *matrix_transposed, *rows, *raw_d_query,
        *sums;
    Accumulator *d_key, *d_value, *parameters;  // of the piece of work
    bool fresh = false;                         // whether nothing has been added to d_key yet
  };

  /// A block of queries of one head, and what its lanes have.
  struct Block {
    Index batch, head, first, count, panel_count;
    std::array<QueryPanel, block_panels> panels;
    alignas(64) Accumulator log_sum_exp[block_lanes];  // infinity where a lane is idle
    alignas(64) Accumulator delta[block_lanes];
    alignas(64) Accumulator alive[block_lanes];  // 1, or 0 for queries without keys and no queries
    bool started[block_panels] = {};             // whether the panel's dQ is
    bool idle[block_panels];                     // whether a lane of the panel is
    bool dead = false;                           // whether a query is
    bool tame = false;                           // whether query_exp can be used
    std::optional<bool> finite;                  // queries and dO, once asked for
    std::optional<Mask> masks[block_panels];
  };

  /// One piece of work: all queries of a key head, or a run of their blocks.
  void attend_back(Workspace& space, Index batch, Index kv_head, Index chunk) const {
    space.fresh = true;
    prepare_parameters(space);
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
    clear_features<KeyPanels>(space.d_key, p_.keys, p_.key_dim, first, count);
    clear_features<ValuePanels>(space.d_value, p_.keys, p_.value_dim, first, count);
  }

  void prepare_parameters(Workspace& space) const {
    const auto& similarity = score_.similarity;
    if constexpr (transforms) {
      for (Index r = 0; r < p_.query_dim; ++r) {
        for (Index c = 0; c < p_.key_dim; ++c) {
          const auto x = static_cast<Accumulator>(similarity.transform(r, c));
          space.matrix[r * p_.key_dim + c] = space.matrix_transposed[c * p_.query_dim + r] = x;
        }
      }
    } else if constexpr (!product) {
      std::fill(space.parameter, space.parameter + key_width_, Accumulator(0));
      if constexpr (by_feature) {
        for (Index h = 0; h < p_.key_dim; ++h) space.parameter[h] = similarity.parameter(h);
      }
    }
  }

  /// Calls body.template operator()<Vectors>() for the width of a panel.
  static void with_vectors(Index lanes, const auto& body) {
    switch (lanes / L::size) {
      case 1:
        body.template operator()<1>();
        break;
      case 2:
        body.template operator()<2>();
        break;
      default:
        body.template operator()<3>();
    }
  }

  void block_back(Workspace& space, Index batch, Index head, Index kv_head, Index first,
                  Index end) const {
    Block block;
    open_block(space, block, batch, head, first, end);
    const auto key = slab(in_.key, batch, kv_head);
    const auto value = slab(in_.value, batch, kv_head);
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
      tile_back(space, block, key, value, k, std::min(tile_keys_, to - k));
    }
    close_block(space, block);
  }

  void open_block(Workspace& space, Block& block, Index batch, Index head, Index first,
                  Index end) const {
    block.batch = batch;
    block.head = head;
    block.first = first;
    block.count = std::min(end, p_.queries) - first;
    const Panels<Accumulator> panels(end - first);
    block.panel_count = panels.count;
    const auto query = slab(in_.query, batch, head);
    const auto d_output = slab(pass_.grad_output, batch, head);
    const auto output = slab(pass_.output, batch, head);

    if constexpr (!product) {
      std::fill(space.d_query, space.d_query + key_width_ * block_lanes, Accumulator(0));
    }
    pack_features<ValuePanels>(d_output, first, block.count, p_.value_dim, block_lanes,
                               space.d_output);
    if constexpr (!transforms) {
      pack_features<KeyPanels>(query, first, block.count, p_.key_dim, block_lanes, space.query,
                               Accumulator(score_.similarity.query_factor));
    }
    for (Index n = 0; n < panels.count; ++n) {
      const auto [start, vectors] = panels[n];
      const Index lanes = vectors * L::size, at = first + start;
      const Index count = std::min(lanes, block.count - start);
      block.panels[static_cast<std::size_t>(n)] = {start, lanes, count, p_.keys};
      block.idle[n] = false;
      for (Index lane = start; lane < start + lanes; ++lane) {
        const bool query_there = lane < block.count;
        const auto lse =
            query_there ? static_cast<Accumulator>(pass_.log_sum_exp(batch, head, first + lane))
                        : -std::numeric_limits<Accumulator>::infinity();
        const bool alive = lse != -std::numeric_limits<Accumulator>::infinity();
        block.idle[n] = block.idle[n] || !alive;
        block.dead = block.dead || (query_there && !alive);
        block.log_sum_exp[lane] = alive ? lse : std::numeric_limits<Accumulator>::infinity();
        block.delta[lane] = alive ? row_dot(d_output, output, first + lane) : Accumulator(0);
        block.alive[lane] = alive;
      }
      block.masks[n].emplace(mask_, batch, head, at, count, p_.keys);
      with_vectors(lanes, [&]<int Vectors>() {
        const auto s = static_cast<std::size_t>(n);
        space.value_scorers[s].template pack<Vectors>(d_output, at, count);
        if constexpr (transforms) {
          transform_queries<Vectors>(space, block, block.panels[s], s);
        } else {
          space.key_scorers[s].template pack<Vectors>(query, at, count);
        }
      });
    }
    if constexpr (transforms) {
      const Slab<const Accumulator> rows{space.rows, p_.key_dim, 1};
      pack_features<KeyPanels>(rows, 0, block.count, p_.key_dim, block_lanes, space.query);
    }
    for (Index n = 0; n < panels.count && block.dead; ++n) {
      // Nothing of a query without keys may reach a sum, whatever it holds.
      const QueryPanel& panel = block.panels[static_cast<std::size_t>(n)];
      for (Index lane = panel.first; lane < panel.first + panel.count; ++lane) {
        if (block.alive[lane] != 0) continue;
        for (Index c = 0; c < p_.key_dim; ++c) space.query[key_offset(lane, c)] = 0;
        for (Index c = 0; c < p_.value_dim; ++c) space.d_output[value_offset(lane, c)] = 0;
        if constexpr (transforms) {
          for (Index r = 0; r < p_.query_dim; ++r) {
            space.raw_query[panel.first * p_.query_dim + r * panel.lanes + lane - panel.first] = 0;
          }
        }
      }
    }
    if constexpr (tanh) {
      block.tame =
          double_exponentials(space.query, block_lanes, block.count, p_.key_dim, space.query_exp);
    }
  }

  /// sum over c of a(row, c) b(row, c).
  template <class A, class B>
  Accumulator row_dot(const Slab<const A>& a, const Slab<const B>& b, Index row) const {
    Accumulator sum = 0;
    Index c = 0;
    if (a.column_stride == 1 && b.column_stride == 1) {
      L sums(0);
      for (; c + L::size <= p_.value_dim; c += L::size) {
        sums =
            fma(load_widened<Accumulator>(&a(row, c)), load_widened<Accumulator>(&b(row, c)), sums);
      }
      alignas(64) Accumulator lanes[L::size];
      sums.store(lanes);
      for (Accumulator lane : lanes) sum += lane;
    }
    for (; c < p_.value_dim; ++c) {
      sum += static_cast<Accumulator>(a(row, c)) * static_cast<Accumulator>(b(row, c));
    }
    return sum;
  }

  /// q M, to lanes over queries in the scorer and to rows.
  template <int Vectors>
  void transform_queries(Workspace& space, const Block& block, const QueryPanel& panel,
                         std::size_t n) const {
    constexpr Index lanes = Vectors * L::size;
    Accumulator* raw = space.raw_query + panel.first * p_.query_dim;
    pack_lanes(slab(in_.query, block.batch, block.head), block.first + panel.first, panel.count,
               p_.query_dim, lanes, raw);
    Accumulator* transformed = space.d_query + panel.first * p_.key_dim;  // not in use yet
    add_product<Vectors>(raw, Rows<Accumulator>{space.matrix, p_.key_dim}, p_.query_dim, p_.key_dim,
                         static_cast<const Accumulator*>(nullptr), transformed);
    Accumulator factor[lanes];
    std::fill(factor, factor + lanes, score_.similarity.query_factor);
    const Slab<Accumulator> rows{space.rows, p_.key_dim, 1};
    unpack_lanes(transformed, factor, lanes, panel.count, p_.key_dim, rows, panel.first);
    const Slab<const Accumulator> packed{space.rows, p_.key_dim, 1};
    space.key_scorers[n].template pack<Vectors>(packed, panel.first, panel.count);
  }

  /// dQ of a panel that no tile has written begins at 0.
  void start_query(Workspace& space, Block& block, Index n) const {
    const QueryPanel& panel = block.panels[static_cast<std::size_t>(n)];
    Accumulator* d_query = space.d_query + panel.first * p_.key_dim;
    if (product && !std::exchange(block.started[n], true)) {
      std::fill(d_query, d_query + panel.lanes * p_.key_dim, Accumulator(0));
    }
  }

  void tile_back(Workspace& space, Block& block, const auto& key, const auto& value, Index first,
                 Index keys) const {
    bool seen = false, partial = block.dead;
    for (Index n = 0; n < block.panel_count; ++n) {
      Mask& mask = *block.masks[n];
      QueryPanel& panel = block.panels[static_cast<std::size_t>(n)];
      const Coverage coverage =
          mask.tile(first, keys, space.mask_pairs + n * tile_keys_ * panel_lanes);
      panel.keys = coverage == Coverage::empty ? 0 : std::clamp<Index>(mask.end() - first, 0, keys);
      seen = seen || coverage != Coverage::empty;
      partial = partial || coverage != Coverage::full;
    }
    if (!seen) {
      if (space.fresh) clear_sums(space, first, keys);
      return;
    }
    const auto k =
        rows_of<Accumulator>(key, first, keys, p_.key_dim, key_in_place_, space.key_copy);
    const auto v =
        rows_of<Accumulator>(value, first, keys, p_.value_dim, value_in_place_, space.value_copy);
    // Hidden pairs have a gradient of 0, but 0 times NaN or infinity is NaN.
    const bool by_pairs = partial && !(all_finite(k, keys, p_.key_dim) && finite(space, block));
    for (Index n = 0; n < block.panel_count; ++n) {
      if (block.panels[static_cast<std::size_t>(n)].keys == 0) continue;
      with_vectors(block.panels[static_cast<std::size_t>(n)].lanes, [&]<int Vectors>() {
        space.key_scorers[static_cast<std::size_t>(n)].take_keys(
            k, key.data, first, block.panels[static_cast<std::size_t>(n)].keys, p_.keys);
        panel_back<Vectors>(space, block, n, k, v, first, keys, by_pairs);
      });
    }
    if (by_pairs) {
      if (space.fresh) clear_sums(space, first, keys);
      for (Index n = 0; n < block.panel_count; ++n) start_query(space, block, n);
      add_pairs(space, block, k, first, keys);
      return;
    }
    add_outer(block.panels.data(), block.panel_count, space.weights, tile_keys_, keys,
              space.d_output, block_lanes, p_.value_dim, space.d_value, p_.keys, first,
              space.fresh);
    if constexpr (product) {
      add_outer(block.panels.data(), block.panel_count, space.slopes, tile_keys_, keys, space.query,
                block_lanes, p_.key_dim, space.d_key, p_.keys, first, space.fresh);
    } else {
      if (space.fresh) {
        clear_features<KeyPanels>(space.d_key, p_.keys, p_.key_dim, first, keys);
      }
      if constexpr (flat) return;
      pack_features<KeyPanels>(Slab<const Accumulator>{k.data, k.stride, 1}, 0, keys, p_.key_dim,
                               tile_keys_, space.key);
      SlopeTile<Accumulator> tile{block.panels.data(),
                                  block.panel_count,
                                  space.slopes,
                                  tile_keys_,
                                  keys,
                                  p_.key_dim,
                                  space.query,
                                  space.key,
                                  block_lanes,
                                  tile_keys_,
                                  space.parameter,
                                  space.d_query,
                                  space.d_key + first * L::size,
                                  trains_features ? space.parameters : space.unused_parameter,
                                  p_.keys};
      if constexpr (tanh) {
        if (block.tame &&
            double_exponentials(space.key, tile_keys_, keys, p_.key_dim, space.key_exp)) {
          tile.query = space.query_exp;
          tile.key = space.key_exp;
          return add_tanh_slopes(tile, trains_features);
        }
      }
      add_slopes(score_.similarity, tile);
    }
  }

  /// P and dS of a panel and a tile, and, where the similarity is a product, dQ.
  template <int Vectors>
  EIGEN_DONT_INLINE void panel_back(Workspace& space, Block& block, Index n,
                                    const Rows<Accumulator>& key, const Rows<Accumulator>& value,
                                    Index first, Index keys, bool by_pairs) const {
    constexpr Index lanes = Vectors * L::size;
    const auto s = static_cast<std::size_t>(n);
    const QueryPanel& panel = block.panels[s];
    Accumulator* weights = space.weights + panel.first * tile_keys_;
    Accumulator* slopes = space.slopes + panel.first * tile_keys_;
    alignas(64) Accumulator largest[lanes] = {};  // not looked at
    space.key_scorers[s].template score<Vectors>(key, 0, panel.keys, weights, largest);
    space.value_scorers[s].template score<Vectors>(value, 0, panel.keys, slopes, largest);

    const ScoreTile<Accumulator, Vectors> tile{
        weights,     block.batch, block.head, block.first + panel.first,
        panel.count, first,       panel.keys};
    ScoreTile<Accumulator, Vectors> gradients = tile;
    gradients.scores = slopes;
    if constexpr (!product) finish_scores(tile, space.scores);
    modify(space, tile);
    if (dropout_.active()) drop(space, tile, slopes);
    softmax_back(space, block, n, tile, slopes, key);
    modify_back(space, gradients);
    if constexpr (!product && !flat) finish_back(space, gradients);
    // Keys that the panel sees none of, but others do.
    std::fill(weights + panel.keys * lanes, weights + keys * lanes, Accumulator(0));
    std::fill(slopes + panel.keys * lanes, slopes + keys * lanes, Accumulator(0));
    if constexpr (product) {
      if (by_pairs) return;
      alignas(64) Accumulator ones[lanes];
      std::fill(ones, ones + lanes, Accumulator(1));
      add_product<Vectors>(slopes, key, panel.keys, p_.key_dim,
                           std::exchange(block.started[n], true) ? ones : nullptr,
                           space.d_query + panel.first * p_.key_dim);
    }
  }

  /// Keeps the sums of terms and turns them into scores.
  template <int Vectors>
  EIGEN_DONT_INLINE void finish_scores(const ScoreTile<Accumulator, Vectors>& tile,
                                       Accumulator* sums) const {
    for (Index at = 0; at < tile.keys * tile.lanes; at += L::size) {
      const L sum = L::load(tile.scores + at);
      sum.store(sums + at);
      score_.similarity.finish(sum).store(tile.scores + at);
    }
  }

  template <int Vectors>
  EIGEN_DONT_INLINE void finish_back(Workspace& space,
                                     const ScoreTile<Accumulator, Vectors>& gradients) const {
    [[maybe_unused]] L by_width(0);
    for (Index at = 0; at < gradients.keys * gradients.lanes; at += L::size) {
      const L sum = L::load(space.scores + at), g = L::load(gradients.scores + at);
      const auto hidden = g == L(0);
      if constexpr (trains_width) {
        by_width += select(hidden, L(0), g * score_.similarity.width_slope(sum));
      }
      select(hidden, L(0), g * score_.similarity.finish_slope(sum)).store(gradients.scores + at);
    }
    if constexpr (trains_width) {
      alignas(64) Accumulator sums[L::size];
      by_width.store(sums);
      for (Accumulator sum : sums) *space.parameters += sum;
    }
  }

  template <int Vectors>
  void modify(Workspace& space, const ScoreTile<Accumulator, Vectors>& tile) const {
    Accumulator* slopes = space.modifier_slopes;
    std::apply(
        [&](const auto&... modifier) {
          ((differentiate_modifier(tile, modifier, slopes), slopes += tile_keys_ * panel_lanes),
           ...);
        },
        score_.modifiers);
  }

  template <int Vectors, std::size_t m = modifiers>
  void modify_back(Workspace& space, const ScoreTile<Accumulator, Vectors>& gradients) const {
    if constexpr (m > 0) {
      const auto& modifier = std::get<m - 1>(score_.modifiers);
      if constexpr (!requires { modifier.shifts; }) {
        multiply_slopes(gradients, space.modifier_slopes +
                                       static_cast<Index>(m - 1) * tile_keys_ * panel_lanes);
      } else if constexpr (Trained<std::remove_cvref_t<decltype(modifier)>>) {
        if constexpr (requires { modifier.added; }) {
          add_bias_gradient(gradients, modifier.gradient);
        } else {
          space.parameters[similarity_numbers() + static_cast<Index>(m - 1) * p_.heads +
                           gradients.head] += distance_sum(gradients);
        }
      }
      modify_back<Vectors, m - 1>(space, gradients);
    }
  }

  /// keep_ij, and dP_ij keep_ij in place of dP_ij.
  template <int Vectors>
  EIGEN_DONT_INLINE void drop(Workspace& space, const ScoreTile<Accumulator, Vectors>& tile,
                              Accumulator* slopes) const {
    const auto scale = static_cast<Accumulator>(dropout_.scale());
    for (Index lane = 0; lane < tile.lanes; ++lane) {
      const auto row = dropout_.row(tile.batch, tile.head, tile.query + lane);
      for (Index j = 0; j < tile.keys; ++j) {
        const Index at = j * tile.lanes + lane;
        const bool kept = dropout_.keeps(row, tile.key + j);
        space.keeps[at] = kept ? scale : Accumulator(0);
        slopes[at] = kept ? slopes[at] * scale : Accumulator(0);
      }
    }
  }

  /// Scores become P keep, dP becomes dS.
  template <int Vectors>
  void softmax_back(Workspace& space, const Block& block, Index n,
                    const ScoreTile<Accumulator, Vectors>& tile, Accumulator* slopes,
                    const Rows<Accumulator>& key) const {
    const QueryPanel& panel = block.panels[static_cast<std::size_t>(n)];
    const Mask& mask = *block.masks[n];
    const auto go = [&](Index begin, Index end, const auto& seen) {
      softmax_rows(block, panel, tile, slopes, dropout_.active() ? space.keeps : nullptr, begin,
                   end, seen, key, p_.key_dim);
    };
    const auto visible = [&](Index j, int v, L x) __attribute__((always_inline)) {
      const auto alive = L::load(block.alive + panel.first + v * L::size) > L(0);
      const bool clear = mask.clear_begin() <= j && j < mask.clear_end();
      return select(clear ? alive : alive & mask.visible(j, v), x, L(0));
    };
    // Keys that every query sees need no look at the mask, unless a lane is idle.
    Index clear_begin = std::min(mask.clear_begin(), tile.keys), clear_end = clear_begin;
    if (!block.idle[n]) {
      clear_end = std::clamp(mask.clear_end(), clear_begin, tile.keys);
      go(
          clear_begin, clear_end, [](Index, int, L x) __attribute__((always_inline)) { return x; });
    }
    go(0, clear_begin, visible);
    go(clear_end, tile.keys, visible);
  }

  template <int Vectors>
  EIGEN_DONT_INLINE static void softmax_rows(const Block& block, const QueryPanel& panel,
                                             const ScoreTile<Accumulator, Vectors>& tile,
                                             Accumulator* slopes, const Accumulator* keeps,
                                             Index begin, Index end, const auto& seen,
                                             const Rows<Accumulator>& key, Index key_dim) {
    L lse[Vectors], delta[Vectors];
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) {
      lse[v] = L::load(block.log_sum_exp + panel.first + v * L::size);
      delta[v] = L::load(block.delta + panel.first + v * L::size);
    }
    for_each_tile<6 / Vectors>(
        end,
        [&]<int Keys>(Index j) __attribute__((always_inline)) {
          L weight[Keys * Vectors];
          Accumulator* score = tile.scores + j * tile.lanes;
          Accumulator* slope = slopes + j * tile.lanes;
          // The product with the keys comes next, and goes down their columns.
          for (int r = 0; r < Keys; ++r) fetch(key[j + r], key_dim);
        // The difference first: it is exact where it matters. At most 0, as log_sum_exp may be
        // rounded to below the score of an only key.
#pragma GCC unroll 16
          for (int i = 0; i < Keys * Vectors; ++i) {
            weight[i] = min((L::load(score + i * L::size) - lse[i % Vectors]) * L(log2_e), L(0));
          }
          exp2_nonpositive(weight);
#pragma GCC unroll 16
          for (int i = 0; i < Keys * Vectors; ++i) {
            const L ds = weight[i] * (L::load(slope + i * L::size) - delta[i % Vectors]);
            if (keeps) weight[i] *= L::load(keeps + j * tile.lanes + i * L::size);
            seen(j + i / Vectors, i % Vectors, weight[i]).store(score + i * L::size);
            seen(j + i / Vectors, i % Vectors, ds).store(slope + i * L::size);
          }
        },
        begin);
  }

  void close_block(Workspace& space, Block& block) const {
    const auto to = slab(gradients_.query, block.batch, block.head);
    if constexpr (!product) {
      unpack_features<KeyPanels>(static_cast<const Accumulator*>(space.d_query), 1, 0, block_lanes,
                                 p_.key_dim, to, block.first, block.count, 0);
    } else {
      alignas(64) Accumulator factor[panel_lanes];
      std::fill(factor, factor + panel_lanes, score_.similarity.query_factor);
      for (Index n = 0; n < block.panel_count; ++n) {
        const QueryPanel& panel = block.panels[static_cast<std::size_t>(n)];
        start_query(space, block, n);
        const Accumulator* d_query = space.d_query + panel.first * p_.key_dim;
        if constexpr (transforms) {
          with_vectors(panel.lanes, [&]<int Vectors>() {
            const Slab<Accumulator> rows{space.rows, p_.key_dim, 1};
            unpack_lanes(d_query, factor, panel.lanes, panel.count, p_.key_dim, rows, panel.first);
            add_product<Vectors>(d_query, Rows<Accumulator>{space.matrix_transposed, p_.query_dim},
                                 p_.key_dim, p_.query_dim, static_cast<const Accumulator*>(nullptr),
                                 space.raw_d_query);
            unpack_lanes(static_cast<const Accumulator*>(space.raw_d_query), factor, panel.lanes,
                         panel.count, p_.query_dim, to, block.first + panel.first);
          });
        } else {
          unpack_lanes(d_query, factor, panel.lanes, panel.count, p_.key_dim, to,
                       block.first + panel.first);
        }
      }
      if constexpr (transforms && Trained<Similarity>) {
        auto panels = block.panels;
        for (QueryPanel& panel : panels) panel.keys = p_.query_dim;
        const Slab<const Accumulator> rows{space.rows, p_.key_dim, 1};
        pack_features<KeyPanels>(rows, 0, block.count, p_.key_dim, block_lanes, space.query);
        add_outer(panels.data(), block.panel_count, space.raw_query, p_.query_dim, p_.query_dim,
                  space.query, block_lanes, p_.key_dim, space.parameters, p_.query_dim, 0, false);
      }
    }
  }

  /// The products of a tile pair by pair, over pairs that are seen only.
  EIGEN_DONT_INLINE void add_pairs(Workspace& space, const Block& block,
                                   const Rows<Accumulator>& key, Index first, Index keys) const {
    for (Index n = 0; n < block.panel_count; ++n) {
      const QueryPanel& panel = block.panels[static_cast<std::size_t>(n)];
      const Mask& mask = *block.masks[n];
      for (Index j = 0; j < std::min(keys, panel.keys); ++j) {
        const bool clear = mask.clear_begin() <= j && j < mask.clear_end();
        for (Index lane = 0; lane < panel.count; ++lane) {
          if (block.alive[panel.first + lane] == 0 || !(clear || mask.visible_to(j, lane)))
            continue;
          const Index at = panel.first * tile_keys_ + j * panel.lanes + lane;
          add_pair(space, panel, lane, key[j], first + j, space.weights[at], space.slopes[at]);
        }
      }
    }
  }

  void add_pair(Workspace& space, const QueryPanel& panel, Index lane, const Accumulator* key,
                Index j, Accumulator weight, Accumulator slope) const {
    const Index i = panel.first + lane;
    for (Index c = 0; c < p_.value_dim; ++c) {
      space.d_value[feature_offset<ValuePanels, Accumulator>(p_.value_dim, p_.keys, j, c)] +=
          weight * space.d_output[value_offset(i, c)];
    }
    if constexpr (flat) return;
    for (Index c = 0; c < p_.key_dim; ++c) {
      const Accumulator q = space.query[key_offset(i, c)];
      Accumulator& dk =
          space.d_key[feature_offset<KeyPanels, Accumulator>(p_.key_dim, p_.keys, j, c)];
      if constexpr (product) {
        dk += slope * q;
        space.d_query[panel.first * p_.key_dim + c * panel.lanes + lane] += slope * key[c];
      } else if constexpr (!flat) {
        if (slope == 0) continue;
        const auto slopes = score_.similarity.slopes(q, key[c], space.parameter[c]);
        dk += slope * slopes.key;
        space.d_query[key_offset(i, c)] += slope * slopes.query;
        if constexpr (trains_features) space.parameters[c] += slope * slopes.parameter;
      }
    }
  }

  Index key_offset(Index lane, Index c) const {
    return feature_offset<KeyPanels, Accumulator>(p_.key_dim, block_lanes, lane, c);
  }
  Index value_offset(Index lane, Index c) const {
    return feature_offset<ValuePanels, Accumulator>(p_.value_dim, block_lanes, lane, c);
  }

  /// Whether all of them are: infinity and NaN times 0 are NaN.
  static bool all_finite(const Rows<Accumulator>& rows, Index count, Index width) {
    L zero(0);
    Accumulator rest = 0;
    for (Index r = 0; r < count; ++r) {
      Index c = 0;
      for (; c + L::size <= width; c += L::size) zero = fma(L::load(rows[r] + c), L(0), zero);
      for (; c < width; ++c) rest += rows[r][c] * 0;
    }
    alignas(64) Accumulator lanes[L::size];
    zero.store(lanes);
    for (Accumulator lane : lanes) rest += lane;
    return rest == 0;
  }
  /// Whether the block's queries and dO are.
  bool finite(const Workspace& space, Block& block) const {
    if (!block.finite) {
      const auto all = [&]<class PanelsOf>(const PanelsOf& panels, const Accumulator* features) {
        bool result = true;
        for (Index p = 0; p < panels.count; ++p) {
          const Rows<Accumulator> numbers{features + panels[p].first * block_lanes, 0};
          result = result && all_finite(numbers, 1, block.count * panels[p].vectors * L::size);
        }
        return result;
      };
      block.finite =
          all(KeyPanels(p_.key_dim), space.query) && all(ValuePanels(p_.value_dim), space.d_output);
    }
    return *block.finite;
  }

  void write_keys(const Accumulator* from, Index batch, Index kv_head, Index first,
                  Index count) const {
    const Index distance = key_value_numbers();
    unpack_features<KeyPanels>(from, chunks_, distance, p_.keys, p_.key_dim,
                               slab(gradients_.key, batch, kv_head), first, count, first);
    unpack_features<ValuePanels>(from + p_.keys * key_width_, chunks_, distance, p_.keys,
                                 p_.value_dim, slab(gradients_.value, batch, kv_head), first, count,
                                 first);
  }

  /// The gradients of parameters, from what the pieces of work added up.
  void add_parameters(const Accumulator* parts, Index count) const {
    const auto total = [&](Index number) {
      Accumulator sum = 0;
      for (Index part = 0; part < count; ++part) sum += parts[part * parameter_numbers() + number];
      return sum;
    };
    const auto add = [&](auto& gradient, Index number) {
      using Number = std::remove_reference_t<decltype(gradient)>;
      gradient = static_cast<Number>(static_cast<Accumulator>(gradient) + total(number));
    };
    if constexpr (Trained<Similarity>) {
      const auto& gradient = score_.similarity.gradient;
      if constexpr (transforms) {
        for (Index r = 0; r < p_.query_dim; ++r) {
          for (Index c = 0; c < p_.key_dim; ++c) {
            add(gradient(r, c),
                feature_offset<KeyPanels, Accumulator>(p_.key_dim, p_.query_dim, r, c));
          }
        }
      } else {
        for (Index n = 0; n < gradient.shape[0]; ++n) add(gradient(n), n);
      }
    }
    Index start = similarity_numbers();
    const auto add_slopes_of = [&](const auto& modifier) {
      if constexpr (Trained<std::remove_cvref_t<decltype(modifier)>> &&
                    !requires { modifier.added; }) {
        for (Index h = 0; h < p_.heads; ++h) add(modifier.gradient(h), start + h);
      }
      start += p_.heads;
    };
    std::apply([&](const auto&... modifier) { (add_slopes_of(modifier), ...); }, score_.modifiers);
  }

  const Problem& p_;
  const In& in_;
  const Pass& pass_;
  const Score& score_;
  const BoundMask& mask_;
  const DropoutPolicy& dropout_;
  const Gradients& gradients_;
  KeySimilarity key_similarity_;
  Product<Accumulator> value_similarity_{Accumulator(1)};
  bool key_in_place_, value_in_place_;
  bool batch_shared_ = false, head_shared_ = false, query_shared_ = false;
  Index group_, vectors_, blocks_, chunks_;
  Index key_width_, value_width_;  // features rounded up to whole vectors
  Index tile_keys_;
};

}  // namespace heed::detail
