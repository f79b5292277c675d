#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/kernel/few_queries.hpp"
#include "heed/kernel/online_softmax.hpp"
#include "heed/kernel/pack.hpp"
#include "heed/kernel/panels.hpp"
#include "heed/kernel/register_tile.hpp"
#include "heed/kernel/rows.hpp"
#include "heed/policy/problem.hpp"
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
/// threads cannot change the result.
template <class Accumulator, class In, class Score, class BoundMask, class Out, class DropoutPolicy>
class Decode {
  using L = Lanes<Accumulator>;
  using Key = typename decltype(In::key)::Scalar;
  using Value = typename decltype(In::value)::Scalar;
  using Set = std::remove_cvref_t<decltype(std::declval<const BoundMask&>().row(0, 0, 0))>;
  using Units = std::conditional_t<Score::modified, NaturalUnits, BinaryUnits>;
  using Sums = QuerySums<Accumulator, Units>;
  static constexpr Index chunk_keys = 1024, most_keys = 64;

 public:
  Decode(const Problem& problem, const In& in, const Score& score, const BoundMask& mask,
         const DropoutPolicy& dropout, const View<Out, 4>& out,
         const View<Accumulator, 3>& log_sum_exp)
      : problem_(problem),
        in_(in),
        score_(score),
        mask_(mask),
        dropout_(dropout),
        out_(out),
        log_sum_exp_(log_sum_exp) {}

  /// Whether this loop can be used, and is the faster one: where the queries of a head fill no more
  /// than a quarter of the lanes that hold queries in the other. Rows are whole vectors in place.
  bool suits() const {
    const auto whole = [](const auto& x) {
      return x.strides[3] == 1 && x.shape[3] % L::size == 0 && x.shape[3] > 0;
    };
    return problem_.queries <= std::max<Index>(1, L::size / 4) && problem_.heads > 0 &&
           problem_.keys > 0 && whole(in_.key) && whole(in_.value);
  }

  /// Scratch: the queries, and the sums of each for every 1,024 keys.
  void run(Eigen::ThreadPoolInterface* pool) const {
    const Index heads = problem_.batch * problem_.kv_heads;
    const Index shared = problem_.heads / problem_.kv_heads * problem_.queries;
    const Index chunks = (problem_.keys + chunk_keys - 1) / chunk_keys;
    const Index size = Sums::size(problem_.value_dim);
    Scratch scratch(Scratch::bytes<Set>(heads * shared) +
                    Scratch::bytes<Accumulator>(heads * shared * problem_.key_dim) +
                    Scratch::bytes<Accumulator>(heads * chunks * shared * size));
    Set* const sets = scratch.take<Set>(heads * shared);
    auto* const queries = scratch.take<Accumulator>(heads * shared * problem_.key_dim);
    auto* const parts = scratch.take<Accumulator>(heads * chunks * shared * size);
    for (Index row = 0; row < heads * shared; ++row) {
      const Place at = place(row);
      sets[row] = mask_.row(at.batch, at.head, at.query);
      pack(at, queries + row * problem_.key_dim);
    }
    parallel_for(pool, heads * chunks, [&](Index first, Index last) {
      for (Index item = first; item < last; ++item) {
        const Index row = item / chunks * shared;
        attend(row, shared, item % chunks * chunk_keys, sets + row,
               queries + row * problem_.key_dim, parts + item * shared * size);
      }
    });
    for (Index row = 0; row < heads * shared; ++row) {
      Accumulator* const part = parts + (row / shared * chunks * shared + row % shared) * size;
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
                                const Accumulator* queries, Accumulator* sums) const {
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
    const Index head = place(first_row).head / (problem_.heads / problem_.kv_heads);
    const auto key = slab(in_.key, place(first_row).batch, head);
    const auto value = slab(in_.value, place(first_row).batch, head);
    const Index key_bytes = problem_.key_dim * static_cast<Index>(sizeof(Key));
    const Index value_bytes = problem_.value_dim * static_cast<Index>(sizeof(Value));
    // A tile of keys, one of values and the next of both fill half of the first-level cache, which
    // makes 16 keys of 64 floats; larger ones are evicted before they are used.
    const auto tile = std::clamp<Index>(
        static_cast<Index>(Eigen::l1CacheSize()) / 8 / std::max(key_bytes, value_bytes), 8,
        most_keys);

    for (Index k = begin; k < end; k += tile) {
      const Index after = k + tile;
      Ahead ahead;
      if (after < problem_.keys) {
        ahead = {reinterpret_cast<const char*>(&key(after, 0)),
                 reinterpret_cast<const char*>(&value(after, 0)),
                 key.row_stride * static_cast<Index>(sizeof(Key)),
                 value.row_stride * static_cast<Index>(sizeof(Value)),
                 key_bytes,
                 value_bytes,
                 std::min(tile, problem_.keys - after)};
      }
      for (Index r = 0; r < rows; ++r, ahead.count = 0) {
        const Place at = place(first_row + r);
        for_each_run(sets[r], at, k, std::min(after, end), [&](Index first, Index last) {
          alignas(64) Accumulator scores[most_keys];
          const Index count = last - first;
          score_keys(score_.similarity, queries + r * problem_.key_dim,
                     Rows<Key>{&key(first, 0), key.row_stride}, count, problem_.key_dim, ahead,
                     scores);
          modify(scores, at, first, count);
          const Accumulator fade = sums_of(r).absorb(scores, count);
          if (dropout_.active()) drop(scores, at, first, count);
          add_weighted(scores, Rows<Value>{&value(first, 0), value.row_stride}, count,
                       problem_.value_dim, fade, ahead, sums_of(r).output);
        });
      }
    }
  }

  /// The keys among first .. last-1 that a query sees, in runs: what is hidden is never read.
  template <class Body>
  void for_each_run(const Set& set, const Place& at, Index first, Index last,
                    const Body& body) const {
    for (int i = 0; i < set.count; ++i) {
      Index begin = std::max(set[i].begin, first);
      const Index end = std::min(set[i].end, last);
      if (set.exact) {
        if (begin < end) body(begin, end);
        continue;
      }
      for (Index j = begin; j <= end; ++j) {
        if (j < end && mask_.allows(at.batch, at.head, at.query, j)) continue;
        if (begin < j) body(begin, j);
        begin = j + 1;
      }
    }
  }

  /// The features of a query as the similarity wants them.
  void pack(const Place& at, Accumulator* to) const {
    const auto& similarity = score_.similarity;
    const auto query = [&](Index c) {
      return static_cast<Accumulator>(in_.query(at.batch, at.head, at.query, c));
    };
    for (Index c = 0; c < problem_.key_dim; ++c) {
      Accumulator feature = 0;
      if constexpr (requires { similarity.transform; }) {
        for (Index r = 0; r < problem_.query_dim; ++r) {
          feature += query(r) * static_cast<Accumulator>(similarity.transform(r, c));
        }
      } else {
        feature = query(c);
      }
      to[c] = feature * similarity.query_factor;
    }
  }

  void modify(Accumulator* scores, const Place& at, Index first, Index count) const {
    const auto apply = [&](const auto& modifier) {
      if constexpr (requires(L s) { modifier.apply(s); }) {
        for (Index j = 0; j < count; j += L::size) {
          modifier.apply(L::load(scores + j)).store(scores + j);
        }
      } else {
        for (Index j = 0; j < count; ++j) {
          scores[j] = modifier(scores[j], at.batch, at.head, at.query, first + j);
        }
      }
    };
    std::apply([&](const auto&... modifier) { (apply(modifier), ...); }, score_.modifiers);
  }

  void drop(Accumulator* weights, const Place& at, Index first, Index count) const {
    const auto row = dropout_.row(at.batch, at.head, at.query);
    for (Index j = 0; j < count; ++j) {
      if (!dropout_.keeps(row, first + j)) weights[j] = 0;
    }
  }

  void finish(const Place& at, const Sums& total) const {
    const Accumulator factor =
        *total.sum == 0 ? 0 : static_cast<Accumulator>(dropout_.scale()) / *total.sum;
    for (Index c = 0; c < problem_.value_dim; ++c) {
      out_(at.batch, at.head, at.query, c) = static_cast<Out>(total.output[c] * factor);
    }
    if (log_sum_exp_.data) log_sum_exp_(at.batch, at.head, at.query) = total.log_sum_exp();
  }

  const Problem& problem_;
  const In& in_;
  const Score& score_;
  const BoundMask& mask_;
  const DropoutPolicy& dropout_;
  const View<Out, 4>& out_;
  const View<Accumulator, 3>& log_sum_exp_;  // of nothing where it is not wanted
};

/// Similarities whose step is the same for every feature, so that lanes may hold features.
template <class Similarity>
concept FeaturesAlike =
    !requires(const Similarity& s) { s.weight; } && !requires(const Similarity& s) { s.width; };

}  // namespace heed::detail
