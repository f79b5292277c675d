#pragma once

#include <cstdint>
#include <utility>

#include "heed/core/alias.hpp"
#include "heed/core/error.hpp"
#include "heed/core/scratch.hpp"
#include "heed/core/view.hpp"
#include "heed/module/initialiser.hpp"
#include "heed/module/linear.hpp"
#include "heed/module/pass.hpp"
#include "heed/operator/attention.hpp"
#include "heed/operator/attention_backward.hpp"
#include "heed/policy/mask/range.hpp"
#include "heed/policy/options.hpp"
#include "heed/policy/score/additive.hpp"

namespace heed {

/// What a pass through AdditiveAttention gives, of the number type of the query, and the projected
/// key of that of the key; all but the output is what backward needs.
template <class Scalar, class Q, class K, class V, class M>
struct AdditivePass {
  ModuleInputs<Q, K, V, M> inputs;
  detail::ResultLike<Scalar, Q> projected_query;             ///< (..., queries, hidden)
  detail::ResultLike<detail::ScalarOf<K>, K> projected_key;  ///< (..., keys, hidden)
  detail::ResultLike<Scalar, Q> output;                      ///< (..., queries, value_dim)
  /// (..., queries)
  detail::ResultLike<detail::Accumulator<Scalar>, Q, detail::rank_of<Q> - 1> log_sum_exp;
};

/// score(q, k) = w^T tanh(W_q q + W_k k), for queries and keys of different widths (Bahdanau, Cho
/// and Bengio, 2015). A Scalar of float, double, half, bfloat16 or the user's own; weights may be
/// narrower than activations (see Linear).
template <class Scalar>
struct AdditiveAttention {
  Linear<Scalar> query_projection;  ///< (hidden, query_dim), no bias
  Linear<Scalar> key_projection;    ///< (hidden, key_dim), no bias
  Vector<Scalar> score_weight;      ///< (hidden)

  AdditiveAttention() = default;
  /// Xavier weights from the seed, drawn in the order of the members.
  AdditiveAttention(Index query_dim, Index key_dim, Index hidden_dim, std::uint64_t seed = 0) {
    if (query_dim < 1 || key_dim < 1 || hidden_dim < 1) {
      detail::fail("AdditiveAttention", "query_dim ", query_dim, ", key_dim ", key_dim,
                   " and hidden_dim ", hidden_dim, " must be positive");
    }
    detail::Initialiser initialiser(seed);
    query_projection = initialiser.linear<Scalar>(query_dim, hidden_dim, false);
    key_projection = initialiser.linear<Scalar>(key_dim, hidden_dim, false);
    score_weight.resize(hidden_dim);
    initialiser.xavier(hidden_dim, 1, score_weight.data(), hidden_dim);
  }

  /// query (..., queries, query_dim), key (..., keys, key_dim), value (..., keys, value_dim) of
  /// rank 2 to 4 -> (..., queries, value_dim). Errors as in attention and Linear, and where weights
  /// do not fit one another.
  template <class Q, class K, class V, class M = NoMask>
  auto operator()(const Q& q, const K& k, const V& v, const M& mask = no_mask(),
                  const AttentionOptions& options = {}) const {
    check_weights("AdditiveAttention");
    return attention(query_projection(q, options.pool), key_projection(k, options.pool), v,
                     additive(score_weight), mask, options);
  }

  /// Writes that into out, of its shape, which shares no elements with an input, a parameter or the
  /// mask. A
  /// second call of one shape allocates nothing.
  template <class Out, class Q, class K, class V, class M = NoMask>
  void into(Out&& out, const Q& q, const K& k, const V& v, const M& mask = no_mask(),
            const AttentionOptions& options = {}) const {
    constexpr const char* function = "AdditiveAttention";
    detail::check_types<Q, K, V, DotProduct, M>();
    check_weights(function);
    const auto projected = [&](const char* name, auto shape, const Linear<Scalar>& projection) {
      detail::check_extents(function, name, shape);
      shape.back() = projection.out_features();
      detail::check_extents(function, name, shape);
      return shape;
    };
    const auto query_shape = projected("query", view(q).shape, query_projection),
               key_shape = projected("key", view(k).shape, key_projection);
    auto shape = view(q).shape;
    shape.back() = view(v).shape.back();
    const auto target = detail::module_target(function, out, shape);
    detail::check_not_aliased(function, target, detail::rank4(q), "query");
    detail::check_not_aliased(function, target, detail::rank4(k), "key");
    detail::check_not_parameters(function, target, query_projection);
    detail::check_not_parameters(function, target, key_projection);
    View<detail::ScalarOf<Q>, detail::rank_of<Q>> query;
    View<detail::ScalarOf<K>, detail::rank_of<K>> key;
    const detail::Scratch scratch([&](detail::Layout& layout) {
      query = detail::take_tensor<detail::ScalarOf<Q>>(layout, query_shape);
      key = detail::take_tensor<detail::ScalarOf<K>>(layout, key_shape);
    });
    query_projection.into(query, q, options.pool);
    key_projection.into(key, k, options.pool);
    attention_into(view(out), query, key, v, additive(score_weight), mask, options);
  }

  /// -> {output, weights}; weights (..., queries, keys)
  template <class Q, class K, class V, class M = NoMask>
  auto forward_with_weights(const Q& q, const K& k, const V& v, const M& mask = no_mask(),
                            const AttentionOptions& options = {}) const {
    check_weights("AdditiveAttention");
    return attention_with_weights(query_projection(q, options.pool),
                                  key_projection(k, options.pool), v, additive(score_weight), mask,
                                  options);
  }

  /// The pass keeps what backward needs; q, k and v must outlive it.
  template <class Q, class K, class V, class M = NoMask>
  auto forward(const Q& q, const K& k, const V& v, const M& mask = no_mask(),
               const AttentionOptions& options = {}) const {
    check_weights("AdditiveAttention");
    auto query = query_projection(q, options.pool);
    auto key = key_projection(k, options.pool);
    auto pass = attention_forward(query, key, v, additive(score_weight), mask, options);
    return AdditivePass<detail::ScalarOf<Q>, Q, K, V, M>{{view(q), view(k), view(v), mask, options},
                                                         std::move(query),
                                                         std::move(key),
                                                         std::move(pass.output),
                                                         std::move(pass.log_sum_exp)};
  }
  template <class Q, class K, class V, class... Rest>
    requires(detail::OwningTemporary<Q> || detail::OwningTemporary<K> || detail::OwningTemporary<V>)
  void forward(Q&&, K&&, V&&, Rest&&...) const = delete;  // it would end before backward: name it

  /// The gradients of a number that depends on the output of a pass through this module, given its
  /// gradient by the output -> {query, key, value, parameters}; parameters is an AdditiveAttention.
  /// Runs on the threads of the pass. std::invalid_argument where grad_output has not the output's
  /// shape, or where the pass is from a module of other widths.
  template <class Element, class Q, class K, class V, class M, class G>
  auto backward(const AdditivePass<Element, Q, K, V, M>& pass, const G& grad_output) const {
    constexpr const char* function = "AdditiveAttention::backward";
    const auto& in = pass.inputs;
    check_weights(function);
    detail::check_projected(function, "query", in.query, pass.projected_query, query_projection);
    detail::check_projected(function, "key", in.key, pass.projected_key, key_projection);
    detail::check_output_gradient(function, pass.output, grad_output);

    auto result = in.make_gradients(AdditiveAttention());
    auto& parameters = result.parameters;
    using Accumulate = detail::Accumulator<Scalar>;
    Vector<Accumulate> weight = Vector<Accumulate>::Zero(score_weight.size());
    auto query = pass.projected_query;
    auto key = pass.projected_key;
    attention_backward_into(AttentionGradients<decltype(view(query)), decltype(view(key)),
                                               decltype(view(result.value))>{view(query), view(key),
                                                                             view(result.value)},
                            pass.projected_query, pass.projected_key, in.value, pass, grad_output,
                            additive(score_weight, weight), in.mask, in.options);
    parameters.score_weight = weight.template cast<Scalar>();
    query_projection.backward_into(result.query, parameters.query_projection, in.query, query,
                                   in.options.pool);
    key_projection.backward_into(result.key, parameters.key_projection, in.key, key,
                                 in.options.pool);
    return result;
  }

  /// What for_each_parameter goes through.
  static void members(const auto& visit, auto&... self) {
    visit("query_projection", self.query_projection...);
    visit("key_projection", self.key_projection...);
    visit("score_weight", self.score_weight...);
  }

 private:
  void check_weights(const char* function) const {
    const Index hidden = score_weight.size();
    if (hidden == 0) detail::fail(function, "the module has no weights: score_weight is empty");
    detail::check_projection(function, "query_projection", query_projection, hidden,
                             query_projection.in_features());
    detail::check_projection(function, "key_projection", key_projection, hidden,
                             key_projection.in_features());
  }
};

}  // namespace heed
