#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "heed/core/alias.hpp"
#include "heed/core/error.hpp"
#include "heed/core/scratch.hpp"
#include "heed/core/view.hpp"
#include "heed/module/initialiser.hpp"
#include "heed/module/linear.hpp"
#include "heed/module/multi_head_config.hpp"
#include "heed/module/multi_head_inputs.hpp"
#include "heed/module/multi_head_pass.hpp"
#include "heed/module/multi_head_projection.hpp"
#include "heed/module/pass.hpp"
#include "heed/module/token_cache.hpp"
#include "heed/operator/attention.hpp"
#include "heed/operator/attention_backward.hpp"
#include "heed/operator/norm.hpp"
#include "heed/operator/rotary.hpp"
#include "heed/policy/dropout.hpp"
#include "heed/policy/mask/range.hpp"
#include "heed/policy/options.hpp"
#include "heed/policy/score/dot_product.hpp"
#include "heed/simd/lanes.hpp"

namespace heed {

template <class Scalar>
struct TransformerBlock;

/// Heads of scaled dot-product attention side by side, each on its own projection of the input
/// (Vaswani et al., 2017), with fewer key/value heads if wanted (Ainslie et al., "GQA", 2023). A
/// rotation is by the position in the sequence, 0 for the first of the queries and of the keys, or
/// as many as a cache has tokens. Weights may be narrower than activations (see Linear).
template <class Scalar>
struct MultiHeadAttention {
  Linear<Scalar> query_projection;   ///< (num_heads * head_dim, embed_dim)
  Linear<Scalar> key_projection;     ///< (num_kv_heads * head_dim, key_dim)
  Linear<Scalar> value_projection;   ///< (num_kv_heads * head_dim, value_dim)
  Linear<Scalar> output_projection;  ///< (embed_dim, num_heads * head_dim)
  Vector<Scalar> query_norm;         ///< (head_dim) with qk_norm, or empty
  Vector<Scalar> key_norm;           ///< (head_dim) with qk_norm, or empty

  MultiHeadAttention() = default;
  /// Xavier weights from the seed, drawn in the order of the members; biases start at 0,
  /// norms at 1. std::invalid_argument where heads do not divide, or the rotation does not fit.
  explicit MultiHeadAttention(const MultiHeadConfig& given, std::uint64_t seed = 0)
      : config_(detail::completed<Scalar>(called, given)) {
    const auto& c = config_;
    detail::Initialiser initialiser(seed);
    query_projection = initialiser.linear<Scalar>(c.embed_dim, width(), c.bias);
    key_projection = initialiser.linear<Scalar>(c.key_dim, kv_width(), c.bias);
    value_projection = initialiser.linear<Scalar>(c.value_dim, kv_width(), c.bias);
    output_projection = initialiser.linear<Scalar>(width(), c.embed_dim, c.bias);
    for (auto* norm : {&query_norm, &key_norm}) {
      norm->resize(c.qk_norm ? c.head_dim : 0);
      for (Scalar& weight : *norm) weight = static_cast<Scalar>(1.0);
    }
  }

  /// As given, with the defaults filled in.
  const MultiHeadConfig& config() const { return config_; }

  /// query (batch, queries, embed_dim), key (batch, keys, key_dim), value (batch, keys, value_dim),
  /// or all without batch -> the shape of the query. The mask sees (batch, head, query, key).
  /// std::invalid_argument where shapes or mask do not fit, or weights that were assigned do not
  /// fit the configuration; a bias may be there or not.
  template <class Q, class K, class V, class M = NoMask>
    requires(!detail::TokenCache<K>)
  auto operator()(const Q& q, const K& k, const V& v, const M& mask = no_mask(),
                  const AttentionOptions& options = {}) const {
    using Element = detail::ScalarOf<Q>;
    if constexpr (std::is_trivially_copyable_v<Element>) {
      check_inputs(called, q, k, v);
      auto output = detail::make_result<Element, Q>(view(q).shape);
      into(output, q, k, v, mask, options);
      return output;
    } else {
      return forward(q, k, v, mask, options).output;
    }
  }

  /// Writes that into out, of the shape of the query, which shares no elements with an input, a
  /// parameter or the mask. A second call of one shape allocates nothing.
  template <class Out, class Q, class K, class V, class M = NoMask>
    requires(!detail::TokenCache<K>)
  void into(Out&& out, const Q& q, const K& k, const V& v, const M& mask = no_mask(),
            const AttentionOptions& options = {}) const {
    using Element = detail::ScalarOf<Q>;
    detail::check_types<Q, K, V, DotProduct, M>();
    check_inputs(called, q, k, v);
    const auto target = check_target(called, out, q);
    detail::check_not_aliased(called, target, detail::rank4(k), "key");
    detail::check_not_aliased(called, target, detail::rank4(v), "value");
    detail::check_not_of_mask(called, mask, target);
    const auto query_in = detail::as_batch(view(q));
    const auto key_in = detail::as_batch(view(k));
    const auto value_in = detail::as_batch(view(v));
    View<Element, 3> query, key, value, context;
    const detail::Scratch scratch([&](detail::Layout& layout) {
      query = room<Element>(layout, query_in, width());
      key = room<Element>(layout, key_in, kv_width());
      value = room<Element>(layout, value_in, kv_width());
      context = room<Element>(layout, query_in, width());
    });
    project_each(query_in, key_in, value_in, query, key, value, options.pool);
    finish_query(query, query, Index(0), options);
    finish_key(key, key, Index(0), options);
    attend(query, key, value, context, {}, mask, options);
    output_projection.into(detail::as_batch(view(out)), context, options.pool);
  }

  /// Causal self-attention of new tokens x (batch, n, embed_dim), or (n, embed_dim) for a batch of
  /// one, to all that a cache holds and to themselves: they are projected, rotated by their
  /// positions in the sequence, appended, and attend -> the shape of x. Gives, for any split of a
  /// sequence into calls, what the module gives for the whole of it under causal(); a cache with a
  /// window what it gives under sliding_window(window - 1, 0) || causal() && prefix(sinks).
  /// (Not so where the base of the rotation grows with the sequence, RotaryScaling::ntk with a
  /// trained length: what is in the cache keeps the base that it was rotated by.) Bad
  /// input is std::invalid_argument and, as a cache without room (see append), leaves the cache as
  /// it was.
  template <class X, detail::TokenCache Cache>
  auto operator()(const X& x, Cache& cache, const AttentionOptions& options = {}) const {
    check_new_tokens(x, cache, options);
    auto output = detail::make_result<detail::ScalarOf<X>, X>(view(x).shape);
    into(output, x, cache, options);
    return output;
  }

  /// Writes that into out. A second call of one shape allocates nothing.
  template <class Out, class X, detail::TokenCache Cache>
  void into(Out&& out, const X& x, Cache& cache, const AttentionOptions& options = {}) const {
    using Element = detail::ScalarOf<X>;
    check_new_tokens(x, cache, options);
    check_target(called, out, x);
    const auto tokens = detail::as_batch(view(x));
    const Index n = tokens.shape[1];
    View<Element, 3> query, key, value, context;
    View<Index, 2> positions;
    const detail::Scratch scratch([&](detail::Layout& layout) {
      query = room<Element>(layout, tokens, width());
      key = room<Element>(layout, tokens, kv_width());
      value = room<Element>(layout, tokens, kv_width());
      context = room<Element>(layout, tokens, width());
      positions = detail::take_tensor<Index>(layout, std::array{tokens.shape[0], n});
    });
    const Index longest = detail::fill_positions(cache, positions);
    project_each(tokens, tokens, tokens, query, key, value, options.pool);
    finish_query(query, query, positions, options);
    finish_key(key, key, positions, options);
    // Once a window is full, tokens come one by one: each evicts what the one before it still sees.
    const Index full = detail::tokens_before_eviction(cache);
    for (Index first = 0, count = 0; first < n; first += count) {
      count = full == 0 ? n : std::clamp<Index>(full - longest - first, 1, n - first);
      cache.append(split_heads(part(key, first, count), config_.num_kv_heads),
                   split_heads(part(value, first, count), config_.num_kv_heads));
      attention_into(split_heads(part(context, first, count), config_.num_heads),
                     split_heads(part(query, first, count), config_.num_heads), cache,
                     scaled_dot_product(), causal(), options);
    }
    output_projection.into(detail::as_batch(view(out)), context, options.pool);
  }

  /// Projects keys (batch, n, key_dim) and values (batch, n, value_dim), or both without batch, and
  /// appends them to a cache for cross().
  template <detail::TokenCache Cache, class K, class V>
  void remember(Cache& cache, const K& k, const V& v, const AttentionOptions& options = {}) const {
    constexpr const char* function = "MultiHeadAttention::remember";
    using Element = detail::ScalarOf<K>;
    check_weights(function);
    detail::check_input(function, config_, "key", k, config_.key_dim);
    detail::check_input(function, config_, "value", v, config_.value_dim);
    const auto key_in = detail::as_batch(view(k));
    const auto value_in = detail::as_batch(view(v));
    if (key_in.shape[0] != value_in.shape[0] || key_in.shape[1] != value_in.shape[1]) {
      detail::fail(function, "key of shape ", view(k).shape, " and value of shape ", view(v).shape,
                   " differ in batch or in their number of keys");
    }
    detail::check_cache(function, config_, cache, key_in.shape[0]);
    View<Element, 3> key, value;
    View<Index, 2> positions;
    const detail::Scratch scratch([&](detail::Layout& layout) {
      key = room<Element>(layout, key_in, kv_width());
      value = room<Element>(layout, value_in, kv_width());
      positions = detail::take_tensor<Index>(layout, std::array{key_in.shape[0], key_in.shape[1]});
    });
    detail::fill_positions(cache, positions);
    detail::project(detail::Projection{key_projection, key_in, key},
                    detail::Projection{value_projection, value_in, value}, options.pool);
    finish_key(key, key, positions, options);
    cache.append(split_heads(key, config_.num_kv_heads), split_heads(value, config_.num_kv_heads));
  }

  /// Attention of queries x (batch, queries, embed_dim), or (queries, embed_dim), to the keys and
  /// values that remember() has put into a cache: what the module gives for these.
  template <class X, detail::TokenCache Cache, class M = NoMask>
  auto cross(const X& x, const Cache& cache, const M& mask = no_mask(),
             const AttentionOptions& options = {}) const {
    check_cross(x, cache);
    auto output = detail::make_result<detail::ScalarOf<X>, X>(view(x).shape);
    cross_into(output, x, cache, mask, options);
    return output;
  }

  /// Writes that into out. A second call of one shape allocates nothing.
  template <class Out, class X, detail::TokenCache Cache, class M = NoMask>
  void cross_into(Out&& out, const X& x, const Cache& cache, const M& mask = no_mask(),
                  const AttentionOptions& options = {}) const {
    using Element = detail::ScalarOf<X>;
    check_cross(x, cache);
    const auto target = check_target("MultiHeadAttention::cross", out, x);
    detail::check_not_of_mask("MultiHeadAttention::cross", mask, target);
    const auto tokens = detail::as_batch(view(x));
    View<Element, 3> query, context;
    const detail::Scratch scratch([&](detail::Layout& layout) {
      query = room<Element>(layout, tokens, width());
      context = room<Element>(layout, tokens, width());
    });
    query_projection.into(query, tokens, options.pool);
    finish_query(query, query, Index(0), options);
    attention_into(split_heads(context, config_.num_heads), split_heads(query, config_.num_heads),
                   cache, scaled_dot_product(), mask, options);
    output_projection.into(detail::as_batch(view(out)), context, options.pool);
  }

  /// -> {output, weights}; weights (batch, heads, queries, keys), without batch where the query has
  /// none, to look at: by the reference engine, which holds all of them, while the output is that
  /// of the other calls to rounding.
  template <class Q, class K, class V, class M = NoMask>
  auto forward_with_weights(const Q& q, const K& k, const V& v, const M& mask = no_mask(),
                            const AttentionOptions& options = {}) const {
    using Element = detail::ScalarOf<Q>;
    check_inputs(called, q, k, v);
    detail::check_extents(
        called, "the matrix of weights",
        std::array{detail::as_batch(view(q)).shape[0], config_.num_heads,
                   detail::as_batch(view(q)).shape[1], detail::as_batch(view(k)).shape[1]});
    auto pass = project(q, k, v, mask, options);
    const auto call = make_call(view(pass.query), view(pass.key), view(pass.value));
    constexpr std::size_t rank = detail::rank_of<Q>;
    using Weights =
        decltype(detail::make_result<Element, Q>(std::declval<std::array<Index, rank + 1>>()));
    WeightedAttention<decltype(pass.output), Weights> result;
    call.run_reference(scaled_dot_product(), mask, options, [&] {
      std::array<Index, rank + 1> shape;
      const auto full = call.weights_shape();
      std::copy(full.end() - static_cast<std::ptrdiff_t>(rank + 1), full.end(), shape.begin());
      result.weights = detail::make_result<Element, Q>(shape);
      auto weights = detail::rank4(result.weights);
      if constexpr (rank == 2) {  // (heads, queries, keys)
        std::swap(weights.shape[0], weights.shape[1]);
        std::swap(weights.strides[0], weights.strides[1]);
      }
      return detail::WeightedOutput<Element, detail::Accumulator<Element>>{
          {split_heads(pass.context, config_.num_heads), {}}, weights};
    });
    output_projection.into(detail::as_batch(view(pass.output)), pass.context, options.pool);
    result.output = std::move(pass.output);
    return result;
  }

  /// The pass keeps what backward needs; q, k and v must outlive it.
  template <class Q, class K, class V, class M = NoMask>
  auto forward(const Q& q, const K& k, const V& v, const M& mask = no_mask(),
               const AttentionOptions& options = {}) const {
    check_inputs(called, q, k, v);
    auto pass = project(q, k, v, mask, options);
    attend(view(pass.query), view(pass.key), view(pass.value), view(pass.context),
           view(pass.log_sum_exp), mask, options);
    output_projection.into(detail::as_batch(view(pass.output)), pass.context, options.pool);
    return pass;
  }
  template <class Q, class K, class V, class... Rest>
    requires(detail::OwningTemporary<Q> || detail::OwningTemporary<K> || detail::OwningTemporary<V>)
  void forward(Q&&, K&&, V&&, Rest&&...) const = delete;  // it would end before backward: name it

  /// The gradients of a number that depends on the output of a pass through this module, given its
  /// gradient by the output -> {query, key, value, parameters}; parameters is a MultiHeadAttention
  /// of the type of this one, its gradients summed as those of Linear.
  /// In self-attention the gradient of the one input is the sum of the first three. Runs on the
  /// threads of the pass. std::invalid_argument where grad_output has not the output's shape, or
  /// where the pass is from a module of other widths or heads.
  template <class Element, class Q, class K, class V, class M, class G>
  auto backward(const MultiHeadPass<Element, Q, K, V, M>& pass, const G& grad_output) const {
    constexpr const char* function = "MultiHeadAttention::backward";
    const auto& in = pass.inputs;
    check_weights(function);
    const auto query_in = detail::as_batch(in.query);
    const auto key_in = detail::as_batch(in.key);
    const auto value_in = detail::as_batch(in.value);
    detail::check_projected(function, "query", query_in, pass.query, query_projection);
    detail::check_projected(function, "key", key_in, pass.key, key_projection);
    detail::check_projected(function, "value", value_in, pass.value, value_projection);
    if (config_.qk_norm) {
      detail::check_projected(function, "query", query_in, pass.projected_query, query_projection);
      detail::check_projected(function, "key", key_in, pass.projected_key, key_projection);
    }
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
    Tensor<Element, 3> context(pass.context.dimensions()), query(pass.query.dimensions()),
        key(pass.key.dimensions()), value(pass.value.dimensions());
    output_projection.backward_into(context, parameters.output_projection, pass.context,
                                    detail::as_batch(view(grad_output)), pool);
    const Index heads = config_.num_heads, kv_heads = config_.num_kv_heads;
    using PerHead = View<Element, 4>;
    attention_backward_into(
        AttentionGradients<PerHead, PerHead, PerHead>{
            split_heads(query, heads), split_heads(key, kv_heads), split_heads(value, kv_heads)},
        split_heads(pass.query, heads), split_heads(pass.key, kv_heads),
        split_heads(pass.value, kv_heads),
        AttentionPass<View<const Element, 4>, View<const detail::Accumulator<Element>, 3>>{
            split_heads(pass.context, heads), view(pass.log_sum_exp)},
        split_heads(context, heads), scaled_dot_product(), in.mask, in.options);
    if constexpr (detail::Laned<detail::Accumulator<Element>>) {
      if (config_.rotary) {
        for (const auto& grad : {split_heads(query, heads), split_heads(key, kv_heads)}) {
          rotary_backward_into(grad, grad, Index(0), *config_.rotary, pool);
        }
      }
    }
    if (config_.qk_norm) {
      const auto through = [&](const auto& projected, const View<Element, 4>& grad,
                               const Vector<Scalar>& norm, Vector<Scalar>& grad_norm) {
        grad_norm.resize(norm.size());
        detail::normalise_backward(function, Norm::rms, grad, grad_norm.data(), no_bias,
                                   View<const Element, 4>(projected), View<const Element, 4>(grad),
                                   norm.data(), norm_epsilon, pool);
      };
      through(split_heads(pass.projected_query, heads), split_heads(query, heads), query_norm,
              parameters.query_norm);
      through(split_heads(pass.projected_key, kv_heads), split_heads(key, kv_heads), key_norm,
              parameters.key_norm);
    }
    query_projection.backward_into(detail::as_batch(view(result.query)),
                                   parameters.query_projection, query_in, query, pool);
    key_projection.backward_into(detail::as_batch(view(result.key)), parameters.key_projection,
                                 key_in, key, pool);
    value_projection.backward_into(detail::as_batch(view(result.value)),
                                   parameters.value_projection, value_in, value, pool);
    return result;
  }

  /// What for_each_parameter goes through.
  static void members(const auto& visit, auto&... self) {
    visit("query_projection", self.query_projection...);
    visit("key_projection", self.key_projection...);
    visit("value_projection", self.value_projection...);
    visit("output_projection", self.output_projection...);
    visit("query_norm", self.query_norm...);
    visit("key_norm", self.key_norm...);
  }

 private:
  friend TransformerBlock<Scalar>;
  static constexpr const char* called = "MultiHeadAttention";
  static constexpr double norm_epsilon = 1e-6;
  static constexpr Scalar* no_bias = nullptr;

  Index width() const { return detail::query_width(config_); }
  Index kv_width() const { return detail::key_width(config_); }

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
    const Index normed = c.qk_norm ? c.head_dim : 0;
    for (const auto* norm : {&query_norm, &key_norm}) {
      if (norm->size() != normed) {
        detail::fail(function, norm == &query_norm ? "query_norm has " : "key_norm has ",
                     norm->size(), " entries, but the module needs ", normed);
      }
    }
  }

  template <class X, class Cache>
  void check_new_tokens(const X& x, const Cache& cache, const AttentionOptions& options) const {
    check_weights(called);
    if (config_.key_dim != config_.embed_dim || config_.value_dim != config_.embed_dim) {
      detail::fail(called,
                   "self-attention takes queries, keys and values of one width, but they are ",
                   config_.embed_dim, ", ", config_.key_dim, " and ", config_.value_dim);
    }
    detail::check_input(called, config_, "x", x, config_.embed_dim);
    detail::check_cache(called, config_, cache, detail::as_batch(view(x)).shape[0]);
    const Dropout refused_before_append(called, options.dropout, options.seed);
  }

  template <class X, class Cache>
  void check_cross(const X& x, const Cache& cache) const {
    constexpr const char* function = "MultiHeadAttention::cross";
    check_weights(function);
    detail::check_input(function, config_, "x", x, config_.embed_dim);
    detail::check_cache(function, config_, cache, detail::as_batch(view(x)).shape[0]);
  }

  /// `out` has the shape of the query and shares no elements with it or with a parameter.
  template <class Out, class Q>
  auto check_target(const char* function, Out& out, const Q& q) const {
    const auto target = detail::module_target(function, out, view(q).shape);
    detail::check_not_aliased(function, target, detail::rank4(q), "the query");
    for (const auto* projection :
         {&query_projection, &key_projection, &value_projection, &output_projection}) {
      detail::check_not_parameters(function, target, *projection);
    }
    detail::check_not_aliased(function, target, detail::rank4(query_norm), "query_norm");
    detail::check_not_aliased(function, target, detail::rank4(key_norm), "key_norm");
    return target;
  }

  template <class Q, class K, class V>
  void check_inputs(const char* function, const Q& q, const K& k, const V& v) const {
    check_weights(function);
    detail::check_inputs(function, config_, q, k, v);
  }

  /// Room for `features` of each token of x.
  template <class Element, class X>
  static View<Element, 3> room(detail::Layout& layout, const X& x, Index features) {
    return detail::take_tensor<Element>(layout, std::array{x.shape[0], x.shape[1], features});
  }

  /// `count` tokens of each sequence from `first` on.
  template <class Element>
  static View<Element, 3> part(View<Element, 3> x, Index first, Index count) {
    x.data += first * x.strides[1];
    x.shape[1] = count;
    return x;
  }

  template <class Q, class K, class V, class Element>
  void project_each(const View<Q, 3>& q, const View<K, 3>& k, const View<V, 3>& v,
                    const View<Element, 3>& query, const View<Element, 3>& key,
                    const View<Element, 3>& value, Eigen::ThreadPoolInterface* pool) const {
    detail::project(detail::Projection{query_projection, q, query},
                    detail::Projection{key_projection, k, key},
                    detail::Projection{value_projection, v, value}, pool);
  }

  /// Projected queries or keys as they meet: normed from there into `to`, which may be the same,
  /// and rotated.
  template <class Element, class Positions>
  void finish(const Vector<Scalar>& norm, Index heads, const View<Element, 3>& projected,
              const View<Element, 3>& to, const Positions& positions,
              const AttentionOptions& options) const {
    const auto per_head = split_heads(to, heads);
    if (config_.qk_norm) {
      detail::normalise(called, Norm::rms, per_head,
                        View<const Element, 4>(split_heads(projected, heads)), norm.data(), no_bias,
                        norm_epsilon, options.pool);
    }
    if constexpr (detail::Laned<detail::Accumulator<Element>>) {
      if (config_.rotary) {
        rotary_into(per_head, per_head, positions, *config_.rotary, options.pool);
      }
    }
  }
  void finish_query(const auto& projected, const auto& to, const auto& positions,
                    const AttentionOptions& options) const {
    finish(query_norm, config_.num_heads, projected, to, positions, options);
  }
  void finish_key(const auto& projected, const auto& to, const auto& positions,
                  const AttentionOptions& options) const {
    finish(key_norm, config_.num_kv_heads, projected, to, positions, options);
  }

  /// The projections of inputs that are checked, and room for what follows.
  template <class Q, class K, class V, class M>
  auto project(const Q& q, const K& k, const V& v, const M& mask,
               const AttentionOptions& options) const {
    using Element = detail::ScalarOf<Q>;
    detail::check_types<Q, K, V, DotProduct, M>();
    const auto query = detail::as_batch(view(q));
    const auto key = detail::as_batch(view(k));
    const auto value = detail::as_batch(view(v));
    MultiHeadPass<Element, Q, K, V, M> pass({view(q), view(k), view(v), mask, options});
    const auto resize = [](Tensor<Element, 3>& x, const auto& like, Index features) {
      x.resize(like.shape[0], like.shape[1], features);
      return view(x);
    };
    const auto q_to = resize(pass.query, query, width()), k_to = resize(pass.key, key, kv_width());
    const bool norm = config_.qk_norm;
    const auto q_from = norm ? resize(pass.projected_query, query, width()) : q_to,
               k_from = norm ? resize(pass.projected_key, key, kv_width()) : k_to;
    project_each(query, key, value, q_from, k_from, resize(pass.value, value, kv_width()),
                 options.pool);
    finish_query(q_from, q_to, Index(0), options);
    finish_key(k_from, k_to, Index(0), options);
    resize(pass.context, query, width());
    pass.log_sum_exp.resize(query.shape[0], config_.num_heads, query.shape[1]);
    pass.output = detail::make_result<Element, Q>(view(q).shape);
    return pass;
  }

  template <class Element>
  auto make_call(const View<Element, 3>& query, const View<Element, 3>& key,
                 const View<Element, 3>& value) const {
    const auto of_query = split_heads(query, config_.num_heads);
    const auto of_key = split_heads(key, config_.num_kv_heads);
    const auto of_value = split_heads(value, config_.num_kv_heads);
    return detail::TensorCall(called, of_query, of_key, of_value);
  }

  template <class Element, class M>
  void attend(const View<Element, 3>& query, const View<Element, 3>& key,
              const View<Element, 3>& value, const View<Element, 3>& context,
              const View<detail::Accumulator<Element>, 3>& log_sum_exp, const M& mask,
              const AttentionOptions& options) const {
    make_call(query, key, value).run(scaled_dot_product(), mask, options, [&] {
      return detail::ForwardOutput<Element, detail::Accumulator<Element>>{
          split_heads(context, config_.num_heads), log_sum_exp};
    });
  }

  MultiHeadConfig config_;
};

}  // namespace heed
