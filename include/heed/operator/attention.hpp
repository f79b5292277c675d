#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>

#include "heed/core/alias.hpp"
#include "heed/core/error.hpp"
#include "heed/core/ragged.hpp"
#include "heed/core/view.hpp"
#include "heed/engine/dispatch.hpp"
#include "heed/engine/ragged.hpp"
#include "heed/policy/mask/range.hpp"
#include "heed/policy/options.hpp"
#include "heed/policy/score/dot_product.hpp"

namespace heed {

/// What attention_with_weights gives.
template <class Output, class Weights>
struct WeightedAttention {
  Output output;
  /// (..., queries, keys), before dropout; rows sum to 1, to less beside a sink, to 0 where empty.
  Weights weights;
};

/// What attention_forward gives and attention_backward takes.
template <class Output, class LogSumExp>
struct AttentionPass {
  Output output;
  /// (..., queries), of ragged batches (total) or (total, heads): log of the sum over keys of
  /// e^score; -infinity if none
  LogSumExp log_sum_exp;
};

namespace detail {

template <class Q, class K, class V, class S, class M>
auto attend(const char* function, const Q& q, const K& k, const V& v, const S& score, const M& mask,
            const AttentionOptions& options) {
  check_types<Q, K, V, S, M>();
  using Call = CallOf<Q, K, V>;
  const Call call(function, q, k, v);
  decltype(call.make_output()) output;
  call.run(score, mask, options, [&] {
    output = call.make_output();
    return ForwardOutput<typename Call::Element, typename Call::Number>{Call::wide(output), {}};
  });
  return output;
}

/// What a result of the given shape is written to, as rank 4: refused where its shape is another,
/// where elements of it overlap, and where it shares elements with an input.
template <class Call, class Out, std::size_t Rank>
auto result_target(const Call& call, Out& out, const std::array<Index, Rank>& shape,
                   const char* name) {
  call.check_tokens(out, name);
  const auto target = tokens(out);
  static_assert(!std::is_const_v<std::remove_pointer_t<decltype(target.data)>>,
                "heed: the output cannot be written to");
  static_assert(decltype(target)::Rank == Rank, "heed: the output has the rank of the query");
  const char* function = call.problem.function;
  if (target.shape != shape) {
    fail(function, name, " has shape ", target.shape, ", but attention gives ", shape);
  }
  const auto wide = Call::wide(target);
  check_writable(function, wide, name);
  call.for_each_input([&](const auto& input, const char* input_name) {
    check_not_aliased(function, wide, input, input_name, name);
  });
  return wide;
}

}  // namespace detail

/// Writes attention (see below) into `out`, a tensor, matrix, map, block or View of the output's
/// shape that shares no elements with the inputs or with what score and mask refer to, or such
/// tokens of a ragged batch. A second call of one shape allocates nothing.
template <class Out, class Q, class K, class V, class S = DotProduct, class M = NoMask>
void attention_into(Out&& out, const Q& q, const K& k, const V& v,
                    const S& score = scaled_dot_product(), const M& mask = no_mask(),
                    const AttentionOptions& options = {}) {
  detail::check_types<Q, K, V, S, M>();
  const detail::CallOf<Q, K, V> call("attention_into", q, k, v);
  const auto wide = detail::result_target(call, out, call.output_shape(), "the output");
  using Element = std::remove_pointer_t<decltype(wide.data)>;
  using Number = typename detail::CallOf<Q, K, V>::Number;
  call.run(score, mask, options, [&] { return detail::ForwardOutput<Element, Number>{wide, {}}; });
}

/// softmax over keys of score(query_i, key_j) where mask allows (i, j), times value.
///
///   query (..., queries, query_dim), key (..., keys, key_dim), value (..., keys, value_dim)
///   -> (..., queries, value_dim)
///
/// Rank 2 is (seq, dim), rank 3 (batch, seq, dim), rank 4 (batch, heads, seq, dim); the key heads
/// divide the query heads, and query head h reads key head h / (heads / kv_heads). float and double
/// run on the fused engine, as do half and bfloat16, with float sums; any other number type on the
/// reference engine. A query that no key is allowed to gets 0; what a mask hides never matters. The
/// fused engine holds scores that no modifier changes times log2(e): a key whose score is below
/// -2^128 ln 2, about -2.36e38 (in double -2^1024 ln 2), counts as one of -infinity, of no weight.
///
/// Ragged batches are sequences one after another, without padding:
///
///   attention(ragged(q, q_offsets), ragged(k, k_offsets), ragged(v, k_offsets), ...)
///   q (total, heads, query_dim) -> (total, heads, value_dim), or without the heads
///
/// Scores, masks and dropout count queries and keys within the sequence, and `batch` is its number;
/// causal() goes by the sequence's own lengths. A bias, an allow() or other tensor over positions
/// has in each axis 1 or as many as the longest sequence, or more, and serves every sequence from
/// its first element on. The sequences share the pool's threads: neither a long one nor many short
/// ones hold up the others.
///
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
  using Call = detail::CallOf<Q, K, V>;
  const Call call("attention_forward", q, k, v);
  AttentionPass<decltype(call.make_output()), decltype(call.make_log_sum_exp())> pass;
  call.run(score, mask, options, [&] {
    pass.output = call.make_output();
    pass.log_sum_exp = call.make_log_sum_exp();
    return detail::ForwardOutput<typename Call::Element, typename Call::Number>{
        Call::wide(pass.output), Call::wide_rows(pass.log_sum_exp)};
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
  static_assert(!detail::is_ragged<Q>,
                "heed: the weights of a ragged batch are no tensor; take its sequences one by one");
  const detail::TensorCall<Q, K, V> call("attention_with_weights", q, k, v);
  WeightedAttention<decltype(call.make_output()), decltype(call.make_weights())> result;
  call.run_reference(score, mask, options, [&] {
    result.output = call.make_output();
    result.weights = call.make_weights();
    using Number = typename detail::TensorCall<Q, K, V>::Number;
    return detail::WeightedOutput<detail::ScalarOf<Q>, Number>{{detail::rank4(result.output), {}},
                                                               detail::rank4(result.weights)};
  });
  return result;
}

/// Writes attention into `out` and the weights of every pair into `weights`, (..., queries, keys),
/// each a tensor, matrix, map, block or View that shares no elements with the inputs, with what
/// score and mask refer to, or with the other.
template <class Out, class Weights, class Q, class K, class V, class S = DotProduct,
          class M = NoMask>
void attention_with_weights_into(Out&& out, Weights&& weights, const Q& q, const K& k, const V& v,
                                 const S& score = scaled_dot_product(), const M& mask = no_mask(),
                                 const AttentionOptions& options = {}) {
  constexpr const char* function = "attention_with_weights_into";
  detail::check_types<Q, K, V, S, M>();
  const detail::TensorCall<Q, K, V> call(function, q, k, v);
  const auto output = detail::result_target(call, out, call.output_shape(), "the output");
  const auto pairs = detail::result_target(call, weights, call.weights_shape(), "the weights");
  detail::check_not_aliased(function, output, pairs, "the weights");
  using Element = std::remove_pointer_t<decltype(output.data)>;
  using Weight = std::remove_pointer_t<decltype(pairs.data)>;
  using Number = typename detail::TensorCall<Q, K, V>::Number;
  call.run_reference(score, mask, options, [&] {
    return detail::WeightedOutput<Element, Number, Weight>{{output, {}}, pairs};
  });
}

/// The scores that attention takes the softmax of, after all modifiers, of q's number type:
/// (..., queries, keys). Those of pairs that the mask hides are -infinity, whose keys are not read.
/// Of the options the pool counts.
template <class Q, class K, class S = DotProduct, class M = NoMask>
auto attention_scores(const Q& q, const K& k, const S& score = scaled_dot_product(),
                      const M& mask = no_mask(), const AttentionOptions& options = {}) {
  detail::check_types<Q, K, K, S, M>();
  const detail::TensorCall<Q, K, K> call("attention_scores", q, k, k);
  decltype(call.make_weights()) scores;
  call.run_scores(score, mask, options, [&] {
    scores = call.make_weights();
    return detail::ScoreOutput<detail::ScalarOf<Q>>{detail::rank4(scores)};
  });
  return scores;
}

/// softmax(q k^T / sqrt(dim)) v over the pairs that the mask allows.
template <class Q, class K, class V, class M = NoMask>
auto scaled_dot_product_attention(const Q& q, const K& k, const V& v, const M& mask = no_mask(),
                                  const AttentionOptions& options = {}) {
  return detail::attend("scaled_dot_product_attention", q, k, v, scaled_dot_product(), mask,
                        options);
}

}  // namespace heed
