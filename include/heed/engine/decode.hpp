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

/// Attention of one or two queries to many keys, as in decoding, which takes as long as it takes to
/// read the keys and values:
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
  static constexpr ScoreTraits traits = score_traits<typename Score::Similarity>;

 public:
  static constexpr bool possible = Laned<Number> && traits.vectorised && traits.features_alike;

  /// Where the queries of a head fill no more than a quarter of the lanes that hold queries in
  /// Forward, this loop is the faster one. Rows are whole vectors in place.
  static bool suits(const Call& call) {
    const Problem& problem = call.problem;
    if (call.output.weights.data || problem.keys == 0 ||
        problem.queries > std::max<Index>(1, L::size / 4)) {
      return false;
    }
    const auto whole = [](const auto& source) {
      return source.width() % L::size == 0 && source.width() > 0 &&
             source.run(0, 0, 0, 1).column_stride == 1;
    };
    return whole(call.keys) && whole(call.values);
  }

  explicit Decode(const Call& call) : call_(call), problem_(call.problem) {}

  /// Scratch: the queries, and the sums of each for every 1,024 keys.
  void run(Eigen::ThreadPoolInterface* pool) const {
    const Index heads = problem_.batch * problem_.kv_heads;
    const Index shared = problem_.heads / problem_.kv_heads * problem_.queries;
    const Index chunks = (problem_.keys + chunk_keys - 1) / chunk_keys;
    const Index size = Sums::size(problem_.value_dim);
    Set* sets = nullptr;
    Number *queries = nullptr, *parts = nullptr;
    const Scratch scratch([&](Layout& layout) {
      sets = layout.take<Set>(heads * shared);
      queries = layout.take<Number>(heads * shared * problem_.key_dim);
      parts = layout.take<Number>(heads * chunks * shared * size);
    });
    for (Index row = 0; row < heads * shared; ++row) {
      const Place at = place(row);
      sets[row] = call_.mask.row(at.batch, at.head, at.query);
      prepare_query(
          call_.score.similarity, problem_,
          [&](Index c) { return static_cast<Number>(call_.query(at.batch, at.head, at.query, c)); },
          queries + row * problem_.key_dim);
    }
    parallel_for(pool, heads * chunks, [&](Index first, Index last) {
      for (Index item = first; item < last; ++item) {
        const Index row = item / chunks * shared;
        attend(row, shared, item % chunks * chunk_keys, sets + row,
               queries + row * problem_.key_dim, parts + item * shared * size);
      }
    });
    for (Index row = 0; row < heads * shared; ++row) {
      Number* const part = parts + (row / shared * chunks * shared + row % shared) * size;
      const Sums total(part, problem_.value_dim);
      for (Index chunk = 1; chunk < chunks; ++chunk) {
        total.merge(Sums(part + chunk * shared * size, problem_.value_dim));
      }
      finish(place(row), total);
    }
  }

 private:
  struct Place {
    Index batch, head, query;
  };
  Place place(Index row) const {
    const Index head = row / problem_.queries;
    return {head / problem_.heads, head % problem_.heads, row % problem_.queries};
  }

  /// The sums of the queries of one head of keys over one chunk.
  EIGEN_DONT_INLINE void attend(Index first_row, Index rows, Index chunk, const Set* sets,
                                const Number* queries, Number* sums) const {
    const auto sums_of = [&](Index r) {
      return Sums(sums + r * Sums::size(problem_.value_dim), problem_.value_dim);
    };
    Index begin = problem_.keys, end = 0;
    for (Index r = 0; r < rows; ++r) {
      sums_of(r).clear();
      if (sets[r].count == 0) continue;
      begin = std::min(begin, sets[r][0].begin);
      end = std::max(end, sets[r][sets[r].count - 1].end);
    }
    begin = std::max(begin, chunk);
    end = std::min(end, chunk + chunk_keys);
    const Index batch = place(first_row).batch;
    const Index head = place(first_row).head / (problem_.heads / problem_.kv_heads);
    const Index key_bytes = problem_.key_dim * static_cast<Index>(sizeof(Key));
    const Index value_bytes = problem_.value_dim * static_cast<Index>(sizeof(Value));
    // A tile of keys, one of values and the next of both fill half of the first-level cache, which
    // makes 16 keys of 64 floats; larger ones are evicted before they are used.
    const auto most = std::clamp<Index>(
        static_cast<Index>(Eigen::l1CacheSize()) / 8 / std::max(key_bytes, value_bytes), 8,
        most_keys);

    for (Index k = begin; k < end;) {
      // A tile lies in one run of keys and one of values.
      auto key = call_.keys.run(batch, head, k, std::min(most, end - k));
      const auto value = call_.values.run(batch, head, k, key.count);
      key.count = value.count;
      const Index after = k + key.count;
      Ahead ahead;
      if (after < problem_.keys) {
        const auto next_key =
            call_.keys.run(batch, head, after, std::min(most, problem_.keys - after));
        const auto next_value = call_.values.run(batch, head, after, next_key.count);
        ahead = {reinterpret_cast<const char*>(next_key.data),
                 reinterpret_cast<const char*>(next_value.data),
                 next_key.row_stride * static_cast<Index>(sizeof(Key)),
                 next_value.row_stride * static_cast<Index>(sizeof(Value)),
                 key_bytes,
                 value_bytes,
                 next_value.count};
      }
      for (Index r = 0; r < rows; ++r, ahead.count = 0) {
        const Place at = place(first_row + r);
        // What is hidden is never read.
        for_each_visible_run(call_.mask, sets[r], at.batch, at.head, at.query, k, after,
                             [&](Index first, Index last) {
                               alignas(64) Number scores[most_keys];
                               const Index count = last - first;
                               score_keys(call_.score.similarity, queries + r * problem_.key_dim,
                                          Rows<Key>{key.row(first - k), key.row_stride}, count,
                                          problem_.key_dim, ahead, scores);
                               modify(scores, at, first, count);
                               const Number fade = sums_of(r).absorb(scores, count);
                               if (call_.dropout.active()) drop(scores, at, first, count);
                               add_weighted(
                                   scores, Rows<Value>{value.row(first - k), value.row_stride},
                                   count, problem_.value_dim, fade, ahead, sums_of(r).output);
                             });
      }
      k = after;
    }
  }

  void modify(Number* scores, const Place& at, Index first, Index count) const {
    const auto apply = [&](const auto& modifier) {
      constexpr ModifierTraits modifier_is =
          modifier_traits<std::remove_cvref_t<decltype(modifier)>>;
      if constexpr (modifier_is.vectorised && modifier_is.ignores_pair) {
        for (Index j = 0; j < count; j += L::size) {
          modified<Number>(modifier, L::load(scores + j), at.batch, at.head, at.query, first + j)
              .store(scores + j);
        }
      } else {
        for (Index j = 0; j < count; ++j) {
          scores[j] = modified<Number>(modifier, scores[j], at.batch, at.head, at.query, first + j);
        }
      }
    };
    std::apply([&](const auto&... modifier) { (apply(modifier), ...); }, call_.score.modifiers);
  }

  void drop(Number* weights, const Place& at, Index first, Index count) const {
    const auto row = call_.dropout.row(at.batch, at.head, at.query);
    for (Index j = 0; j < count; ++j) {
      if (!call_.dropout.keeps(row, first + j)) weights[j] = 0;
    }
  }

  void finish(const Place& at, const Sums& total) const {
    using Element = typename decltype(call_.output.output)::Scalar;
    Number fade = 1;
    for_each_sink(call_.score.modifiers, at.head,
                  [&](Number logit) { fade *= total.absorb_score(logit); });
    const Number factor =
        *total.sum == 0 ? 0 : static_cast<Number>(call_.dropout.scale()) / *total.sum * fade;
    if (!(factor * 0 == 0 && all_finite(total.output, problem_.value_dim))) {
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
