#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "heed/core/alias.hpp"
#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/engine/dispatch.hpp"
#include "heed/policy/mask/range.hpp"
#include "heed/policy/options.hpp"
#include "heed/policy/score/dot_product.hpp"

namespace heed {

template <class Output, class Weights>
struct WeightedAttention {
  Output output;
  Weights weights;  ///< (..., queries, keys), before dropout; rows sum to 1, or to 0 where empty
};

template <class Output, class LogSumExp>
struct AttentionPass {
  Output output;
  LogSumExp
      log_sum_exp;  ///< (..., queries): log of the sum over keys of e^score; -infinity if none
};

namespace detail {

template <class Q, class K, class V, class S, class M>
auto attend(const char* function, const Q& q, const K& k, const V& v, const S& score, const M& mask,
            const AttentionOptions& options) {
  check_types<Q, K, V, S, M>();
  const TensorCall<Q, K, V> call(function, q, k, v);
  decltype(call.make_output()) output;
  call.run(score, mask, options, [&] {
    output = call.make_output();
    return ForwardOutput<ScalarOf<Q>, typename TensorCall<Q, K, V>::Number>{rank4(output), {}, {}};
  });
  return output;
}

}  // namespace detail

/// Writes attention (see below) into `out`, a tensor, matrix, map, block or View of the output's
/// shape that shares no elements with the inputs. A second call of one shape allocates nothing.
template <class Out, class Q, class K, class V, class S = DotProduct, class M = NoMask>
void attention_into(Out&& out, const Q& q, const K& k, const V& v,
                    const S& score = scaled_dot_product(), const M& mask = no_mask(),
                    const AttentionOptions& options = {}) {
  detail::check_types<Q, K, V, S, M>();
  const auto target = view(out);
  using Element = std::remove_pointer_t<decltype(target.data)>;
  static_assert(!std::is_const_v<Element>, "heed: the output cannot be written to");
  static_assert(decltype(target)::Rank == detail::rank_of<Q>,
                "heed: the output has the rank of the query");
  const detail::TensorCall<Q, K, V> call("attention_into", q, k, v);
  if (target.shape != call.output_shape()) {
    detail::fail("attention_into", "the output has shape ", target.shape, ", but attention gives ",
                 call.output_shape());
  }
  const auto wide = detail::expand<4, 2>(target);
  detail::check_writable("attention_into", wide, "the output");
  call.for_each_input([&](const auto& input, const char* name) {
    detail::check_not_aliased("attention_into", wide, input, name);
  });
  using Number = typename detail::TensorCall<Q, K, V>::Number;
  call.run(score, mask, options,
           [&] { return detail::ForwardOutput<Element, Number>{wide, {}, {}}; });
}

/// softmax over keys of score(query_i, key_j) where mask allows (i, j), times value.
///
///   query (..., queries, query_dim), key (..., keys, key_dim), value (..., keys, value_dim)
///   -> (..., queries, value_dim)
///
/// Rank 2 is (seq, dim), rank 3 (batch, seq, dim), rank 4 (batch, heads, seq, dim); the key heads
/// divide the query heads, and query head h reads key head h / (heads / kv_heads). float and double
/// run on the fused engine, as do half and bfloat16, with float sums; any other number type on the
/// reference engine. A query that no key is allowed to gets 0; what a mask hides never matters.
/// Throws std::invalid_argument for shapes, lengths or options that do not fit, before any work.
/// (Vaswani et al., "Attention is all you need", 2017; the fused loop follows Dao et al.,
/// "FlashAttention", 2022.)
template <class Q, class K, class V, class S = DotProduct, class M = NoMask>
auto attention(const Q& q, const K& k, const V& v, const S& score = scaled_dot_product(),
               const M& mask = no_mask(), const AttentionOptions& options = {}) {
  return detail::attend("attention", q, k, v, score, mask, options);
}

/// Attention together with the log-sum-exp of each query's scores, which merge and the backward
/// pass need. -> {output, log_sum_exp}
template <class Q, class K, class V, class S = DotProduct, class M = NoMask>
auto attention_forward(const Q& q, const K& k, const V& v, const S& score = scaled_dot_product(),
                       const M& mask = no_mask(), const AttentionOptions& options = {}) {
  detail::check_types<Q, K, V, S, M>();
  const detail::TensorCall<Q, K, V> call("attention_forward", q, k, v);
  AttentionPass<decltype(call.make_output()), decltype(call.make_log_sum_exp())> pass;
  call.run(score, mask, options, [&] {
    pass.output = call.make_output();
    pass.log_sum_exp = call.make_log_sum_exp();
    using Number = typename detail::TensorCall<Q, K, V>::Number;
    return detail::ForwardOutput<detail::ScalarOf<Q>, Number>{
        detail::rank4(pass.output),
        detail::expand<3, 1>(detail::result_view(pass.log_sum_exp)),
        {}};
  });
  return pass;
}

/// Attention with the weights of every pair, (..., queries, keys), by the reference engine.
/// -> {output, weights}
template <class Q, class K, class V, class S = DotProduct, class M = NoMask>
auto attention_with_weights(const Q& q, const K& k, const V& v,
                            const S& score = scaled_dot_product(), const M& mask = no_mask(),
                            const AttentionOptions& options = {}) {
  detail::check_types<Q, K, V, S, M>();
  const detail::TensorCall<Q, K, V> call("attention_with_weights", q, k, v);
  WeightedAttention<decltype(call.make_output()), decltype(call.make_weights())> result;
  call.run_reference(score, mask, options, [&] {
    result.output = call.make_output();
    result.weights = call.make_weights();
    using Number = typename detail::TensorCall<Q, K, V>::Number;
    return detail::ForwardOutput<detail::ScalarOf<Q>, Number>{
        detail::rank4(result.output), {}, detail::rank4(result.weights)};
  });
  return result;
}

/// softmax(q k^T / sqrt(dim)) v over the pairs that the mask allows.
template <class Q, class K, class V, class M = NoMask>
auto scaled_dot_product_attention(const Q& q, const K& k, const V& v, const M& mask = no_mask(),
                                  const AttentionOptions& options = {}) {
  return detail::attend("scaled_dot_product_attention", q, k, v, scaled_dot_product(), mask,
                        options);
}

}  // namespace heed
