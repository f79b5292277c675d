#pragma once

#include <type_traits>
#include <utility>

#include "heed/core/alias.hpp"
#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/engine/call.hpp"
#include "heed/engine/dispatch.hpp"
#include "heed/operator/attention.hpp"
#include "heed/policy/mask/range.hpp"
#include "heed/policy/options.hpp"
#include "heed/policy/score/dot_product.hpp"

namespace heed {

/// Gradients by the query, key and value of a call, each of the shape of what it belongs to.
template <class Query, class Key, class Value>
struct AttentionGradients {
  Query query;
  Key key;
  Value value;
};
template <class Query, class Key, class Value>
AttentionGradients(Query, Key, Value) -> AttentionGradients<Query, Key, Value>;

namespace detail {

/// What a backward pass reads beside the inputs, as (batch, heads, queries[, value_dim]).
template <class Output, class LogSumExp, class GradOutput>
struct PassViews {
  View<const Output, 4> output;
  View<const LogSumExp, 3> log_sum_exp;
  View<const GradOutput, 4> grad_output;

  template <class Query, class Key, class Value>
  auto with(const View<Query, 4>& query, const View<Key, 4>& key,
            const View<Value, 4>& value) const {
    return BackwardOutput<Output, LogSumExp, GradOutput, Query, Key, Value>{
        output, log_sum_exp, grad_output, query, key, value};
  }
};

/// The pass and the gradient of its output, checked.
template <class Call, class Pass, class G>
auto pass_views(const Call& call, const Pass& pass, const G& grad_output) {
  static_assert(is_tensor_argument<TokensOf<const G>> &&
                    is_tensor_argument<std::remove_cvref_t<decltype(pass.output)>>,
                "heed: pass.output and grad_output are Eigen tensors, matrices or heed::Views");
  call.check_tokens(grad_output, "grad_output");
  const auto output = view(pass.output);
  const auto log_sum_exp = result_view(pass.log_sum_exp);
  const auto grad = tokens(grad_output);
  static_assert(decltype(output)::Rank == Call::rank && decltype(grad)::Rank == Call::rank,
                "heed: pass.output and grad_output have the rank of the query");
  static_assert(decltype(log_sum_exp)::Rank + 1 == Call::rank,
                "heed: pass.log_sum_exp has the rank of the query less one");
  check_not_integers<std::remove_cvref_t<decltype(pass.output)>, TokensOf<const G>>();
  check_pass_shapes(call, output, log_sum_exp, grad);
  return PassViews<typename decltype(output)::Scalar, typename decltype(log_sum_exp)::Scalar,
                   typename decltype(grad)::Scalar>{Call::wide(output),
                                                    Call::wide_rows(log_sum_exp), Call::wide(grad)};
}

}  // namespace detail

/// Writes the gradients (see attention_backward) into `gradients`, an AttentionGradients of
/// writable tensors, maps, blocks or Views of the inputs' shapes, which share no elements with one
/// another or with what is read, by score and mask as well. A second call of one shape allocates
/// nothing.
template <class Gradients, class Q, class K, class V, class Pass, class G, class S = DotProduct,
          class M = NoMask>
void attention_backward_into(Gradients&& gradients, const Q& q, const K& k, const V& v,
                             const Pass& pass, const G& grad_output,
                             const S& score = scaled_dot_product(), const M& mask = no_mask(),
                             const AttentionOptions& options = {}) {
  constexpr const char* function = "attention_backward_into";
  detail::check_types<Q, K, V, S, M>();
  using Call = detail::CallOf<Q, K, V>;
  const Call call(function, q, k, v);
  const auto views = detail::pass_views(call, pass, grad_output);
  const auto target = [&](auto& gradient, const auto& input, const char* name) {
    const auto to = detail::tokens(gradient);
    const auto shape = detail::tokens(input).shape;
    using Element = std::remove_pointer_t<decltype(to.data)>;
    static_assert(!std::is_const_v<Element>, "heed: a gradient cannot be written to");
    static_assert(decltype(to)::Rank == Call::rank,
                  "heed: the gradients have the rank of the inputs");
    if (to.shape != shape) {
      detail::fail(function, "gradients.", name, " has shape ", to.shape, ", but ", name, " has ",
                   shape);
    }
    return Call::wide(to);
  };
  const auto dq = target(gradients.query, q, "query");
  const auto dk = target(gradients.key, k, "key");
  const auto dv = target(gradients.value, v, "value");
  // (batch, heads, 1, queries)
  const auto log_sum_exp = detail::expand<4, 1>(views.log_sum_exp);
  const auto check = [&](const auto& out, const char* name) {
    detail::check_writable(function, out, name);
    detail::check_not_aliased(function, out, log_sum_exp, "pass.log_sum_exp", name);
    const auto against = [&](const auto& x, const char* x_name) {
      detail::check_not_aliased(function, out, x, x_name, name);
    };
    call.for_each_input(against);
    against(views.output, "pass.output");
    against(views.grad_output, "grad_output");
  };
  check(dq, "gradients.query");
  check(dk, "gradients.key");
  check(dv, "gradients.value");
  detail::check_not_aliased(function, dq, dk, "gradients.key", "gradients.query");
  detail::check_not_aliased(function, dq, dv, "gradients.value", "gradients.query");
  detail::check_not_aliased(function, dk, dv, "gradients.value", "gradients.key");
  call.run_backward(views, score, mask, options, [&] { return views.with(dq, dk, dv); });
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
/// the same for any number of threads. Of ragged batches, the pass and the gradients are tensors of
/// the inputs' shapes, and grad_output is one or ragged; gradients of parameters add up over the
/// sequences. Throws std::invalid_argument for shapes that do not fit and
/// for gradients that share elements with what is read, before anything is written.
/// (Dao et al., "FlashAttention", 2022, appendix B.)
template <class Q, class K, class V, class Pass, class G, class S = DotProduct, class M = NoMask>
auto attention_backward(const Q& q, const K& k, const V& v, const Pass& pass, const G& grad_output,
                        const S& score = scaled_dot_product(), const M& mask = no_mask(),
                        const AttentionOptions& options = {}) {
  detail::check_types<Q, K, V, S, M>();
  using Call = detail::CallOf<Q, K, V>;
  const Call call("attention_backward", q, k, v);
  const auto views = detail::pass_views(call, pass, grad_output);
  const auto like = [](const auto& x) { return detail::make_like(x); };
  AttentionGradients<decltype(like(q)), decltype(like(k)), decltype(like(v))> gradients;
  call.run_backward(views, score, mask, options, [&] {
    gradients = {like(q), like(k), like(v)};
    return views.with(Call::wide(gradients.query), Call::wide(gradients.key),
                      Call::wide(gradients.value));
  });
  return gradients;
}

}  // namespace heed
