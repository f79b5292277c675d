#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/module/initialiser.hpp"
#include "heed/module/linear.hpp"
#include "heed/module/pass.hpp"
#include "heed/operator/attention.hpp"
#include "heed/operator/attention_backward.hpp"
#include "heed/policy/mask/range.hpp"
#include "heed/policy/options.hpp"
#include "heed/policy/score/dot_product.hpp"

namespace heed {

struct MultiHeadConfig {
  Index embed_dim = 0;     ///< width of queries and outputs
  Index num_heads = 1;     ///< divides embed_dim, unless head_dim is given
  Index num_kv_heads = 0;  ///< divides num_heads; 0: num_heads
  Index key_dim = 0;       ///< width of the keys given; 0: embed_dim
  Index value_dim = 0;     ///< width of the values given; 0: embed_dim
  bool bias = false;       ///< whether all four projections begin with a bias
  Index head_dim = 0;      ///< width of a head; 0: embed_dim / num_heads
};

/// What a pass through MultiHeadAttention gives; all but the output is what backward needs.
template <class Scalar, class Q, class K, class V, class M>
struct MultiHeadPass {
  ModuleInputs<Q, K, V, M> inputs;
  detail::ResultLike<Scalar, Q> output;
  Tensor<Scalar, 3> query, key, value;  ///< projected, (batch, seq, heads * dim)
  Tensor<Scalar, 3> context;  ///< (batch, queries, heads * dim), before the last projection
  Tensor<detail::Accumulator<Scalar>, 3> log_sum_exp;  ///< (batch, heads, queries)

  explicit MultiHeadPass(ModuleInputs<Q, K, V, M> given) : inputs(std::move(given)) {}
};

/// Heads of scaled dot-product attention side by side, each on its own projection of the input
/// (Vaswani et al., 2017), with fewer key/value heads if wanted (Ainslie et al., "GQA", 2023).
template <class Scalar>
struct MultiHeadAttention {
  Linear<Scalar> query_projection;   ///< (num_heads * head_dim, embed_dim)
  Linear<Scalar> key_projection;     ///< (num_kv_heads * head_dim, key_dim)
  Linear<Scalar> value_projection;   ///< (num_kv_heads * head_dim, value_dim)
  Linear<Scalar> output_projection;  ///< (embed_dim, num_heads * head_dim)

  MultiHeadAttention() = default;
  /// Xavier weights from the seed, drawn in the order of the members; biases start at 0.
  /// std::invalid_argument where heads do not divide.
  explicit MultiHeadAttention(const MultiHeadConfig& given, std::uint64_t seed = 0)
      : config_(given) {
    if (config_.num_kv_heads == 0) config_.num_kv_heads = config_.num_heads;
    if (config_.key_dim == 0) config_.key_dim = config_.embed_dim;
    if (config_.value_dim == 0) config_.value_dim = config_.embed_dim;
    const auto& c = config_;
    if (c.embed_dim < 1 || c.num_heads < 1 || c.num_kv_heads < 1 || c.key_dim < 1 ||
        c.value_dim < 1) {
      detail::fail("MultiHeadAttention", "embed_dim ", c.embed_dim, ", num_heads ", c.num_heads,
                   ", num_kv_heads ", c.num_kv_heads, ", key_dim ", c.key_dim, " and value_dim ",
                   c.value_dim, " must be positive");
    }
    if (c.head_dim < 0) detail::fail("MultiHeadAttention", "head_dim is ", c.head_dim);
    if (c.head_dim == 0) {
      if (c.embed_dim % c.num_heads != 0) {
        detail::fail("MultiHeadAttention", "num_heads ", c.num_heads, " does not divide embed_dim ",
                     c.embed_dim, "; head_dim may be given in place of it");
      }
      config_.head_dim = c.embed_dim / c.num_heads;
    }
    if (c.num_heads % c.num_kv_heads != 0) {
      detail::fail("MultiHeadAttention", "num_kv_heads ", c.num_kv_heads,
                   " does not divide num_heads ", c.num_heads);
    }
    const Index widest = std::max({c.embed_dim, c.key_dim, c.value_dim});
    detail::check_extents("MultiHeadAttention",
                          "a weight of (num_heads, head_dim, width of inputs)",
                          std::array{c.num_heads, c.head_dim, widest});
    detail::Initialiser initialiser(seed);
    query_projection = initialiser.linear<Scalar>(c.embed_dim, width(), c.bias);
    key_projection = initialiser.linear<Scalar>(c.key_dim, kv_width(), c.bias);
    value_projection = initialiser.linear<Scalar>(c.value_dim, kv_width(), c.bias);
    output_projection = initialiser.linear<Scalar>(width(), c.embed_dim, c.bias);
  }

  /// As given, with the defaults filled in.
  const MultiHeadConfig& config() const { return config_; }

  /// query (batch, queries, embed_dim), key (batch, keys, key_dim), value (batch, keys, value_dim),
  /// or all without batch -> the shape of the query. The mask sees (batch, head, query, key).
  /// std::invalid_argument where shapes or mask do not fit, or weights that were assigned do not
  /// fit the configuration; a bias may be there or not.
  template <class Q, class K, class V, class M = NoMask>
  auto operator()(const Q& q, const K& k, const V& v, const M& mask = no_mask(),
                  const AttentionOptions& options = {}) const {
    return forward(q, k, v, mask, options).output;
  }

  /// -> {output, weights}; weights (batch, heads, queries, keys), without batch where the query has
  /// none.
  template <class Q, class K, class V, class M = NoMask>
  auto forward_with_weights(const Q& q, const K& k, const V& v, const M& mask = no_mask(),
                            const AttentionOptions& options = {}) const {
    check_inputs("MultiHeadAttention", q, k, v);
    detail::check_extents("MultiHeadAttention", "the matrix of weights",
                          std::array{as_batch(view(q)).shape[0], config_.num_heads,
                                     as_batch(view(q)).shape[1], as_batch(view(k)).shape[1]});
    auto pass = project(q, k, v, mask, options);
    const auto call = make_call(pass);
    constexpr std::size_t rank = detail::rank_of<Q>;
    using Weights =
        decltype(detail::make_result<Scalar, Q>(std::declval<std::array<Index, rank + 1>>()));
    WeightedAttention<decltype(pass.output), Weights> result;
    call.run_reference(scaled_dot_product(), mask, options, [&] {
      std::array<Index, rank + 1> shape;
      const auto full = call.weights_shape();
      std::copy(full.end() - static_cast<std::ptrdiff_t>(rank + 1), full.end(), shape.begin());
      result.weights = detail::make_result<Scalar, Q>(shape);
      auto weights = detail::rank4(result.weights);
      if constexpr (rank == 2) {  // (heads, queries, keys)
        std::swap(weights.shape[0], weights.shape[1]);
        std::swap(weights.strides[0], weights.strides[1]);
      }
      return detail::ForwardOutput<Scalar, detail::Accumulator<Scalar>>{
          split_heads(pass.context, config_.num_heads), {}, weights};
    });
    project_output(pass, view(q), options);
    result.output = std::move(pass.output);
    return result;
  }

  /// The pass keeps what backward needs; q, k and v must outlive it.
  template <class Q, class K, class V, class M = NoMask>
  auto forward(const Q& q, const K& k, const V& v, const M& mask = no_mask(),
               const AttentionOptions& options = {}) const {
    check_inputs("MultiHeadAttention", q, k, v);
    auto pass = project(q, k, v, mask, options);
    const auto call = make_call(pass);
    call.run(scaled_dot_product(), mask, options, [&] {
      return detail::ForwardOutput<Scalar, detail::Accumulator<Scalar>>{
          split_heads(pass.context, config_.num_heads), view(pass.log_sum_exp), {}};
    });
    project_output(pass, view(q), options);
    return pass;
  }

  /// The gradients of a number that depends on the output of a pass through this module, given its
  /// gradient by the output -> {query, key, value, parameters}; parameters is a MultiHeadAttention.
  /// In self-attention the gradient of the one input is the sum of the first three. Runs on the
  /// threads of the pass. std::invalid_argument where grad_output has not the output's shape, or
  /// where the pass is from a module of other widths or heads.
  template <class Q, class K, class V, class M, class G>
  auto backward(const MultiHeadPass<Scalar, Q, K, V, M>& pass, const G& grad_output) const {
    constexpr const char* function = "MultiHeadAttention::backward";
    const auto& in = pass.inputs;
    check_weights(function);
    const auto query_in = as_batch(in.query), key_in = as_batch(in.key),
               value_in = as_batch(in.value);
    detail::check_projected(function, "query", query_in, pass.query, query_projection);
    detail::check_projected(function, "key", key_in, pass.key, key_projection);
    detail::check_projected(function, "value", value_in, pass.value, value_projection);
    const auto require = [&](const char* what, const auto& shape, const auto& expected) {
      if (shape != expected) {
        detail::fail(function, "the pass has ", what, " of shape ", shape, " where ",
                     config_.num_heads, " heads give ", expected,
                     "; is the pass from another module?");
      }
    };
    const Index batch = query_in.shape[0], queries = query_in.shape[1];
    require("a log_sum_exp", view(pass.log_sum_exp).shape,
            std::array{batch, config_.num_heads, queries});
    require("a context", view(pass.context).shape, std::array{batch, queries, width()});
    require("an output", view(pass.output).shape, in.query.shape);
    detail::check_output_gradient(function, pass.output, grad_output);

    auto result = in.make_gradients(MultiHeadAttention());
    auto& parameters = result.parameters;
    parameters.config_ = config_;
    auto* const pool = in.options.pool;
    Tensor<Scalar, 3> context(pass.context.dimensions()), query(pass.query.dimensions()),
        key(pass.key.dimensions()), value(pass.value.dimensions());
    output_projection.backward_into(context, parameters.output_projection, pass.context,
                                    as_batch(view(grad_output)), pool);
    const Index heads = config_.num_heads, kv_heads = config_.num_kv_heads;
    using PerHead = View<Scalar, 4>;
    attention_backward_into(
        AttentionGradients<PerHead, PerHead, PerHead>{
            split_heads(query, heads), split_heads(key, kv_heads), split_heads(value, kv_heads)},
        split_heads(pass.query, heads), split_heads(pass.key, kv_heads),
        split_heads(pass.value, kv_heads),
        AttentionPass<View<const Scalar, 4>, View<const detail::Accumulator<Scalar>, 3>>{
            split_heads(pass.context, heads), view(pass.log_sum_exp)},
        split_heads(context, heads), scaled_dot_product(), in.mask, in.options);
    query_projection.backward_into(as_batch(view(result.query)), parameters.query_projection,
                                   query_in, query, pool);
    key_projection.backward_into(as_batch(view(result.key)), parameters.key_projection, key_in, key,
                                 pool);
    value_projection.backward_into(as_batch(view(result.value)), parameters.value_projection,
                                   value_in, value, pool);
    return result;
  }

  /// What for_each_parameter goes through.
  static void members(const auto& visit, auto&... self) {
    visit("query_projection", self.query_projection...);
    visit("key_projection", self.key_projection...);
    visit("value_projection", self.value_projection...);
    visit("output_projection", self.output_projection...);
  }

 private:
  Index width() const { return config_.num_heads * config_.head_dim; }
  Index kv_width() const { return config_.num_kv_heads * config_.head_dim; }

  void check_weights(const char* function) const {
    const auto& c = config_;
    if (c.embed_dim == 0) detail::fail(function, "the module has no configuration and no weights");
    const auto check = [&](const char* name, const Linear<Scalar>& projection, Index out,
                           Index in) {
      detail::check_projection(function, name, projection, out, in);
    };
    check("query_projection", query_projection, width(), c.embed_dim);
    check("key_projection", key_projection, kv_width(), c.key_dim);
    check("value_projection", value_projection, kv_width(), c.value_dim);
    check("output_projection", output_projection, c.embed_dim, width());
  }

  template <class Q, class K, class V>
  void check_inputs(const char* function, const Q& q, const K& k, const V& v) const {
    static_assert(detail::rank_of<Q> >= 2 && detail::rank_of<Q> <= 3,
                  "heed: MultiHeadAttention takes (batch, seq, dim) or (seq, dim)");
    check_weights(function);
    detail::check_extents(function, "query", view(q).shape);
    detail::check_extents(function, "key", view(k).shape);
    detail::check_extents(function, "value", view(v).shape);
    const auto query = as_batch(view(q)), key = as_batch(view(k)), value = as_batch(view(v));
    const auto require = [&](bool fits, const char* what, const auto& given, Index needed) {
      if (!fits) {
        detail::fail(function, what, " of shape ", given.shape, " does not fit a width of ", needed,
                     " (last axis) and the other inputs; query is ", query.shape, ", key ",
                     key.shape, ", value ", value.shape, " (batch, seq, dim)");
      }
    };
    require(query.shape[2] == config_.embed_dim, "query", query, config_.embed_dim);
    require(key.shape[2] == config_.key_dim && key.shape[0] == query.shape[0], "key", key,
            config_.key_dim);
    require(value.shape[2] == config_.value_dim && value.shape[0] == query.shape[0] &&
                value.shape[1] == key.shape[1],
            "value", value, config_.value_dim);
    const auto projected = [&](const char* name, const auto& x, Index features) {
      detail::check_extents(function, name, std::array{x.shape[0], x.shape[1], features});
    };
    projected("the projected query", query, width());
    projected("the projected key", key, kv_width());
  }

  /// The projections of inputs that are checked, and room for what follows.
  template <class Q, class K, class V, class M>
  auto project(const Q& q, const K& k, const V& v, const M& mask,
               const AttentionOptions& options) const {
    detail::check_types<Q, K, V, DotProduct, M>();
    const auto query = as_batch(view(q)), key = as_batch(view(k)), value = as_batch(view(v));
    const Index batch = query.shape[0], queries = query.shape[1];
    MultiHeadPass<Scalar, Q, K, V, M> pass({view(q), view(k), view(v), mask, options});
    const auto into = [&](Tensor<Scalar, 3>& to, const Linear<Scalar>& projection, const auto& x) {
      to.resize(batch, x.shape[1], projection.out_features());
      projection.into(to, x, options.pool);
    };
    into(pass.query, query_projection, query);
    into(pass.key, key_projection, key);
    into(pass.value, value_projection, value);
    pass.context.resize(batch, queries, width());
    pass.log_sum_exp.resize(batch, config_.num_heads, queries);
    return pass;
  }

  template <class Pass>
  auto make_call(const Pass& pass) const {
    const auto query = split_heads(pass.query, config_.num_heads);
    const auto key = split_heads(pass.key, config_.num_kv_heads);
    const auto value = split_heads(pass.value, config_.num_kv_heads);
    return detail::TensorCall("MultiHeadAttention", query, key, value);
  }

  template <class Pass, class QueryView>
  void project_output(Pass& pass, const QueryView& query, const AttentionOptions& options) const {
    using Output = decltype(pass.output);
    pass.output = detail::make_result<Scalar, Output>(query.shape);
    output_projection.into(as_batch(view(pass.output)), pass.context, options.pool);
  }

  /// (seq, dim) as (1, seq, dim).
  template <class Element, int Rank>
  static View<Element, 3> as_batch(const View<Element, Rank>& x) {
    const auto wide = detail::expand<4, 2>(x);
    return {wide.data,
            {wide.shape[0], wide.shape[2], wide.shape[3]},
            {wide.strides[0], wide.strides[2], wide.strides[3]}};
  }

  MultiHeadConfig config_;
};

}  // namespace heed
