#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/detail/online_softmax.hpp"
#include "heed/detail/pack.hpp"
#include "heed/detail/problem.hpp"
#include "heed/detail/tile.hpp"
#include "heed/simd/lanes.hpp"
#include "heed/simd/math.hpp"

namespace heed::detail {

/// The keys and values that come next. They are asked of the memory while others are worked on: row
/// by row in order of address, keys and values in turn, as two streams are faster than one, and far
/// faster than lines in the order in which the kernels come to them.
struct Ahead {
  const char *key = nullptr, *value = nullptr;
  Index key_stride = 0, value_stride = 0, key_bytes = 0, value_bytes = 0;
  Index count = 0;

  EIGEN_ALWAYS_INLINE void ask(Index first, Index last) const {
    for (Index row = first; row < std::min(last, count); ++row) {
      fetch(key + row * key_stride, key_bytes);
      fetch(value + row * value_stride, value_bytes);
    }
  }
};

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // of a vector type as template argument
/// Lane i of the result is the sum of the lanes of x[i].
template <class Scalar>
EIGEN_ALWAYS_INLINE Lanes<Scalar> sums_across(const Lanes<Scalar> (&x)[Lanes<Scalar>::size]) {
  using L = Lanes<Scalar>;
  constexpr Index n = L::size;
  if constexpr (n == 1) {
    return x[0];
  } else {
    Eigen::internal::PacketBlock<typename L::Packet, static_cast<int>(n)> block;
#pragma GCC unroll 16
    for (Index i = 0; i < n; ++i) block.packet[i] = x[i].packet;
    Eigen::internal::ptranspose(block);
    // In pairs, then pairs of pairs: a chain of additions would be as long as there are lanes.
#pragma GCC unroll 16
    for (Index step = 1; step < n; step *= 2) {
#pragma GCC unroll 16
      for (Index i = 0; i < n; i += 2 * step) {
        block.packet[i] = Eigen::internal::padd(block.packet[i], block.packet[i + step]);
      }
    }
    return L::of(block.packet[0]);
  }
}
#pragma GCC diagnostic pop

/// Scores of one query and count keys, lanes over the features, as many keys at once as a vector
/// has lanes; -infinity from there to a whole vector. Returns the largest.
template <class Scalar, class Similarity, class Key>
EIGEN_DONT_INLINE void score_keys(const Similarity& similarity, const Scalar* query,
                                  const Rows<Key>& keys, Index count, Index width,
                                  const Ahead& ahead, Scalar* scores) {
  using L = Lanes<Scalar>;
  constexpr Index n = L::size;
  for (Index j = 0; j < count; j += n) {
    ahead.ask(j / 2, (j + n) / 2);
    const Key* key[n];
    L sum[n];
#pragma GCC unroll 16
    for (Index k = 0; k < n; ++k) {
      key[k] = keys[std::min(j + k, count - 1)];
      sum[k] = L(0);
    }
    for (Index c = 0; c < width; c += n) {
      const L q = L::load(query + c).pinned();
#pragma GCC unroll 16
      for (Index k = 0; k < n; ++k) {
        sum[k] = similarity.step(sum[k], q, load_widened<Scalar>(key[k] + c), c);
      }
    }
    similarity.finish(sums_across(sum)).store(scores + j);
  }
}

/// output = fade * output + sum over keys of weight x value.
template <class Scalar, class Value>
EIGEN_DONT_INLINE void add_weighted(const Scalar* weights, const Rows<Value>& values, Index count,
                                    Index width, Scalar fade, const Ahead& ahead, Scalar* output) {
  using L = Lanes<Scalar>;
  // A power of two, as common widths are, and enough sums to hide the latency of a multiply-add.
  constexpr int sums = accumulator_registers / 3 * 2;
  constexpr Index block_keys = 8;  // what is asked for at once
  const auto add = [&]<int Vectors>(Index v) __attribute__((always_inline)) {
    Scalar* const to = output + v * L::size;
    L sum[Vectors];
#pragma GCC unroll 16
    for (int i = 0; i < Vectors; ++i) sum[i] = L(fade) * L::load(to + i * L::size);
    for (Index block = 0; block < count; block += block_keys) {
      const Index end = std::min(block + block_keys, count);
      if (v == 0) ahead.ask((count + block) / 2, (count + end) / 2);
      for (Index j = block; j < end; ++j) {
        const Value* const from = values[j] + v * L::size;
        const L weight(weights[j]);
#pragma GCC unroll 16
        for (int i = 0; i < Vectors; ++i) {
          sum[i] = fma(weight, load_widened<Scalar>(from + i * L::size), sum[i]);
        }
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < Vectors; ++i) sum[i].store(to + i * L::size);
  };
  const Index vectors = width / L::size;
  Index v = 0;
  for (; v + sums <= vectors; v += sums) add.template operator()<sums>(v);
  for (; v < vectors; ++v) add.template operator()<1>(v);
}

/// What one query has summed up over some keys: the largest score, the sum of e^(score - largest),
/// and with these weights the sum of the values.
template <class Scalar, class Units>
struct QuerySums {
  using L = Lanes<Scalar>;
  static constexpr Scalar infinity = std::numeric_limits<Scalar>::infinity();
  Scalar *largest, *sum, *output;
  Index width;

  static Index size(Index value_width) { return value_width + L::size; }
  QuerySums(Scalar* memory, Index value_width)
      : largest(memory + value_width), sum(largest + 1), output(memory), width(value_width) {}

  void clear() const {
    *largest = -infinity;
    *sum = 0;
    std::fill_n(output, width, Scalar(0));
  }

  /// Takes in count keys and turns their scores, up to a whole vector, into e^(score - largest).
  /// What was accumulated before is due the result. The online softmax of OnlineSoftmax, with keys
  /// in the lanes.
  EIGEN_DONT_INLINE Scalar absorb(Scalar* scores, Index count) const {
    const Index vectors = (count + L::size - 1) / L::size;
    std::fill(scores + count, scores + vectors * L::size, -infinity);
    L most = L::load(scores);
    for (Index v = 1; v < vectors; ++v) most = max(most, L::load(scores + v * L::size));
    const Scalar fade = raise(largest_lane(most));
    L total(0);
    for (Index v = 0; v < vectors; ++v) {
      const L weight =
          exp2_nonpositive((L::load(scores + v * L::size) - L(shift())) * L(Units::binary));
      weight.store(scores + v * L::size);
      total += weight;
    }
    *sum = *sum * fade + sum_of_lanes(total);
    return fade;
  }

  /// Adds sums over other keys. Both are faded to the larger of the two largest scores.
  void merge(const QuerySums& other) const {
    const Scalar mine = raise(*other.largest), theirs = other.raise(*largest);
    *sum = *sum * mine + *other.sum * theirs;
    for (Index c = 0; c < width; ++c) output[c] = output[c] * mine + other.output[c] * theirs;
  }

  Scalar log_sum_exp() const {
    if (*sum == 0) return -infinity;
    return *largest * static_cast<Scalar>(ln_2 * Units::binary) + std::log(*sum);
  }

 private:
  /// -inf - (-inf) is NaN, so a query that has seen no key subtracts 0.
  Scalar shift() const { return *largest == -infinity ? 0 : *largest; }

  /// Raises `largest` to the score given; what was accumulated before is due the result.
  Scalar raise(Scalar score) const {
    const Scalar before = *largest;
    *largest = std::max(before, score);
    return std::exp2((before - shift()) * static_cast<Scalar>(Units::binary));
  }
};

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
concept FeaturesAlike = !requires(const Similarity& s) {
  s.weight;
}
&&!requires(const Similarity& s) { s.width; };

}  // namespace heed::detail
