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

template <class Query, class Key, class Value>
struct AttentionGradients {
  Query query;
  Key key;
  Value value;
};
template <class Query, class Key, class Value>
AttentionGradients(Query, Key, Value) -> AttentionGradients<Query, Key, Value>;

namespace detail {

template <class Q, class K, class V, class S, class M>
auto attend(const char* function, const Q& q, const K& k, const V& v, const S& score, const M& mask,
            const AttentionOptions& options) {
  check_types<Q, K, V, S, M>();
  const Call<Q, K, V> call(function, q, k, v);
  decltype(call.make_output()) output;
  call.run(score, mask, options, [&] {
    output = call.make_output();
    return std::pair(rank4(output), View<typename Call<Q, K, V>::Accumulate, 3>{});
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
  const detail::Call<Q, K, V> call("attention_into", q, k, v);
  if (target.shape != call.output_shape()) {
    detail::fail("attention_into", "the output has shape ", target.shape, ", but attention gives ",
                 call.output_shape());
  }
  const auto wide = detail::expand<4, 2>(target);
  detail::check_not_aliased("attention_into", wide, call.in.query, "query");
  detail::check_not_aliased("attention_into", wide, call.in.key, "key");
  detail::check_not_aliased("attention_into", wide, call.in.value, "value");
  using Accumulate = typename detail::Call<Q, K, V>::Accumulate;
  call.run(score, mask, options, [&] { return std::pair(wide, View<Accumulate, 3>{}); });
}

/// softmax over keys of score(query_i, key_j) where mask allows (i, j), times value.
///
///   query (..., queries, query_dim), key (..., keys, key_dim), value (..., keys, value_dim)
///   -> (..., queries, value_dim)
///
/// Rank 2 is (seq, dim), rank 3 (batch, seq, dim), rank 4 (batch, heads, seq, dim); the key heads
/// divide the query heads, and query head h reads key head h / (heads / kv_heads). float and double
/// run on the fused engine, as do half and bfloat16, with float sums; any other number type on the
/// materialised one. A query that no key is allowed to gets 0; what a mask hides never matters.
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
  const detail::Call<Q, K, V> call("attention_forward", q, k, v);
  AttentionPass<decltype(call.make_output()), decltype(call.make_log_sum_exp())> pass;
  call.run(score, mask, options, [&] {
    pass.output = call.make_output();
    pass.log_sum_exp = call.make_log_sum_exp();
    return std::pair(detail::rank4(pass.output),
                     detail::expand<3, 1>(detail::result_view(pass.log_sum_exp)));
  });
  return pass;
}

/// Attention with the weights of every pair, (..., queries, keys), by the materialised engine.
/// -> {output, weights}
template <class Q, class K, class V, class S = DotProduct, class M = NoMask>
auto attention_with_weights(const Q& q, const K& k, const V& v,
                            const S& score = scaled_dot_product(), const M& mask = no_mask(),
                            const AttentionOptions& options = {}) {
  detail::check_types<Q, K, V, S, M>();
  using Scalar = detail::ScalarOf<Q>;
  const detail::Call<Q, K, V> call("attention_with_weights", q, k, v);
  using Accumulate = typename detail::Call<Q, K, V>::Accumulate;
  WeightedAttention<decltype(call.make_output()), decltype(call.make_output())> result;
  call.with_policies(score, mask, options, 1.0,
                     [&](const auto& bound_score, const auto& bound_mask, const auto& dropout) {
                       result.output = call.make_output();
                       result.weights = detail::make_result<Scalar, Q>(call.weights_shape());
                       detail::materialised(call.problem, call.in, bound_score, bound_mask, dropout,
                                            options.pool, detail::rank4(result.output),
                                            detail::rank4(result.weights), View<Accumulate, 3>{});
                     });
  return result;
}

namespace detail {

/// The pass and the gradient of its output as the engines take them; both checked.
template <class Call, class Pass, class G>
auto pass_views(const Call& call, const Pass& pass, const G& grad_output) {
  static_assert(
      is_tensor_argument<G> && is_tensor_argument<std::remove_cvref_t<decltype(pass.output)>>,
      "heed: pass.output and grad_output are Eigen tensors, matrices or heed::Views");
  const auto output = view(pass.output);
  const auto log_sum_exp = result_view(pass.log_sum_exp);
  const auto grad = view(grad_output);
  static_assert(decltype(output)::Rank == Call::rank && decltype(grad)::Rank == Call::rank,
                "heed: pass.output and grad_output have the rank of the query");
  static_assert(decltype(log_sum_exp)::Rank + 1 == Call::rank,
                "heed: pass.log_sum_exp has the rank of the query less one");
  call.check_pass(output, log_sum_exp, grad);
  return PassViews<typename decltype(output)::Scalar, typename decltype(log_sum_exp)::Scalar,
                   typename decltype(grad)::Scalar>{expand<4, 2>(output), expand<3, 1>(log_sum_exp),
                                                    expand<4, 2>(grad)};
}

}  // namespace detail

/// Writes the gradients (see attention_backward) into `gradients`, an AttentionGradients of
/// writable tensors, maps, blocks or Views of the inputs' shapes, which share no elements with one
/// another or with what is read. A second call of one shape allocates nothing.
template <class Gradients, class Q, class K, class V, class Pass, class G, class S = DotProduct,
          class M = NoMask>
void attention_backward_into(Gradients&& gradients, const Q& q, const K& k, const V& v,
                             const Pass& pass, const G& grad_output,
                             const S& score = scaled_dot_product(), const M& mask = no_mask(),
                             const AttentionOptions& options = {}) {
  constexpr const char* function = "attention_backward_into";
  detail::check_types<Q, K, V, S, M>();
  const detail::Call<Q, K, V> call(function, q, k, v);
  const auto views = detail::pass_views(call, pass, grad_output);
  const auto target = [&](auto& gradient, const auto& input, const char* name) {
    const auto to = view(gradient);
    using Element = std::remove_pointer_t<decltype(to.data)>;
    static_assert(!std::is_const_v<Element>, "heed: a gradient cannot be written to");
    static_assert(decltype(to)::Rank == detail::Call<Q, K, V>::rank,
                  "heed: the gradients have the rank of the inputs");
    if (to.shape != view(input).shape) {
      detail::fail(function, "gradients.", name, " has shape ", to.shape, ", but ", name, " has ",
                   view(input).shape);
    }
    return detail::expand<4, 2>(to);
  };
  const auto dq = target(gradients.query, q, "query");
  const auto dk = target(gradients.key, k, "key");
  const auto dv = target(gradients.value, v, "value");
  call.run_backward(views, score, mask, options, [&](const auto& inputs) {
    const auto check = [&](const auto& out, const char* name) {
      inputs([&](const auto& x, const char* x_name) {
        detail::check_not_aliased(function, out, x, x_name, name);
      });
    };
    check(dq, "gradients.query");
    check(dk, "gradients.key");
    check(dv, "gradients.value");
    detail::check_not_aliased(function, dq, dk, "gradients.key", "gradients.query");
    detail::check_not_aliased(function, dq, dv, "gradients.value", "gradients.query");
    detail::check_not_aliased(function, dk, dv, "gradients.value", "gradients.key");
    return detail::GradientViews<typename decltype(dq)::Scalar, typename decltype(dk)::Scalar,
                                 typename decltype(dv)::Scalar>{dq, dk, dv};
  });
}

/// The gradients of a number that depends on attention's output, given its gradient by the output:
///
///   pass         what attention_forward gave for the same arguments
///   grad_output  (..., queries, value_dim)
///   -> {query, key, value}, each of the shape and the number type of its input
///
/// Probabilities are computed again from log_sum_exp; no queries x keys matrix is held. To
/// parameters that were given with a place for their gradient, as in additive(w, dw), the gradient
/// is added there. Dropout drops what it dropped in the pass, given the same options. A query that
/// no key is allowed to gets 0 and gives nothing; what a mask hides never matters. The result is
/// the same for any number of threads. Throws std::invalid_argument for shapes that do not fit and
/// for gradients that share elements with what is read, before anything is written.
/// (Dao et al., "FlashAttention", 2022, appendix B.)
template <class Q, class K, class V, class Pass, class G, class S = DotProduct, class M = NoMask>
auto attention_backward(const Q& q, const K& k, const V& v, const Pass& pass, const G& grad_output,
                        const S& score = scaled_dot_product(), const M& mask = no_mask(),
                        const AttentionOptions& options = {}) {
  detail::check_types<Q, K, V, S, M>();
  const detail::Call<Q, K, V> call("attention_backward", q, k, v);
  const auto views = detail::pass_views(call, pass, grad_output);
  const auto like = [](const auto& x) {
    using T = std::remove_cvref_t<decltype(x)>;
    return detail::make_result<detail::ScalarOf<T>, T>(view(x).shape);
  };
  AttentionGradients<decltype(like(q)), decltype(like(k)), decltype(like(v))> gradients;
  call.run_backward(views, score, mask, options, [&](const auto&) {
    gradients = {like(q), like(k), like(v)};
    return detail::GradientViews<detail::ScalarOf<Q>, detail::ScalarOf<K>, detail::ScalarOf<V>>{
        detail::rank4(gradients.query), detail::rank4(gradients.key),
        detail::rank4(gradients.value)};
  });
  return gradients;
}

/// softmax(q k^T / sqrt(dim)) v over the pairs that the mask allows.
template <class Q, class K, class V, class M = NoMask>
auto scaled_dot_product_attention(const Q& q, const K& k, const V& v, const M& mask = no_mask(),
                                  const AttentionOptions& options = {}) {
  return detail::attend("scaled_dot_product_attention", q, k, v, scaled_dot_product(), mask,
                        options);
}

/// One pass over the union of two disjoint sets of keys, from the passes over each:
/// weights in proportion to e^log_sum_exp. std::invalid_argument where the shapes differ.
template <class Output, class LogSumExp>
AttentionPass<Output, LogSumExp> merge(const AttentionPass<Output, LogSumExp>& a,
                                       const AttentionPass<Output, LogSumExp>& b) {
  using std::exp, std::log;
  if (view(a.output).shape != view(b.output).shape) {
    detail::fail("merge", "the outputs have shapes ", view(a.output).shape, " and ",
                 view(b.output).shape);
  }
  AttentionPass<Output, LogSumExp> result = a;
  const auto a_lse = detail::expand<3, 1>(detail::result_view(a.log_sum_exp));
  const auto b_lse = detail::expand<3, 1>(detail::result_view(b.log_sum_exp));
  const auto lse = detail::expand<3, 1>(detail::result_view(result.log_sum_exp));
  const auto b_out = detail::rank4(b.output);
  const auto out = detail::rank4(result.output);
  using Scalar = typename decltype(out)::Scalar;
  using Accumulate = typename decltype(lse)::Scalar;
  const Accumulate zero(0.0), infinity(std::numeric_limits<double>::infinity());
  for (Index n = 0; n < out.shape[0]; ++n) {
    for (Index h = 0; h < out.shape[1]; ++h) {
      for (Index i = 0; i < out.shape[2]; ++i) {
        const Accumulate x = a_lse(n, h, i), y = b_lse(n, h, i);
        // -infinity is an empty set: nothing to merge, and -inf - (-inf) would be NaN.
        if (y == -infinity) continue;
        const Accumulate larger = x > y ? x : y;
        const Accumulate from_a = x == -infinity ? zero : Accumulate(exp(Accumulate(x - larger)));
        const Accumulate from_b = exp(Accumulate(y - larger));
        const Accumulate total = from_a + from_b;
        lse(n, h, i) = larger + Accumulate(log(total));
        for (Index c = 0; c < out.shape[3]; ++c) {
          out(n, h, i, c) =
              static_cast<Scalar>((static_cast<Accumulate>(out(n, h, i, c)) * from_a +
                                   static_cast<Accumulate>(b_out(n, h, i, c)) * from_b) /
                                  total);
        }
      }
    }
  }
  return result;
}

}  // namespace heed
