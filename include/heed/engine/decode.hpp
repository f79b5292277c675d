#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/engine/call.hpp"
#include "heed/engine/reference/forward.hpp"
#include "heed/kernel/few_queries.hpp"
#include "heed/kernel/online_softmax.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/simd/lanes.hpp"
#include "heed/simd/math.hpp"

namespace heed::detail {

/// Attention of up to 16 queries to many keys, as in decoding, which takes as long as it takes to
/// read the keys and values, once for all query heads that share them:
///
///   for each head of keys, each chunk of them, each tile
///     for each query of each query head that shares them, each run of keys that it sees
///       scores = similarity(query, keys)
///       modifiers, running softmax    -> weights
///       output = faded output + weights x values
///   merge the chunks
///
/// Lanes hold features. Chunks have a fixed length and are merged in order, so that the number of
/// threads cannot change the result. A query whose result is not finite is computed again by the
/// definition, as in Forward.
template <class Call>
class Decode {
  using Number = typename Call::Number;
  using L = Lanes<Number>;
  using Key = typename Call::Keys::Element;
  using Value = typename Call::Values::Element;
  using Score = typename Call::Score;
  using Set = KeySetOf<typename Call::Mask>;
  using Unit = typename Score::Unit;
  using Sums = QuerySums<Number, Unit>;
  static constexpr Index chunk_keys = 1024, most_keys = 64;
  /// A block of queries, one in each lane, takes the time of so many by themselves.
  static constexpr Index worth_a_block = std::max<Index>(3, L::size / 4);
  static constexpr int block_queries = 4;  // whose values are summed up at once
  static constexpr Index most_queries = 16, short_keys = 64;
  static constexpr ScoreTraits traits = score_traits<typename Score::Similarity>;
  /// Scales of keys multiply sums, which only products allow.
  static constexpr bool keys_as_stored =
      !std::is_same_v<Key, Quantised8> || traits.terms == Terms::product;

 public:
  static constexpr bool possible = Laned<Number> && traits.vectorised && traits.features_alike &&
                                   !WithWeights<typename Call::Output>;

  /// The faster loop where the keys are many, as it reads them once for all heads that share them,
  /// and where the queries of a head fill no more than a quarter of the lanes that hold queries in
  /// Forward. Rows are whole vectors in place.
  static bool suits(const Call& call) {
    const Problem& problem = call.problem;
    if (problem.keys == 0 ||
        problem.queries >
            (problem.keys < short_keys ? std::max<Index>(1, L::size / 4) : most_queries)) {
      return false;
    }
    const auto whole = [](const auto& source) {
      return source.width() % L::size == 0 && source.width() > 0 &&
             source.run(0, 0, 0, 1).column_stride == 1;
    };
    return whole(call.keys) && whole(call.values);
  }

  explicit Decode(const Call& call) : call_(call), problem_(call.problem) {}

  /// A piece is all that one head of keys is read for. A pool shares the chunks of all heads.
  Index pieces() const { return problem_.entries() * problem_.kv_heads; }
  void run(Index first, Index last) const { run(first, last, nullptr); }
  void run(Eigen::ThreadPoolInterface* pool) const { run(0, pieces(), pool); }

 private:
  /// Heads first_head .. last_head-1. Scratch: the queries, and the sums of each for every 1,024
  /// keys.
  void run(Index first_head, Index last_head, Eigen::ThreadPoolInterface* pool) const {
    const Index heads = last_head - first_head;
    const Index shared = problem_.heads / problem_.kv_heads * problem_.queries;
    const Index chunks = (problem_.keys + chunk_keys - 1) / chunk_keys;
    const Index size = Sums::size(problem_.value_dim), first_row = first_head * shared;
    const Index blocks =
        problem_.keys < short_keys ? 0 : (shared + L::size - worth_a_block) / L::size;
    Set* sets = nullptr;
    Number *queries = nullptr, *panels = nullptr, *parts = nullptr;
    const Scratch scratch([&](Layout& layout) {
      sets = layout.take<Set>(heads * shared);
      queries = layout.take<Number>(heads * shared * problem_.key_dim);
      panels = layout.take<Number>(heads * blocks * L::size * problem_.key_dim);
      parts = layout.take<Number>(heads * chunks * shared * size);
    });
    for (Index row = 0; row < heads * shared; ++row) {
      const Place at = place(first_row + row);
      sets[row] = call_.mask.row(at.batch, at.head, at.query);
      prepare_query(
          call_.score.similarity, problem_,
          [&](Index c) { return static_cast<Number>(call_.query(at.batch, at.head, at.query, c)); },
          queries + row * problem_.key_dim);
    }
    for (Index head = 0; head < heads; ++head) {
      const Number* const from = queries + head * shared * problem_.key_dim;
      for (Index block = 0; block < blocks; ++block) {
        Number* const to = panels + (head * blocks + block) * L::size * problem_.key_dim;
        for (Index c = 0; c < problem_.key_dim; ++c) {
          for (Index lane = 0; lane < L::size; ++lane) {
            const Index row = block * L::size + lane;
            to[c * L::size + lane] = row < shared ? from[row * problem_.key_dim + c] : Number(0);
          }
        }
      }
    }
    parallel_for(pool, heads * chunks, [&](Index first, Index last) {
      Workspace space(*this, shared, blocks);
      for (Index item = first; item < last; ++item) {
        const Index head = item / chunks, row = head * shared;
        attend({.first = first_row + row,
                .count = shared,
                .sets = sets + row,
                .queries = queries + row * problem_.key_dim,
                .blocks = blocks,
                .panels = panels + head * blocks * L::size * problem_.key_dim,
                .sums = parts + item * shared * size},
               item % chunks * chunk_keys, space);
      }
    });
    for (Index row = 0; row < heads * shared; ++row) {
      Number* const part = parts + (row / shared * chunks * shared + row % shared) * size;
      const Sums total(part, problem_.value_dim);
      for (Index chunk = 1; chunk < chunks; ++chunk) {
        total.merge(Sums(part + chunk * shared * size, problem_.value_dim));
      }
      finish(place(first_row + row), total);
    }
  }

  struct Place {
    Index batch, head, query;
  };
  Place place(Index row) const {
    const Index head = row / problem_.queries;
    return {problem_.first_entry() + head / problem_.heads, head % problem_.heads,
            row % problem_.queries};
  }

  /// The queries that share a head of keys.
  struct Queries {
    Index first, count;  // rows
    const Set* sets;
    const Number* queries;  // [row][feature]
    Index blocks;           // of a vector of rows; the rows behind are taken one by one
    const Number* panels;   // [block][feature][row of the block]
    Number* sums;
  };

  /// A tile of keys and values, `count` from key `first` on, and what comes after them.
  struct Tile {
    Index first, count;
    Ahead ahead;
  };

  /// What a thread works in.
  struct Workspace {
    Workspace(const Decode& decode, Index rows, Index blocks)
        : widen_keys(!keys_as_stored || (!std::is_same_v<Key, Number> && rows > 2)),
          widen_values(!std::is_same_v<Value, Number> && rows > 2),
          scratch([&](Layout& layout) {
            keys = layout.take<Number>(widen_keys ? most_keys * decode.problem_.key_dim : 0);
            values = layout.take<Number>(widen_values ? most_keys * decode.problem_.value_dim : 0);
            scores = layout.take<Number>(blocks > 0 ? L::size * most_keys : 0);
          }) {}
    bool widen_keys, widen_values;
    Number *keys, *values, *scores;
    Scratch scratch;
  };

  /// The sums of the queries of one head of keys over one chunk.
  EIGEN_DONT_INLINE void attend(const Queries& q, Index chunk, Workspace& space) const {
    Index begin = problem_.keys, end = 0;
    for (Index r = 0; r < q.count; ++r) {
      sums_of(q, r).clear();
      if (q.sets[r].count == 0) continue;
      begin = std::min(begin, q.sets[r][0].begin);
      end = std::max(end, q.sets[r][q.sets[r].count - 1].end);
    }
    begin = std::max(begin, chunk);
    end = std::min(end, chunk + chunk_keys);
    const Index batch = place(q.first).batch;
    const Index head = problem_.kv_head(place(q.first).head);
    constexpr auto key_size = static_cast<Index>(sizeof(Stored<Key>));
    constexpr auto value_size = static_cast<Index>(sizeof(Stored<Value>));
    const Index key_bytes = problem_.key_dim * key_size;
    const Index value_bytes = problem_.value_dim * value_size;
    // A tile of keys, one of values and the next of both fill half of the first-level cache, which
    // makes 16 keys of 64 floats; larger ones are evicted before they are used.
    const auto most = std::clamp<Index>(
        static_cast<Index>(Eigen::l1CacheSize()) / 8 / std::max(key_bytes, value_bytes), 8,
        most_keys);

    // Of a tile, for each of its keys: see Ahead.
    const Index alone = std::max<Index>(0, q.count - q.blocks * L::size);
    const Index work = 2 * alone + q.blocks * block_score_work +
                       (q.count - alone + block_queries - 1) / block_queries;

    for (Index k = begin; k < end;) {
      // A tile lies in one run of keys and one of values.
      auto key = call_.keys.run(batch, head, k, std::min(most, end - k));
      const auto value = call_.values.run(batch, head, k, key.count);
      key.count = value.count;
      Tile tile{k, key.count, {}};
      const Index after = k + key.count;
      if (after < problem_.keys) {
        const auto next_key =
            call_.keys.run(batch, head, after, std::min(most, problem_.keys - after));
        const auto next_value = call_.values.run(batch, head, after, next_key.count);
        tile.ahead = {reinterpret_cast<const char*>(next_key.data),
                      reinterpret_cast<const char*>(next_value.data),
                      next_key.row_stride * key_size,
                      next_value.row_stride * value_size,
                      key_bytes,
                      value_bytes,
                      next_value.count,
                      tile.count * work};
      }
      const auto with_values = [&](const auto& keys) {
        if constexpr (!std::is_same_v<Value, Number>) {
          if (space.widen_values) {
            copy_rows(value, problem_.value_dim, space.values);
            const Run<Number> widened{space.values, problem_.value_dim, 1, value.count};
            return attend_tile(q, tile, keys, widened, space);
          }
        }
        attend_tile(q, tile, keys, value, space);
      };
      if constexpr (std::is_same_v<Key, Number>) {
        with_values(key);
      } else if (space.widen_keys) {
        copy_rows(key, problem_.key_dim, space.keys);
        with_values(Run<Number>{space.keys, problem_.key_dim, 1, key.count});
      } else if constexpr (keys_as_stored) {
        with_values(key);
      }
      k = after;
    }
  }

  template <class Keys, class Values>
  void attend_tile(const Queries& q, Tile& tile, const Keys& keys, const Values& values,
                   Workspace& space) const {
    for (Index block = 0; block < q.blocks; ++block) {
      const Index first = block * L::size, rows = std::min(q.count - first, L::size);
      if constexpr (std::is_same_v<Keys, Run<Number>> && std::is_same_v<Values, Run<Number>>) {
        if (all_see(q, first, rows, tile)) {
          attend_block(q, first, rows, tile, keys, values, space.scores);
          continue;
        }
      }
      for (Index r = first; r < first + rows; ++r) attend_row(q, r, tile, keys, values);
    }
    for (Index r = q.blocks * L::size; r < q.count; ++r) attend_row(q, r, tile, keys, values);
  }

  bool all_see(const Queries& q, Index first, Index rows, const Tile& tile) const {
    for (Index r = first; r < first + rows; ++r) {
      const Set& set = q.sets[r];
      bool sees = false;
      for (int n = 0; n < set.count && set.exact; ++n) {
        sees = sees || (set[n].begin <= tile.first && tile.first + tile.count <= set[n].end);
      }
      if (!sees) return false;
    }
    return true;
  }

  void attend_block(const Queries& q, Index first, Index rows, Tile& tile, const Run<Number>& keys,
                    const Run<Number>& values, Number* scores) const {
    alignas(64) Number largest[length(L::size)];
    score_block(call_.score.similarity, q.panels + first * problem_.key_dim, keys, tile.count,
                problem_.key_dim, tile.ahead, scores, largest);
    if constexpr (Score::modified) modify_block(q, first, rows, tile, scores, largest);
    OnlineSoftmax<Number, 1, Unit> softmax;
    for (Index r = 0; r < rows; ++r) {
      softmax.largest[r] = *sums_of(q, first + r).largest;
      softmax.sum[r] = *sums_of(q, first + r).sum;
    }
    softmax.absorb(scores, tile.count, largest);
    for (Index r = 0; r < rows; ++r) {
      *sums_of(q, first + r).largest = softmax.largest[r];
      *sums_of(q, first + r).sum = softmax.sum[r];
      if (call_.dropout.active()) {
        drop(scores + r, L::size, place(q.first + first + r), tile.first, tile.count);
      }
    }
    for_each_tile<block_queries>(rows, [&]<int Count>(Index r) __attribute__((always_inline)) {
      add_weighted<Count>(scores + r, 1, L::size, values, tile.count, problem_.value_dim,
                          softmax.correction + r, tile.ahead, sums_of(q, first + r).output,
                          Sums::size(problem_.value_dim));
    });
  }

  /// Modifies scores[key][query] of a block, and finds the largest again.
  void modify_block(const Queries& q, Index first, Index rows, const Tile& tile, Number* scores,
                    Number* largest) const {
    for (Index r = 0; r < rows; ++r) {
      modify(scores + r, L::size, place(q.first + first + r), tile.first, tile.count);
    }
    L most(-std::numeric_limits<Number>::infinity());
    for (Index j = 0; j < tile.count; ++j) most = max(most, L::load(scores + j * L::size));
    most.store(largest);
  }

  void attend_row(const Queries& q, Index r, Tile& tile, const auto& keys,
                  const auto& values) const {
    const Place at = place(q.first + r);
    // What is hidden is never read.
    for_each_visible_run(
        call_.mask, q.sets[r], at.batch, at.head, at.query, tile.first, tile.first + tile.count,
        [&](Index first, Index last) {
          alignas(64) Number scores[most_keys];
          const Index count = last - first;
          score_keys(call_.score.similarity, q.queries + r * problem_.key_dim,
                     keys.from(first - tile.first), count, problem_.key_dim, tile.ahead, scores);
          modify(scores, 1, at, first, count);
          const Number fade = sums_of(q, r).absorb(scores, count);
          if (call_.dropout.active()) drop(scores, 1, at, first, count);
          add_weighted<1>(scores, 0, 1, values.from(first - tile.first), count, problem_.value_dim,
                          &fade, tile.ahead, sums_of(q, r).output, 0);
        });
  }

  Sums sums_of(const Queries& q, Index r) const {
    return Sums(q.sums + r * Sums::size(problem_.value_dim), problem_.value_dim);
  }

  /// Modifies the scores of a query, `stride` apart.
  void modify(Number* scores, Index stride, const Place& at, Index first, Index count) const {
    const auto apply = [&](const auto& modifier) {
      constexpr ModifierTraits modifier_is =
          modifier_traits<std::remove_cvref_t<decltype(modifier)>>;
      if constexpr (modifier_is.vectorised && modifier_is.ignores_pair) {
        if (stride == 1) {
          for (Index j = 0; j < count; j += L::size) {
            modified<Number>(modifier, L::load(scores + j), at.batch, at.head, at.query, first + j)
                .store(scores + j);
          }
          return;
        }
      }
      for (Index j = 0; j < count; ++j) {
        scores[j * stride] =
            modified<Number>(modifier, scores[j * stride], at.batch, at.head, at.query, first + j);
      }
    };
    std::apply([&](const auto&... modifier) { (apply(modifier), ...); }, call_.score.modifiers);
  }

  void drop(Number* weights, Index stride, const Place& at, Index first, Index count) const {
    const auto row = call_.dropout.row(at.batch, at.head, at.query);
    for (Index j = 0; j < count; ++j) {
      if (!call_.dropout.keeps(row, first + j)) weights[j * stride] = 0;
    }
  }

  void finish(const Place& at, const Sums& total) const {
    using Element = typename decltype(call_.output.output)::Scalar;
    Number fade = 1;
    for_each_sink(call_.score.modifiers, at.head,
                  [&](Number logit) { fade *= total.absorb_score(logit); });
    const Number factor =
        *total.sum == 0 ? 0 : static_cast<Number>(call_.dropout.scale()) / *total.sum * fade;
    if (out_of_range(call_, *total.largest, at.batch, at.head, at.query) ||
        !(factor * 0 == 0 && all_finite(total.output, problem_.value_dim))) {
      return ReferenceRow<Call>(call_).attend(at.batch, at.head, at.query);
    }
    for (Index c = 0; c < problem_.value_dim; ++c) {
      call_.output.output(at.batch, at.head, at.query, c) =
          static_cast<Element>(total.output[c] * factor);
    }
    if (call_.output.log_sum_exp.data) {
      call_.output.log_sum_exp(at.batch, at.head, at.query) = total.log_sum_exp();
    }
  }

  const Call& call_;
  const Problem& problem_;
};

}  // namespace heed::detail
