#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "heed/core/error.hpp"
#include "heed/core/key_source.hpp"
#include "heed/core/ragged.hpp"
#include "heed/core/schedule.hpp"
#include "heed/core/scratch.hpp"
#include "heed/core/unit.hpp"
#include "heed/core/view.hpp"
#include "heed/engine/backward/loop.hpp"
#include "heed/engine/backward/sink.hpp"
#include "heed/engine/call.hpp"
#include "heed/engine/decode.hpp"
#include "heed/engine/dispatch.hpp"
#include "heed/engine/forward.hpp"
#include "heed/engine/reference/backward.hpp"
#include "heed/engine/reference/forward.hpp"
#include "heed/policy/dropout.hpp"
#include "heed/policy/options.hpp"
#include "heed/policy/problem.hpp"

namespace heed::detail {

/// About how long the one sequence of a call takes, in pairs of a query and a key: from the keys
/// that its first, its middle and its last query see. Part of it is for what does not depend on
/// keys.
template <class Call>
Index work_of(const Call& call) {
  const Problem& p = call.problem;
  Index seen = 0;
  if (p.heads * p.queries > 0) {
    for (const Index query : {Index(0), (p.queries - 1) / 2, p.queries - 1}) {
      const auto set = call.mask.row(p.sequence, 0, query);
      for (int n = 0; n < set.count; ++n) seen += set[n].end - set[n].begin;
    }
  }
  return 1 + p.heads * p.queries * (seen / 3 + 16);
}

inline Index work_of_piece(Index work, Index pieces) {
  return work / std::max<Index>(pieces, 1) + 1;
}

/// The forward pass of all sequences: `with(b, body)` calls body with the call of sequence b, which
/// the first of the engines that suits it runs. Pieces of all sequences are one pool of work.
template <template <class> class... Engines>
void run_sequences(Index count, const auto& with, Eigen::ThreadPoolInterface* pool) {
  const auto engine_of = [&with](Index b, const auto& body) {
    with(b, [&body](const auto& call) {
      if (call.problem.queries == 0) return;
      with_first_that_suits<Engines...>(call, [&](const auto& engine) { body(call, engine); });
    });
  };
  const Index threads = pool ? pool->NumThreads() : 1;
  if (threads <= 1) {
    for (Index b = 0; b < count; ++b) {
      engine_of(b, [](const auto&, const auto& engine) { engine.run(0, engine.pieces()); });
    }
    return;
  }
  WorkPart* parts = nullptr;
  const Scratch scratch([&](Layout& layout) { parts = layout.take<WorkPart>(count); });
  Index total = 0;
  for (Index b = 0; b < count; ++b) {
    parts[b] = {b, 0, 1, 0};
    engine_of(b, [&](const auto& call, const auto& engine) {
      const Index work = work_of(call), pieces = engine.pieces();
      parts[b] = {b, pieces, work_of_piece(work, pieces), 0};
      total += work;
    });
  }
  // A piece that would hold up all others is shared by the whole pool, where its engine knows how.
  for (Index b = 0; b < count; ++b) {
    if (parts[b].weight <= total / (threads * 4)) continue;
    engine_of(b, [&]<class Engine>(const auto&, const Engine& engine) {
      if constexpr (OnPool<Engine>) {
        engine.run(pool);
        parts[b].pieces = 0;
      }
    });
  }
  parallel_for_parts(pool, parts, count, [&](Index b, Index first, Index last) {
    engine_of(b, [&](const auto&, const auto& engine) { engine.run(first, last); });
  });
}

/// The backward pass of all sequences, each of a `Call`. Keys and values belong to one sequence;
/// the gradients of parameters add up over all, in the order of the sequences.
template <class Call>
void run_sequences_back(Index count, const auto& with, Eigen::ThreadPoolInterface* pool) {
  using Engine = Backward<Call>;
  using Number = typename Call::Number;
  // Sequences one after another, where they add to the same numbers or not all suit.
  const auto one_by_one = [&] {
    for (Index b = 0; b < count; ++b) {
      with(b, [pool](const Call& call) {
        run_first_that_suits<Backward, ReferenceBackward>(call, pool);
      });
    }
  };
  if constexpr (!Engine::possible) {
    one_by_one();
  } else {
    bool together = true;
    Index total = 0;
    for (Index b = 0; b < count && together; ++b) {
      with(b, [&](const Call& call) {
        together = Engine::suits(call) && Engine(call).apart();
        total += work_of(call);
      });
    }
    if (!together) return one_by_one();

    const auto engine_of = [&](Index b, const auto& body) {
      with(b, [&](const Call& call) {
        const Index work = work_of(call);
        body(work, Engine(call, total / work));
      });
    };
    Index pieces = 0, partial_numbers = 0, parameter_numbers = 0;
    for (Index b = 0; b < count; ++b) {
      engine_of(b, [&](Index, const Engine& engine) {
        pieces += engine.pieces();
        partial_numbers += engine.partial_numbers();
        parameter_numbers = engine.parameter_numbers();
      });
    }
    struct Place {
      Index piece, partial;
    };
    WorkPart* parts = nullptr;
    Place* places = nullptr;
    Number *parameters = nullptr, *partials = nullptr;
    const Scratch scratch([&](Layout& layout) {
      parts = layout.take<WorkPart>(count);
      places = layout.take<Place>(count);
      parameters = layout.take<Number>(pieces * parameter_numbers);
      partials = layout.take<Number>(partial_numbers);
    });
    std::fill(parameters, parameters + pieces * parameter_numbers, Number(0));
    Place at{0, 0};
    for (Index b = 0; b < count; ++b) {
      engine_of(b, [&](Index work, const Engine& engine) {
        parts[b] = {b, engine.pieces(), work_of_piece(work, engine.pieces()), 0};
        places[b] = at;
        at.piece += engine.pieces();
        at.partial += engine.partial_numbers();
      });
    }
    parallel_for_parts(pool, parts, count, [&](Index b, Index first, Index last) {
      engine_of(b, [&](Index, const Engine& engine) {
        engine.run(first, last, parameters + places[b].piece * parameter_numbers,
                   partials + places[b].partial);
      });
    });
    if (partial_numbers > 0) {
      for (Index b = 0; b < count; ++b) {
        engine_of(b, [&](Index, const Engine& engine) { parts[b] = {b, engine.key_runs(), 1, 0}; });
      }
      parallel_for_parts(pool, parts, count, [&](Index b, Index first, Index last) {
        engine_of(b, [&](Index, const Engine& engine) {
          engine.add_partials(first, last, partials + places[b].partial);
        });
      });
    }
    if (count > 0) {
      engine_of(0, [&](Index, const Engine& engine) { engine.add_parameters(parameters, pieces); });
    }
  }
}

/// One call of attention over ragged batches, checked. Each sequence is a call of its own extents,
/// of the types that a call over tensors has: scores are bound once, to the longest queries and
/// keys, and the mask to each sequence, which it knows by its number in the batch.
template <class Q, class K, class V>
struct RaggedCall
    : CallResults<typename Q::Like, ScalarOf<TokensOf<const Q>>, rank_of<TokensOf<const Q>>> {
  using Element = ScalarOf<TokensOf<const Q>>;
  using KeyElement = ScalarOf<TokensOf<const K>>;
  using ValueElement = ScalarOf<TokensOf<const V>>;
  using Number = Accumulator<Element>;
  using FusedUnit = std::conditional_t<Laned<Number>, BinaryUnit, NaturalUnit>;
  static constexpr std::size_t rank = rank_of<TokensOf<const Q>>;
  using Results = CallResults<typename Q::Like, Element, rank>;
  using Results::problem;  // of the longest queries and keys
  using Results::query_shape;
  template <class T>
  using OffsetsOf =
      SequenceOffsets<typename IntegerView<std::remove_cvref_t<decltype(T::offsets)>>::Scalar>;

  View<const Element, 4> query;  // (1, heads, total, dim)
  TensorRows<KeyElement> keys;
  TensorRows<ValueElement> values;
  OffsetsOf<Q> query_offsets;
  OffsetsOf<K> key_offsets;
  OffsetsOf<V> value_offsets;

  RaggedCall(const char* function, const Q& q, const K& k, const V& v)
      : Results{tokens(q).shape,
                check(function, tokens(q).shape, tokens(k).shape, tokens(v).shape)},
        query(token_heads(tokens(q))),
        keys{token_heads(tokens(k))},
        values{token_heads(tokens(v))},
        query_offsets(offsets(function, "query", q)),
        key_offsets(offsets(function, "key", k)),
        value_offsets(offsets(function, "value", v)) {
    check_count(function, "key", key_offsets.count(), "value", value_offsets.count());
    check_count(function, "query", query_offsets.count(), "key", key_offsets.count());
    problem.batch = query_offsets.count();
    for (Index b = 0; b < problem.batch; ++b) {
      if (key_offsets.begin(b) != value_offsets.begin(b)) {
        fail(function, "the offsets of key and value differ at offset ", b, ": ",
             key_offsets.begin(b), " and ", value_offsets.begin(b));
      }
      // Between queries without keys and keys without queries there are no distances.
      if (query_offsets.size(b) == 0 || key_offsets.size(b) == 0) continue;
      problem.queries = std::max(problem.queries, query_offsets.size(b));
      problem.keys = std::max(problem.keys, key_offsets.size(b));
    }
  }

  /// A tensor of the query's rank, and numbers for its rows, as (1, heads, total[, dim]).
  template <class T>
  static auto wide(T& x) {
    return token_heads(tokens(x));
  }
  template <class T>
  static auto wide_rows(T& x) {
    return token_rows(result_view(x));
  }

  /// Refuses ragged tokens of other sequences than the queries'.
  template <class T>
  void check_tokens(const T& x, const char* name) const {
    if constexpr (is_ragged<T>) {
      const auto others = offsets(problem.function, name, x);
      check_count(problem.function, name, others.count(), "query", problem.batch);
      for (Index b = 0; b < problem.batch; ++b) {
        if (others.begin(b) != query_offsets.begin(b)) {
          fail(problem.function, "the offsets of ", name, " and query differ at offset ", b, ": ",
               others.begin(b), " and ", query_offsets.begin(b));
        }
      }
    }
  }

  /// check(view, name) for everything that is read beside the policies.
  void for_each_input(const auto& check) const {
    check(query, "query");
    check(keys.tensor, "key");
    check(values.tensor, "value");
    check(spread(query_offsets.offsets), "the offsets of query");
    check(spread(key_offsets.offsets), "the offsets of key");
    check(spread(value_offsets.offsets), "the offsets of value");
  }

  /// As TensorCall's.
  template <class S, class M, class Make>
  void run(const S& score, const M& mask, const AttentionOptions& options, const Make& make) const {
    bind(score, mask, options, make,
         [&]<class Call>(std::type_identity<Call>, const auto& with, const auto& in_unit,
                         const auto& output) {
           check_not_of_policies(problem.function, in_unit, mask, output.output);
           if (problem.heads == 0) return;
           run_sequences<Decode, Forward, Reference>(problem.batch, with, options.pool);
         });
  }
  template <class Pass, class S, class M, class Make>
  void run_backward(const Pass& pass, const S& score, const M& mask,
                    const AttentionOptions& options, const Make& make) const {
    bind(score, mask, options, make,
         [&]<class Call>(std::type_identity<Call>, const auto& with, const auto& in_unit,
                         const auto& output) {
           check_gradients(*this, in_unit, mask, pass, output);
           run_sequences_back<Call>(problem.batch, with, options.pool);
           for (Index b = 0; Call::Definition::trains_modifiers && b < problem.batch; ++b) {
             with(b, [](const Call& call) { add_sink_gradients(call); });
           }
         });
  }

 private:
  template <class T>
  static auto offsets(const char* function, const char* name, const T& ragged) {
    return OffsetsOf<T>(function, name, integer_view(ragged.offsets), tokens(ragged).shape[0]);
  }

  static void check_count(const char* function, const char* a, Index of_a, const char* b,
                          Index of_b) {
    if (of_a != of_b) {
      fail(function, a, " and ", b, " differ in batch: their offsets are of ", of_a, " and ", of_b,
           " sequences");
    }
  }

  static Problem check(const char* function, const std::array<Index, rank>& q,
                       const std::array<Index, rank>& k, const std::array<Index, rank>& v) {
    check_extents(function, "query", q);
    check_extents(function, "key", k);
    check_extents(function, "value", v);
    const auto require_equal = [&](std::size_t axis, const char* name) {
      if (k[axis] != v[axis]) {
        fail(function, "key and value differ in ", name, " (axis ", static_cast<Index>(axis),
             "): ", k[axis], " and ", v[axis], "; key is ", k, ", value is ", v);
      }
    };
    require_equal(0, "their number of keys");
    Problem problem{function, 0, 1, 1, 0, 0, q[rank - 1], k[rank - 1], v[rank - 1]};
    problem.ragged = true;
    if constexpr (rank == 3) {
      require_equal(1, "heads");
      problem.heads = q[1];
      problem.kv_heads = k[1];
      check_heads(problem, q, k);
    }
    return problem;
  }

  /// The extents of one sequence.
  Problem sequence(Index b) const {
    Problem own = problem;
    own.sequence = b;
    own.queries = query_offsets.size(b);
    own.keys = key_offsets.size(b);
    return own;
  }

  template <class E, class N>
  ForwardOutput<E, N> part(const ForwardOutput<E, N>& of, Index b, const Problem& own) const {
    const Index first = query_offsets.begin(b);
    ForwardOutput<E, N> result{token_range(of.output, first, own.queries), {}};
    if (of.log_sum_exp.data) result.log_sum_exp = token_range(of.log_sum_exp, first, own.queries);
    return result;
  }
  template <class O, class L, class G, class DQ, class DK, class DV>
  BackwardOutput<O, L, G, DQ, DK, DV> part(const BackwardOutput<O, L, G, DQ, DK, DV>& of, Index b,
                                           const Problem& own) const {
    const Index first = query_offsets.begin(b), first_key = key_offsets.begin(b);
    return {token_range(of.output, first, own.queries),
            token_range(of.log_sum_exp, first, own.queries),
            token_range(of.grad_output, first, own.queries),
            token_range(of.query, first, own.queries),
            token_range(of.key, first_key, own.keys),
            token_range(of.value, first_key, own.keys)};
  }

  /// Binds the policies, which is where they are checked, makes the output, then calls
  /// body(type of a sequence's call, with, score, output), where with(b, then) calls then with the
  /// call of sequence b.
  template <class S, class M, class Make, class Body>
  void bind(const S& score, const M& mask, const AttentionOptions& options, const Make& make,
            const Body& body) const {
    with_scores<Number, FusedUnit>(
        score, problem, [&](const auto& in_unit, const auto& definition) {
          using Bound = BoundMaskOf<M>;
          if (problem.batch == 0) static_cast<void>(bind_mask(mask, problem));
          for (Index b = 0; b < problem.batch; ++b) static_cast<void>(bind_mask(mask, sequence(b)));
          const Dropout dropout(problem.function, options.dropout, options.seed);
          const auto output = make();
          using Call = BoundCall<Element, TensorRows<KeyElement>, TensorRows<ValueElement>,
                                 std::remove_cvref_t<decltype(in_unit)>,
                                 std::remove_cvref_t<decltype(definition)>, Bound,
                                 std::remove_const_t<decltype(output)>>;
          const auto with = [&](Index b, const auto& then) {
            const Problem own = sequence(b);
            const Bound bound = bind_mask(mask, own);
            const auto own_query = token_range(query, query_offsets.begin(b), own.queries);
            const Index first_key = key_offsets.begin(b);
            const TensorRows<KeyElement> own_keys{token_range(keys.tensor, first_key, own.keys)};
            const TensorRows<ValueElement> own_values{
                token_range(values.tensor, first_key, own.keys)};
            const auto own_output = part(output, b, own);
            then(Call{own, own_query, own_keys, own_values, in_unit, definition, bound, dropout,
                      own_output});
          };
          body(std::type_identity<Call>(), with, in_unit, output);
        });
  }
};

/// One call of attention, over tensors or over ragged batches.
template <class Q, class K, class V>
struct CallType {
  using type = TensorCall<Q, K, V>;
};
template <class Q, class K, class V>
  requires is_ragged<Q>
struct CallType<Q, K, V> {
  using type = RaggedCall<Q, K, V>;
};
template <class Q, class K, class V>
using CallOf = typename CallType<Q, K, V>::type;

}  // namespace heed::detail
