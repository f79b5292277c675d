#pragma once

#include <mpi.h>
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstring>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/core/error.hpp"
#include "heed/core/key_source.hpp"
#include "heed/core/scratch.hpp"
#include "heed/core/unit.hpp"
#include "heed/core/view.hpp"
#include "heed/engine/call.hpp"
#include "heed/engine/dispatch.hpp"
#include "heed/mpi/agreement.hpp"
#include "heed/mpi/communicator.hpp"
#include "heed/mpi/layout.hpp"
#include "heed/mpi/placed.hpp"
#include "heed/mpi/traffic.hpp"
#include "heed/policy/dropout.hpp"
#include "heed/policy/options.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

/// What a call did on this rank.
struct RingReport {
  Index bytes_sent = 0;          ///< to other ranks
  double seconds_waited = 0;     ///< for messages that had not arrived when a round was computed
  Index chunk_pairs = 0;         ///< chunks of queries x chunks of keys that were computed
  Index hidden_chunk_pairs = 0;  ///< and those of which the mask hides all
};

namespace detail {

/// Rows first .. first + count-1 of a tensor.
template <class T, int Rank>
View<T, Rank> row_range(View<T, Rank> x, Index first, Index count) {
  x.data += first * x.strides[2];
  x.shape[2] = count;
  return x;
}

/// Numbers of a tensor one after the other.
template <class T>
View<T, 4> packed_view(T* data, const std::array<Index, 4>& shape) {
  return {data, shape, {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1}};
}

template <class From, class To>
void copy_tensor(const View<const From, 4>& from, const View<To, 4>& to) {
  for_each_row(from.shape, [&](Index b, Index h, Index i) {
    for (Index c = 0; c < from.shape[3]; ++c) to(b, h, i, c) = static_cast<To>(from(b, h, i, c));
  });
}

/// What keys and values of one chunk, or their gradients, are in memory and in a message.
template <class Key, class Value>
struct ChunkMemory {
  std::array<Index, 4> key_shape, value_shape;

  Index key_bytes() const { return bytes<Key>(key_shape); }
  Index bytes() const { return key_bytes() + bytes<Value>(value_shape); }
  View<Key, 4> keys(std::byte* chunk) const {
    return packed_view(reinterpret_cast<Key*>(chunk), key_shape);
  }
  View<Value, 4> values(std::byte* chunk) const {
    return packed_view(reinterpret_cast<Value*>(chunk + key_bytes()), value_shape);
  }

 private:
  template <class T>
  static Index bytes(const std::array<Index, 4>& shape) {
    return static_cast<Index>(Layout::rounded<T>(shape[0] * shape[1] * shape[2] * shape[3]));
  }
};

/// How far each chunk of keys and values travels, and which way round: to the farthest rank one of
/// whose queries may see it. Of the two ways the one with fewer steps for all chunks together,
/// which is upwards for causal masks over contiguous chunks, downwards for zigzag ones.
class Travel {
 public:
  /// `seen`: which chunks the queries of this rank see. Collective.
  Travel(const Communicator& ranks, const Chunks& keys, const std::vector<char>& seen)
      : ranks_(ranks.size()), rank_(ranks.rank()) {
    const auto chunks = static_cast<std::size_t>(keys.count());
    std::vector<int> own(2 * chunks, -1), farthest(2 * chunks);
    for (std::size_t c = 0; c < chunks; ++c) {
      if (!seen[c]) continue;
      const Index owner = keys.owner(static_cast<Index>(c));
      own[c] = static_cast<int>((rank_ - owner + ranks_) % ranks_);
      own[chunks + c] = static_cast<int>((owner - rank_ + ranks_) % ranks_);
    }
    ranks.check("MPI_Allreduce",
                MPI_Allreduce(own.data(), farthest.data(), static_cast<int>(2 * chunks), MPI_INT,
                              MPI_MAX, ranks.get()));
    Index steps[2] = {};
    for (std::size_t n = 0; n < 2 * chunks; ++n) steps[n / chunks] += std::max(farthest[n], 0);
    upwards_ = steps[0] <= steps[1];
    const auto half = static_cast<std::ptrdiff_t>(upwards_ ? 0 : chunks);
    hops_.assign(farthest.begin() + half,
                 farthest.begin() + half + static_cast<std::ptrdiff_t>(chunks));
  }

  /// Steps that a chunk makes, -1 where nobody sees it.
  Index hops(Index chunk) const { return hops_[static_cast<std::size_t>(chunk)]; }
  /// The rank that is `steps` on the way of the chunks from a rank.
  Index after(Index rank, Index steps) const {
    return (rank + (upwards_ ? steps : ranks_ - steps)) % ranks_;
  }
  /// To whom this rank sends, from whom it receives, and whose chunks it has in a round.
  Index next() const { return after(rank_, 1); }
  Index previous() const { return after(rank_, ranks_ - 1); }
  Index owner_in(Index round) const { return after(rank_, ranks_ - round); }

 private:
  Index ranks_, rank_;
  bool upwards_ = true;
  std::vector<int> hops_;
};

/// A call of attention whose queries and keys are split over ranks: the policies bound to the whole
/// sequences, and keys and values on their way round. In round t every rank has the chunks of the
/// rank t steps before it on the way, while those of round t + 1 arrive.
template <class Q, class K, class V, class S, class M>
class RingCall {
 public:
  using Local = TensorCall<Q, K, V>;
  using Number = typename Local::Number;
  using Element = typename Local::Element;
  using Unit = typename Local::FusedUnit;
  using Key = ScalarOf<K>;
  using Value = ScalarOf<V>;
  using Policies = ChunkPolicies<Number, Unit, S, M>;
  static_assert(Laned<Number>, "heed: numbers that travel are half, bfloat16, float or double");

  /// Checks and binds; `more` checks and lays out what else the call needs. Throws on all ranks
  /// where one of them does.
  template <class More>
  RingCall(const char* function, const Q& q, const K& k, const V& v, MPI_Comm communicator,
           SequenceLayout layout, const S& score, const M& mask, const AttentionOptions& options,
           const More& more)
      : ranks(function, communicator), agreement(ranks), traffic(ranks), pool(options.pool) {
    CallNumbers numbers;
    agreement.attempt([&] {
      local.emplace(function, q, k, v);
      const Problem& p = local->problem;
      numbers.numbers = {
          static_cast<Index>(std::strlen(function)),
          static_cast<Index>(Local::rank),
          p.batch,
          p.heads,
          p.kv_heads,
          p.queries,
          p.keys,
          p.query_dim,
          p.key_dim,
          p.value_dim,
          number_code<Element>() + 8 * number_code<Key>() + 64 * number_code<Value>(),
          static_cast<Index>(layout),
          std::bit_cast<Index>(options.dropout),
          std::bit_cast<Index>(options.seed)};
      check_layout(function, layout);
      queries = Chunks::of_piece(layout, ranks.size(), p.queries);
      keys = Chunks::of_piece(layout, ranks.size(), p.keys);
      check_divides(function, "the rank's piece of query", p.queries, queries.of_rank());
      check_divides(function, "the rank's piece of key", p.keys, keys.of_rank());
      dropout.emplace(function, options.dropout, options.seed);
      whole = p;
      whole.queries = queries.total();
      whole.keys = keys.total();
      whole.own_queries = p.queries;
      for (Index n = 0; n < queries.of_rank(); ++n) {
        const Index first = queries.first(queries.number(ranks.rank(), n));
        Problem of_chunk = whole;
        of_chunk.row_shift = first - n * queries.rows;
        policies.emplace_back(score, mask, of_chunk, PartsPlace{first, 0, queries.rows, keys.rows},
                              keys);
      }
      part = p;
      part.queries = queries.rows;
      part.keys = keys.rows;
      memory = {{p.batch, p.kv_heads, keys.rows, p.key_dim},
                {p.batch, p.kv_heads, keys.rows, p.value_dim}};
      const auto lay = [&](Layout& to) {
        for (auto& buffer : buffers) buffer = to.take<std::byte>(keys.of_rank() * memory.bytes());
        more(*this, to);
      };
      scratch.emplace(lay);
      for (Index n = 0; n < keys.of_rank(); ++n) {
        const Index first = n * keys.rows;
        copy_tensor(row_range(local->keys.tensor, first, keys.rows),
                    memory.keys(buffers[0] + n * memory.bytes()));
        copy_tensor(row_range(local->values.tensor, first, keys.rows),
                    memory.values(buffers[0] + n * memory.bytes()));
      }
    });
    agreement.settle(numbers);
    std::vector<char> seen(static_cast<std::size_t>(keys.count()), 0);
    for (const Policies& of_chunk : policies) {
      for (std::size_t c = 0; c < seen.size(); ++c) seen[c] = seen[c] || of_chunk.seen[c];
    }
    travel.emplace(ranks, keys, seen);
  }
  RingCall(const RingCall&) = delete;
  RingCall& operator=(const RingCall&) = delete;

  /// The rounds: before(round) begins more transfers, pair(query chunk, key chunk, its number, its
  /// memory) computes what the mask does not hide, after(round) has all that was under way.
  void run(const auto& before, const auto& pair, const auto& after) {
    for (Index round = 0; round < ranks.size(); ++round) {
      const Index owner = travel->owner_in(round);
      std::byte *const here = buffers[round % 2], *const there = buffers[(round + 1) % 2];
      if (round + 1 < ranks.size()) {
        for_each_traveller(travel->owner_in(round + 1), round + 1, [&](Index n) {
          traffic.receive(there + n * memory.bytes(), memory.bytes(), travel->previous(),
                          static_cast<int>(n));
        });
        for_each_traveller(owner, round + 1, [&](Index n) {
          traffic.send(here + n * memory.bytes(), memory.bytes(), travel->next(),
                       static_cast<int>(n));
        });
      }
      before(round);
      for (Index n = 0; n < queries.of_rank(); ++n) {
        Policies& of_chunk = policies[static_cast<std::size_t>(n)];
        for (Index m = 0; m < keys.of_rank(); ++m) {
          const Index number = keys.number(owner, m);
          if (!of_chunk.seen[static_cast<std::size_t>(number)] || part.batch * part.heads == 0) {
            ++report.hidden_chunk_pairs;
            continue;
          }
          ++report.chunk_pairs;
          agreement.attempt([&] {
            of_chunk.turn(keys.first(number));
            pair(n, m, here + m * memory.bytes());
          });
        }
      }
      traffic.wait();
      agreement.attempt([&] { traffic.check(); });
      after(round);
    }
  }

  /// Ends the call, on all ranks in one way or the other.
  void settle(RingReport* to) {
    agreement.settle();
    report.bytes_sent = traffic.bytes_sent();
    report.seconds_waited = traffic.seconds_waited();
    if (to) *to = report;
  }

  /// body(n) for the chunks of a rank that make a step number `step`.
  void for_each_traveller(Index owner, Index step, const auto& body) const {
    for (Index n = 0; n < keys.of_rank(); ++n) {
      if (travel->hops(keys.number(owner, n)) >= step) body(n);
    }
  }

  /// body(call) for a chunk of queries and one of keys, with the output given.
  template <class Output>
  void with_call(Index n, std::byte* chunk, const Output& output, const auto& body) const {
    const Policies& of_chunk = policies[static_cast<std::size_t>(n)];
    const View<const Element, 4> query = row_range(local->query, n * queries.rows, queries.rows);
    const ArrivedRows<Key> key_rows{{memory.keys(chunk)}, &traffic};
    const ArrivedRows<Value> value_rows{{memory.values(chunk)}, &traffic};
    const Dropout from_here = dropout->from(of_chunk.mask.place.query, of_chunk.mask.place.key);
    const BoundCall<Element, ArrivedRows<Key>, ArrivedRows<Value>, typename Policies::Score,
                    typename Policies::Definition, PlacedMask<BoundMaskOf<M>>, Output>
        call{part,          query,     key_rows, value_rows, of_chunk.score(), of_chunk.definition,
             of_chunk.mask, from_here, output};
    body(call);
  }

  Communicator ranks;
  Agreement agreement;
  Traffic traffic;
  Eigen::ThreadPoolInterface* pool;
  std::optional<Local> local;
  Chunks queries{}, keys{};
  Problem whole{}, part{};  // of all ranks; of a chunk of queries and one of keys
  std::optional<Dropout> dropout;
  std::vector<Policies> policies;
  ChunkMemory<Key, Value> memory{};
  std::byte* buffers[2] = {};
  std::optional<Scratch> scratch;
  std::optional<Travel> travel;
  RingReport report;

 private:
  template <class T>
  static constexpr Index number_code() {
    return static_cast<Index>(sizeof(T)) / 2 + (std::is_same_v<T, Eigen::bfloat16> ? 2 : 0);
  }
};

}  // namespace detail
}  // namespace heed
