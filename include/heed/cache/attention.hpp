#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <tuple>
#include <type_traits>

#include "heed/cache/held.hpp"
#include "heed/core/alias.hpp"
#include "heed/core/error.hpp"
#include "heed/core/unit.hpp"
#include "heed/core/view.hpp"
#include "heed/engine/dispatch.hpp"
#include "heed/operator/attention.hpp"
#include "heed/policy/mask/range.hpp"
#include "heed/policy/options.hpp"
#include "heed/policy/score/dot_product.hpp"

namespace heed {
namespace detail {

/// One call of attention over a cache, checked.
template <class Q, class Cache>
struct CacheCall : CallResults<Q, ScalarOf<Q>, rank_of<Q>> {
  using Results = CallResults<Q, ScalarOf<Q>, rank_of<Q>>;
  using Results::problem;  // of what is held of sequences
  using Results::query_shape;
  using Number = Accumulator<ScalarOf<Q>>;
  static constexpr std::size_t rank = rank_of<Q>;
  static_assert(is_tensor_argument<Q> && rank >= 2,
                "heed: query is an Eigen tensor, matrix or heed::View of a rank from 2 to 4");
  static_assert(std::is_same_v<Number, Accumulator<typename Cache::Element>>,
                "heed: query and cache are of one number type (half, bfloat16 and float mix)");

  View<const ScalarOf<Q>, 4> query;
  const Cache& cache;
  Problem positions;  // of whole sequences, the longest's: what masks and modifiers go by

  CacheCall(const char* function, const Q& q, const Cache& c)
      : Results{view(q).shape, check(function, view(q).shape, rank4(q).shape, c)},
        query(rank4(q)),
        cache(c),
        positions(problem) {
    check_not_integers<Q>();
    problem.keys = 0;
    for (Index b = 0; b < problem.batch; ++b) {
      problem.keys = std::max(problem.keys, c.held(b).count());
      positions.keys = std::max(positions.keys, c.held(b).length);
    }
  }

  /// The forward pass on the engine that suits. `make` gives the ForwardOutput, once all is
  /// checked.
  template <class S, class M, class Make>
  void run(const S& score, const M& mask, const AttentionOptions& options, const Make& make) const {
    static_assert(Score<S>, "heed: the argument after the cache is a score");
    static_assert(Mask<M>, "heed: the argument after the score is a mask");
    using Unit = std::conditional_t<Laned<Number>, BinaryUnit, NaturalUnit>;
    const auto natural = bind_score<Number, NaturalUnit>(score, positions);
    const auto in_unit = bind_score<Number, Unit>(score, positions);
    const HeldMask<M> held(mask, cache, positions);
    const Dropout dropout(problem.function, options.dropout, options.seed);
    const auto output = make();
    check_not_of_policies(problem.function, in_unit, mask, output.output);
    if (problem.batch * problem.heads * problem.queries == 0) return;
    const auto keys = cache.key_rows(problem.keys);
    const auto values = cache.value_rows(problem.keys);
    by_position<Number>(natural, held, [&](const auto& definition) {
      by_position<Number>(in_unit, held, [&](const auto& fused) {
        const auto attend = [&](const Problem& own, const Dropout& pattern) {
          const BoundCall<ScalarOf<Q>, std::remove_const_t<decltype(keys)>,
                          std::remove_const_t<decltype(values)>,
                          std::remove_cvref_t<decltype(fused)>,
                          std::remove_cvref_t<decltype(definition)>, HeldMask<M>,
                          std::remove_const_t<decltype(output)>>
              call{own, query, keys, values, fused, definition, held, pattern, output};
          run_first_that_suits<Decode, Forward, Reference>(call, options.pool);
        };
        if (!dropout.active()) return attend(problem, dropout);
        Problem own = problem;  // dropout goes by position, and each sequence lacks its own
        for (own.sequence = 0; own.sequence < problem.batch; ++own.sequence) {
          const HeldTokens& tokens = held.held(own.sequence);
          attend(own, dropout.with_gap(tokens.sinks, tokens.skipped));
        }
      });
    });
  }

 private:
  static Problem check(const char* function, const std::array<Index, rank>& shape,
                       const std::array<Index, 4>& wide, const Cache& cache) {
    check_extents(function, "query", shape);
    const CacheExtents has = cache.extents();
    if (wide[0] != has.batch) {
      fail(function, "query and cache differ in batch (axis 0): ", wide[0], " and ", has.batch,
           "; query is ", shape);
    }
    if (has.kv_heads == 0 ? wide[1] != 0 : wide[1] % has.kv_heads != 0) {
      fail(function, has.kv_heads, " key heads of the cache do not divide ", wide[1],
           " query heads (axis 1); query is ", shape);
    }
    return {function, wide[0], wide[1],     has.kv_heads,  wide[2],
            0,        wide[3], has.key_dim, has.value_dim, rank};
  }
};

}  // namespace detail

/// Writes attention over a cache (see below) into `out`, of the output's shape, which shares no
/// elements with the query or with what score and mask refer to. A second call of one shape
/// allocates nothing.
template <class Out, class Q, template <class> class Cache, class Element, class S = DotProduct,
          class M = NoMask>
  requires detail::KeyValueStore<Cache<Element>>
void attention_into(Out&& out, const Q& q, const Cache<Element>& cache,
                    const S& score = scaled_dot_product(), const M& mask = no_mask(),
                    const AttentionOptions& options = {}) {
  const detail::CacheCall<Q, Cache<Element>> call("attention_into", q, cache);
  const auto target = view(out);
  using To = std::remove_pointer_t<decltype(target.data)>;
  static_assert(!std::is_const_v<To>, "heed: the output cannot be written to");
  static_assert(decltype(target)::Rank == detail::rank_of<Q>,
                "heed: the output has the rank of the query");
  if (target.shape != call.output_shape()) {
    detail::fail("attention_into", "the output has shape ", target.shape, ", but attention gives ",
                 call.output_shape());
  }
  const auto wide = detail::expand<4, 2>(target);
  detail::check_writable("attention_into", wide, "the output");
  detail::check_not_aliased("attention_into", wide, call.query, "query");
  using Number = typename detail::CacheCall<Q, Cache<Element>>::Number;
  call.run(score, mask, options, [&] { return detail::ForwardOutput<To, Number>{wide, {}}; });
}

/// Attention of new queries to all that a cache holds:
///
///   query (batch, heads, queries, query_dim) -> (batch, heads, queries, value_dim)
///
/// or, where the cache has one head, (batch, queries, query_dim), and without a batch (queries,
/// query_dim). Gives what attention over the whole sequence of appended keys and values gives,
/// under the same score and mask, with what has been evicted hidden. Keys keep their positions in
/// the sequence, and each sequence its own length: under causal(), query i of n stands at
/// length - n + i. Dropout goes by the place among the keys that are held. The queries' own tokens
/// are appended before they attend.
template <class Q, template <class> class Cache, class Element, class S = DotProduct,
          class M = NoMask>
  requires detail::KeyValueStore<Cache<Element>>
auto attention(const Q& q, const Cache<Element>& cache, const S& score = scaled_dot_product(),
               const M& mask = no_mask(), const AttentionOptions& options = {}) {
  const detail::CacheCall<Q, Cache<Element>> call("attention", q, cache);
  using Number = typename detail::CacheCall<Q, Cache<Element>>::Number;
  decltype(call.make_output()) output;
  call.run(score, mask, options, [&] {
    output = call.make_output();
    return detail::ForwardOutput<detail::ScalarOf<Q>, Number>{detail::rank4(output), {}};
  });
  return output;
}

/// Attention over a cache together with the log-sum-exp of each query's scores.
/// -> {output, log_sum_exp}
template <class Q, template <class> class Cache, class Element, class S = DotProduct,
          class M = NoMask>
  requires detail::KeyValueStore<Cache<Element>>
auto attention_forward(const Q& q, const Cache<Element>& cache,
                       const S& score = scaled_dot_product(), const M& mask = no_mask(),
                       const AttentionOptions& options = {}) {
  const detail::CacheCall<Q, Cache<Element>> call("attention_forward", q, cache);
  using Number = typename detail::CacheCall<Q, Cache<Element>>::Number;
  AttentionPass<decltype(call.make_output()), decltype(call.make_log_sum_exp())> pass;
  call.run(score, mask, options, [&] {
    pass.output = call.make_output();
    pass.log_sum_exp = call.make_log_sum_exp();
    return detail::ForwardOutput<detail::ScalarOf<Q>, Number>{
        detail::rank4(pass.output), detail::expand<3, 1>(detail::result_view(pass.log_sum_exp))};
  });
  return pass;
}

}  // namespace heed
