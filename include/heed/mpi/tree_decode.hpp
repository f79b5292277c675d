#pragma once

#include <mpi.h>
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "heed/cache/attention.hpp"
#include "heed/cache/held.hpp"
#include "heed/core/unit.hpp"
#include "heed/core/view.hpp"
#include "heed/engine/call.hpp"
#include "heed/engine/dispatch.hpp"
#include "heed/mpi/agreement.hpp"
#include "heed/mpi/communicator.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/mask/range.hpp"
#include "heed/policy/options.hpp"
#include "heed/policy/problem.hpp"
#include "heed/policy/score/dot_product.hpp"
#include "heed/simd/real_index.hpp"

namespace heed {
namespace detail {

/// What a rank's cache holds of a sequence: tokens that stand `first` behind those of the ranks
/// before it.
struct CachePart {
  HeldTokens held;
  Index first;

  Index position(Index key) const { return first + held.position(key); }
  /// How many held tokens stand before a position in the whole sequence.
  Index before(Index position) const {
    return held.before(std::clamp<Index>(position - first, 0, held.length));
  }
};

/// A bound modifier of the pairs with a part's keys. A sink does not count: it joins what all parts
/// give, once.
template <class Number, class Modifier>
struct PartModifier {
  static constexpr ModifierTraits traits{.vectorised = modifier_traits<Modifier>.vectorised,
                                         .ignores_pair = modifier_traits<Modifier>.ignores_pair,
                                         .effect = modifier_traits<Modifier>.effect};
  const Modifier& whole;
  const std::vector<CachePart>& parts;

  template <class T>
  EIGEN_ALWAYS_INLINE T operator()(const T& score, Index b, Index h, const auto& i, Index j) const {
    using Real = RealIndex<Number>;
    return T(
        whole(score, Real{b}, Real{h}, i, Real{parts[static_cast<std::size_t>(b)].position(j)}));
  }
};

template <class Number, class Unit, class Similarity, class... Modifiers>
auto of_parts(const BoundScore<Unit, Similarity, Modifiers...>& score,
              const std::vector<CachePart>& parts) {
  return std::apply(
      [&](const auto&... modifier) {
        return BoundScore<Unit, Similarity, PartModifier<Number, Modifiers>...>{
            score.similarity, {PartModifier<Number, Modifiers>{modifier, parts}...}};
      },
      score.modifiers);
}

/// The user's mask, bound to each whole sequence, of a part's keys.
template <class M>
struct PartMask {
  using Bound = BoundMaskOf<M>;
  using Set = KeySetOf<Bound>;
  static constexpr MaskTraits traits = mask_traits<Bound>;
  const std::vector<CachePart>& parts;
  std::vector<Bound> masks;  // of each sequence

  Set row(Index b, Index h, Index i) const {
    const auto n = static_cast<std::size_t>(b);
    const Set seen = masks[n].row(b, h, i);
    Set keys;
    keys.exact = seen.exact;
    for (int range = 0; range < seen.count; ++range) {
      keys.append({parts[n].before(seen[range].begin), parts[n].before(seen[range].end)});
    }
    return keys;
  }
  bool allows(Index b, Index h, Index i, Index key) const {
    const auto n = static_cast<std::size_t>(b);
    return key < parts[n].held.count() && masks[n].allows(b, h, i, parts[n].position(key));
  }
};

/// Attention to some of the keys, a row of numbers for each query: log-sum-exp, the sum of the
/// weights e^(score - log-sum-exp), which begins as 1, and the output times that sum.
template <class Number>
struct PartRow {
  Number* numbers;
  Index width;

  static Index size(Index width) { return width + 2; }
  static PartRow in(Number* rows, Index row, Index width) {
    return {rows + row * size(width), width};
  }
  Number& largest() const { return numbers[0]; }
  Number& sum() const { return numbers[1]; }
  Number* output() const { return numbers + 2; }

  /// Takes in a set of keys whose row it is, or a key of this score whose value is 0.
  void merge(Number score, Number weights, const Number* other) const {
    using std::exp;
    constexpr Number infinity = std::numeric_limits<Number>::infinity();
    if (score == -infinity) return;
    const Number most = largest() > score ? largest() : score;
    const Number own = largest() == -infinity ? Number(0) : exp(largest() - most);
    const Number factor = exp(score - most);
    for (Index c = 0; c < width; ++c) {
      output()[c] = output()[c] * own + (other ? other[c] * factor : Number(0));
    }
    sum() = sum() * own + weights * factor;
    largest() = most;
  }

  /// The operation of MPI's: rows of a lower rank's keys, with those of a higher one's.
  static void reduce(void* lower, void* higher, int* count, MPI_Datatype* type) {
    int bytes = 0;
    MPI_Type_size(*type, &bytes);
    const Index size = bytes / static_cast<Index>(sizeof(Number)), width = size - 2;
    std::vector<Number> merged(static_cast<std::size_t>(size));
    for (int row = 0; row < *count; ++row) {
      const auto* const from = static_cast<const Number*>(lower) + row * size;
      auto* const to = static_cast<Number*>(higher) + row * size;
      std::copy(from, from + size, merged.begin());
      PartRow{merged.data(), width}.merge(to[0], to[1], to + 2);
      std::copy(merged.begin(), merged.end(), to);
    }
  }
};

/// Rows of all ranks, merged in the order of ranks, on every rank. Collective.
template <class Number>
void reduce_rows(const Communicator& ranks, std::vector<Number>& rows, Index width) {
  const Index size = PartRow<Number>::size(width);
  MPI_Datatype type = MPI_DATATYPE_NULL;
  MPI_Op operation = MPI_OP_NULL;
  constexpr int in_order = 0;  // does not commute
  ranks.check("MPI_Type_contiguous",
              MPI_Type_contiguous(static_cast<int>(size),
                                  std::is_same_v<Number, float> ? MPI_FLOAT : MPI_DOUBLE, &type));
  ranks.check("MPI_Type_commit", MPI_Type_commit(&type));
  ranks.check("MPI_Op_create", MPI_Op_create(&PartRow<Number>::reduce, in_order, &operation));
  const auto count = static_cast<int>(static_cast<Index>(rows.size()) / size);
  const int code = MPI_Allreduce(MPI_IN_PLACE, rows.data(), count, type, operation, ranks.get());
  MPI_Op_free(&operation);
  MPI_Type_free(&type);
  ranks.check("MPI_Allreduce", code);
}

template <class Q, class Cache, class S, class M>
auto tree_decode(const Q& q, const Cache& cache, MPI_Comm communicator, const S& score,
                 const M& mask, const AttentionOptions& options) {
  static_assert(Score<S>, "heed: the argument after the communicator is a score");
  static_assert(Mask<M>, "heed: the argument after the score is a mask");
  constexpr const char* function = "tree_decode";
  using Call = CacheCall<Q, Cache>;
  using Number = typename Call::Number;
  static_assert(Laned<Number>, "heed: numbers that travel are half, bfloat16, float or double");
  using Unit = BinaryUnit;
  using Row = PartRow<Number>;
  const Communicator ranks(function, communicator);
  Agreement agreement(ranks);
  std::optional<Call> call;
  CallNumbers numbers;
  std::vector<CachePart> parts;
  std::vector<Index> lengths, all;
  std::vector<Number> rows;
  decltype(call->make_output()) output;
  agreement.attempt([&] {
    call.emplace(function, q, cache);
    const Problem& p = call->problem;
    numbers.numbers = {static_cast<Index>(std::char_traits<char>::length(function)),
                       static_cast<Index>(Call::rank),
                       p.batch,
                       p.heads,
                       p.kv_heads,
                       p.queries,
                       0,  // each rank's cache has its own length
                       p.query_dim,
                       p.key_dim,
                       p.value_dim,
                       static_cast<Index>(sizeof(ScalarOf<Q>)),
                       0,
                       std::bit_cast<Index>(options.dropout),
                       std::bit_cast<Index>(options.seed)};
    all.resize(static_cast<std::size_t>(p.batch * ranks.size()));
    for (Index b = 0; b < p.batch; ++b) {
      lengths.push_back(cache.held(b).length);
      parts.push_back({cache.held(b), 0});
    }
    // One row more says whether a rank has failed.
    rows.resize(
        static_cast<std::size_t>((p.batch * p.heads * p.queries + 1) * Row::size(p.value_dim)),
        Number(0));
    output = call->make_output();
  });
  agreement.settle(numbers);

  const Problem& p = call->problem;
  const Index batch = p.batch, all_rows = batch * p.heads * p.queries;
  const int bytes = static_cast<int>(batch) * static_cast<int>(sizeof(Index));
  ranks.check("MPI_Allgather", MPI_Allgather(lengths.data(), bytes, MPI_BYTE, all.data(), bytes,
                                             MPI_BYTE, ranks.get()));
  Problem whole = call->positions;
  whole.keys = 0;
  for (Index b = 0; b < batch; ++b) {
    Index total = 0;
    for (Index rank = 0; rank < ranks.size(); ++rank) {
      if (rank == ranks.rank()) parts[static_cast<std::size_t>(b)].first = total;
      total += all[static_cast<std::size_t>(rank * batch + b)];
    }
    lengths[static_cast<std::size_t>(b)] = total;
    whole.keys = std::max(whole.keys, total);
  }

  const auto row_at = [&](Index row) { return Row::in(rows.data(), row, p.value_dim); };
  const auto bind = [&]<class U>(std::type_identity<U>) {
    return bind_score<Number, U>(score, whole);
  };
  using Natural = decltype(bind(std::type_identity<NaturalUnit>()));
  std::optional<Natural> natural;
  agreement.attempt([&] {
    natural.emplace(bind(std::type_identity<NaturalUnit>()));
    const auto in_unit = bind(std::type_identity<Unit>());
    const auto definition = of_parts<Number>(*natural, parts);
    const auto fused = of_parts<Number>(in_unit, parts);
    PartMask<M> part_mask{parts, {}};
    for (Index b = 0; b < batch; ++b) {
      Problem own = whole;
      own.keys = lengths[static_cast<std::size_t>(b)];
      part_mask.masks.push_back(bind_mask(mask, own));
    }
    const Dropout dropout(function, options.dropout, options.seed);
    const auto keys = cache.key_rows(p.keys);
    const auto values = cache.value_rows(p.keys);
    std::vector<Number> of_rows(static_cast<std::size_t>(all_rows));
    const Index size = Row::size(p.value_dim);
    const ForwardOutput<Number, Number> to{
        {rows.data() + 2,
         {batch, p.heads, p.queries, p.value_dim},
         {p.heads * p.queries * size, p.queries * size, size, 1}},
        {of_rows.data(), {batch, p.heads, p.queries}, {p.heads * p.queries, p.queries, 1}}};
    const auto run = [&](const Problem& own, const Dropout& from_here) {
      const BoundCall<ScalarOf<Q>, std::remove_const_t<decltype(keys)>,
                      std::remove_const_t<decltype(values)>, std::remove_const_t<decltype(fused)>,
                      std::remove_const_t<decltype(definition)>, PartMask<M>,
                      std::remove_const_t<decltype(to)>>
          of_part{own, call->query, keys, values, fused, definition, part_mask, from_here, to};
      run_first_that_suits<Decode, Forward, Reference>(of_part, options.pool);
    };
    if (all_rows == 0) return;
    if (!dropout.active()) {
      run(p, dropout);
    } else {
      Problem own = p;
      for (own.sequence = 0; own.sequence < batch; ++own.sequence) {
        const auto& part = parts[static_cast<std::size_t>(own.sequence)];
        run(own, dropout.from(0, part.first).with_gap(part.held.sinks, part.held.skipped));
      }
    }
    for (Index row = 0; row < all_rows; ++row) {
      row_at(row).largest() = of_rows[static_cast<std::size_t>(row)];
      row_at(row).sum() = 1;
    }
  });
  if (agreement.failed()) row_at(all_rows).largest() = Number(ranks.size() - ranks.rank());
  reduce_rows(ranks, rows, p.value_dim);
  agreement.settle(ranks.size() - static_cast<Index>(row_at(all_rows).largest()));

  const auto out = rank4(output);
  for (Index row = 0; row < all_rows; ++row) {
    const Row total = row_at(row);
    const Index b = row / p.queries / p.heads, h = row / p.queries % p.heads, i = row % p.queries;
    for_each_sink(natural->modifiers, h,
                  [&](Number logit) { total.merge(logit, Number(1), nullptr); });
    const bool empty = total.largest() == -std::numeric_limits<Number>::infinity();
    for (Index c = 0; c < p.value_dim; ++c) {
      out(b, h, i, c) =
          static_cast<ScalarOf<Q>>(empty ? Number(0) : total.output()[c] / total.sum());
    }
  }
  return output;
}

}  // namespace detail

/// Attention of new queries, the same on all ranks, to keys and values of which each rank's cache
/// holds a part: the ranks' sequences one after another, in the order of ranks, which may differ in
/// length. Gives on every rank what attention(q, cache) gives for a cache of the whole:
///
///   query (batch, heads, queries, query_dim) -> (batch, heads, queries, value_dim)
///
/// Positions, in scores and masks, are those in the whole sequence; under causal(), query i of n
/// stands at its length - n + i. A rank computes its part, and one reduction of (max, sum, output)
/// for each query follows, in the order of ranks: the result has the same bits on all ranks,
/// whatever the timing and the threads. Collective; where a rank fails, all throw and name it, as
/// in ring_attention. (Shyam et al., "Tree attention: topology-aware decoding for long-context
/// attention on GPU clusters", 2024.)
template <class Q, template <class> class Cache, class Element, class S = DotProduct>
  requires detail::KeyValueStore<Cache<Element>>
auto tree_decode(const Q& q, const Cache<Element>& cache, MPI_Comm communicator,
                 const S& score = scaled_dot_product(), const AttentionOptions& options = {}) {
  return detail::tree_decode(q, cache, communicator, score, no_mask(), options);
}
template <class Q, template <class> class Cache, class Element, class S, class M>
  requires(detail::KeyValueStore<Cache<Element>> && Mask<M>)
auto tree_decode(const Q& q, const Cache<Element>& cache, MPI_Comm communicator, const S& score,
                 const M& mask, const AttentionOptions& options = {}) {
  return detail::tree_decode(q, cache, communicator, score, mask, options);
}

}  // namespace heed
