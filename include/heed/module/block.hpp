#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string_view>
#include <type_traits>
#include <utility>

#include "heed/core/alias.hpp"
#include "heed/core/error.hpp"
#include "heed/core/scratch.hpp"
#include "heed/core/view.hpp"
#include "heed/module/block_config.hpp"
#include "heed/module/block_pass.hpp"
#include "heed/module/layer.hpp"
#include "heed/module/mlp.hpp"
#include "heed/module/multi_head_attention.hpp"
#include "heed/module/norm.hpp"
#include "heed/module/parameters.hpp"
#include "heed/module/pass.hpp"
#include "heed/operator/residual.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/mask/range.hpp"
#include "heed/policy/options.hpp"
#include "heed/policy/problem.hpp"

namespace heed {

/// A layer of a transformer: attention and then an Mlp, each added to what it reads. With the norm
/// first a branch f makes x + scale f(norm(x)) of x, with the norm last norm(x + scale f(x)).
template <class Scalar>
struct TransformerBlock {
  AnyNorm<Scalar> attention_norm;
  MultiHeadAttention<Scalar> attention;
  Vector<Scalar> attention_scale;  ///< (embed_dim) with layer_scale, or empty
  AnyNorm<Scalar> cross_norm;      ///< without cross, what belongs to it is empty
  MultiHeadAttention<Scalar> cross_attention;
  Vector<Scalar> cross_scale;
  AnyNorm<Scalar> mlp_norm;
  Mlp<Scalar> mlp;
  Vector<Scalar> mlp_scale;

  TransformerBlock() = default;
  /// Each part with weights of its own from the seed. std::invalid_argument where the parts do not
  /// fit one another or their own configuration.
  explicit TransformerBlock(const BlockConfig& given, std::uint64_t seed = 0)
      : config_(detail::completed(name, given)) {
    const auto& c = config_;
    const Index dim = c.attention.embed_dim;
    std::mt19937_64 seeds(seed);
    const auto norm = [&] { return AnyNorm<Scalar>(c.norm, dim, c.norm_eps); };
    const auto scale = [&] {
      return detail::filled<Scalar>(name, c.layer_scale ? dim : 0, c.initial_scale);
    };
    attention = MultiHeadAttention<Scalar>(c.attention, seeds());
    attention_norm = norm();
    attention_scale = scale();
    mlp = Mlp<Scalar>(c.mlp, seeds());
    mlp_norm = norm();
    mlp_scale = scale();
    if (!c.cross) return;
    cross_attention = MultiHeadAttention<Scalar>(c.cross_attention, seeds());
    cross_norm = norm();
    cross_scale = scale();
  }

  /// As given, with the widths filled in.
  const BlockConfig& config() const { return config_; }

  /// x (batch, seq, embed_dim) or (seq, embed_dim) -> the same shape, number type and storage
  /// order. The mask sees (batch, head, query, key). Weights of half or bfloat16 take an x of
  /// float, too. std::invalid_argument where shapes or the mask do not fit, or weights that were
  /// assigned do not fit the configuration.
  template <class X, Mask M = NoMask>
  auto operator()(const X& x, const M& mask = no_mask(),
                  const AttentionOptions& options = {}) const {
    return result_of(x, [&](auto& out) { into(out, x, mask, options); });
  }

  /// Writes that into `out`, which is x itself or shares no elements with it, and none with the
  /// mask or a parameter. A second call of one shape allocates nothing.
  template <class Out, class X, Mask M = NoMask>
  void into(Out&& out, const X& x, const M& mask = no_mask(),
            const AttentionOptions& options = {}) const {
    require_cross(false);
    check(x);
    detail::check_not_of_mask(name, mask, detail::rank4(out));
    run(
        out, x,
        [&](const auto& to, const auto& from) {
          attention.into(to, from, from, from, mask, options);
        },
        nullptr, options);
  }

  /// With attention to a memory (batch, keys, width) or (keys, width) as well, for a block with
  /// cross, as in the decoder of an encoder and decoder. memory_mask sees (batch, head, query, key
  /// of the memory).
  template <class X, class Memory, Mask M = NoMask, Mask MemoryMask = NoMask>
    requires(!Mask<Memory> && !detail::TokenCache<Memory>)
  auto operator()(const X& x, const Memory& memory, const M& mask = no_mask(),
                  const MemoryMask& memory_mask = no_mask(),
                  const AttentionOptions& options = {}) const {
    return result_of(x, [&](auto& out) { into(out, x, memory, mask, memory_mask, options); });
  }

  /// Writes that into `out`, which shares no elements with the memory or its mask.
  template <class Out, class X, class Memory, Mask M = NoMask, Mask MemoryMask = NoMask>
    requires(!Mask<Memory> && !detail::TokenCache<Memory>)
  void into(Out&& out, const X& x, const Memory& memory, const M& mask = no_mask(),
            const MemoryMask& memory_mask = no_mask(), const AttentionOptions& options = {}) const {
    require_cross(true);
    check(x);
    cross_attention.check_inputs(name, x, memory, memory);
    check_memory_mask(x, view(memory).shape[detail::rank_of<Memory> - 2], memory_mask);
    detail::check_not_aliased(name, detail::rank4(out), detail::rank4(memory), "the memory");
    detail::check_not_of_mask(name, mask, detail::rank4(out));
    detail::check_not_of_mask(name, memory_mask, detail::rank4(out));
    run(
        out, x,
        [&](const auto& to, const auto& from) {
          attention.into(to, from, from, from, mask, options);
        },
        [&](const auto& to, const auto& from) {
          cross_attention.into(to, from, memory, memory, memory_mask, options);
        },
        options);
  }

  /// New tokens x (batch, n, embed_dim), or (n, embed_dim) for a batch of one, after those that the
  /// cache holds of this block: causal attention (see MultiHeadAttention), in any split of a
  /// sequence into calls. Bad input leaves the cache as it was.
  template <class X, detail::TokenCache Cache>
  auto operator()(const X& x, Cache& cache, const AttentionOptions& options = {}) const {
    return result_of(x, [&](auto& out) { into(out, x, cache, options); });
  }

  /// Writes that into `out`, which is x itself or shares no elements with it.
  template <class Out, class X, detail::TokenCache Cache>
  void into(Out&& out, const X& x, Cache& cache, const AttentionOptions& options = {}) const {
    require_cross(false);
    check(x);
    attention.check_new_tokens(x, cache, options);
    run(
        out, x, [&](const auto& to, const auto& from) { attention.into(to, from, cache, options); },
        nullptr, options);
  }

  /// The same with a memory, whose keys and values cross_attention.remember(memory_cache, memory,
  /// memory) has put into a second cache.
  template <class X, detail::TokenCache Cache, detail::TokenCache MemoryCache, Mask M = NoMask>
  auto operator()(const X& x, Cache& cache, const MemoryCache& memory,
                  const M& memory_mask = no_mask(), const AttentionOptions& options = {}) const {
    return result_of(x, [&](auto& out) { into(out, x, cache, memory, memory_mask, options); });
  }

  /// Writes that into `out`.
  template <class Out, class X, detail::TokenCache Cache, detail::TokenCache MemoryCache,
            Mask M = NoMask>
  void into(Out&& out, const X& x, Cache& cache, const MemoryCache& memory,
            const M& memory_mask = no_mask(), const AttentionOptions& options = {}) const {
    require_cross(true);
    check(x);
    attention.check_new_tokens(x, cache, options);
    cross_attention.check_cross(x, memory);
    Index longest = 0;
    for (Index b = 0; b < memory.extents().batch; ++b) {
      longest = std::max<Index>(longest, memory.held(b).length);
    }
    check_memory_mask(x, longest, memory_mask);
    detail::check_not_of_mask(name, memory_mask, detail::rank4(out));
    run(
        out, x, [&](const auto& to, const auto& from) { attention.into(to, from, cache, options); },
        [&](const auto& to, const auto& from) {
          cross_attention.cross_into(to, from, memory, memory_mask, options);
        },
        options);
  }

  /// The pass keeps what backward needs; x must outlive it.
  template <class X, Mask M = NoMask>
  auto forward(const X& x, const M& mask = no_mask(), const AttentionOptions& options = {}) const {
    require_cross(false);
    check(x);
    return forward_with(x, mask, [](const auto&) { return nullptr; }, options);
  }

  /// With a memory, which must outlive the pass as well.
  template <class X, class Memory, Mask M = NoMask, Mask MemoryMask = NoMask>
    requires(!Mask<Memory> && !detail::TokenCache<Memory>)
  auto forward(const X& x, const Memory& memory, const M& mask = no_mask(),
               const MemoryMask& memory_mask = no_mask(),
               const AttentionOptions& options = {}) const {
    require_cross(true);
    check(x);
    cross_attention.check_inputs(name, x, memory, memory);
    return forward_with(
        x, mask,
        [&](const auto& from) {
          return cross_attention.forward(from, memory, memory, memory_mask, options);
        },
        options);
  }
  template <class X, class Memory = NoMask, class... Rest>
    requires(detail::OwningTemporary<X> || detail::OwningTemporary<Memory>)
  void forward(X&&, Memory&& = {}, Rest&&...) const = delete;  // would end before backward: name it

  /// The gradients of a number that depends on the output of a pass through this block, given its
  /// gradient by the output -> {input, parameters}, or {input, memory, parameters} where the pass
  /// has a memory; parameters is a TransformerBlock. Runs on the threads of the pass.
  /// std::invalid_argument where grad_output has not the output's shape, or where the pass is from
  /// a block of other widths.
  template <class X, class Output, class Stream, class Attention, class Cross, class Feed, class G>
  auto backward(const BlockPass<X, Output, Stream, Attention, Cross, Feed>& pass,
                const G& grad_output) const {
    constexpr const char* function = "TransformerBlock::backward";
    constexpr bool with_memory = !std::is_same_v<Cross, std::nullptr_t>;
    using S = detail::ScalarOf<X>;
    using Seen = View<const S, detail::rank_of<X>>;
    require_cross(with_memory);
    check(pass.input);
    detail::check_output_gradient(function, pass.output, grad_output);
    auto input = detail::make_result<S, X>(pass.input.shape);
    auto result = [&] {
      if constexpr (with_memory) {
        using Memory = std::remove_cvref_t<
            decltype(pass.cross.inner.inputs.make_gradients(MultiHeadAttention<Scalar>()).key)>;
        return BlockGradients<decltype(input), Memory, TransformerBlock>{std::move(input), {}, {}};
      } else {
        return LayerGradients<decltype(input), TransformerBlock>{std::move(input), {}};
      }
    }();
    auto& parameters = result.parameters;
    parameters.config_ = config_;
    auto* const pool = pass.options.pool;

    // The gradient of what flows past the branches, from the last to the first.
    Stream grad = detail::make_result<S, Seen>(pass.input.shape);
    detail::copy_rows<S>(detail::rank4(grad), detail::rank4(grad_output), pool);
    const Seen x(pass.input), after_attention(view(pass.after_attention)),
        after_cross(view(pass.after_cross));
    backward_branch(grad, with_memory ? after_cross : after_attention, pass.mlp, mlp_norm,
                    parameters.mlp_norm, mlp_scale, parameters.mlp_scale, pool,
                    [&](const auto& by) {
                      auto gradients = mlp.backward(pass.mlp.inner, by);
                      parameters.mlp = std::move(gradients.parameters);
                      return std::move(gradients.input);
                    });
    if constexpr (with_memory) {
      backward_branch(grad, after_attention, pass.cross, cross_norm, parameters.cross_norm,
                      cross_scale, parameters.cross_scale, pool, [&](const auto& by) {
                        auto gradients = cross_attention.backward(pass.cross.inner, by);
                        parameters.cross_attention = std::move(gradients.parameters);
                        detail::add(gradients.key, gradients.value, pool);
                        result.memory = std::move(gradients.key);
                        return std::move(gradients.query);
                      });
    }
    backward_branch(grad, x, pass.attention, attention_norm, parameters.attention_norm,
                    attention_scale, parameters.attention_scale, pool, [&](const auto& by) {
                      auto gradients = attention.backward(pass.attention.inner, by);
                      parameters.attention = std::move(gradients.parameters);
                      detail::add(gradients.query, gradients.key, pool);
                      detail::add(gradients.query, gradients.value, pool);
                      return std::move(gradients.query);
                    });
    detail::copy_rows<S>(detail::rank4(result.input), detail::rank4(grad), pool);
    return result;
  }

  /// What for_each_parameter goes through.
  static void members(const auto& visit, auto&... self) {
    visit("attention_norm", self.attention_norm...);
    visit("attention", self.attention...);
    visit("attention_scale", self.attention_scale...);
    visit("cross_norm", self.cross_norm...);
    visit("cross_attention", self.cross_attention...);
    visit("cross_scale", self.cross_scale...);
    visit("mlp_norm", self.mlp_norm...);
    visit("mlp", self.mlp...);
    visit("mlp_scale", self.mlp_scale...);
  }

 private:
  static constexpr const char* name = "TransformerBlock";

  void require_cross(bool memory) const {
    if (config_.cross != memory) {
      detail::fail(name, memory ? "a memory was given, but the block has no cross-attention"
                                : "the block has cross-attention, but no memory was given");
    }
  }

  /// Weights are public, and nothing shall have been written when one is refused.
  template <class X>
  void check(const X& x) const {
    static_assert(detail::rank_of<X> >= 2 && detail::rank_of<X> <= 3,
                  "heed: TransformerBlock takes (batch, seq, dim) or (seq, dim)");
    detail::check_layer_types<Scalar, X>();
    attention.check_inputs(name, x, x, x);
    mlp.check(name, x);
    const auto check_branch = [&](const char* branch, const AnyNorm<Scalar>& norm,
                                  const Vector<Scalar>& scale) {
      norm.check(name, x);
      const Index needed = config_.layer_scale ? config_.attention.embed_dim : 0;
      if (scale.size() != needed) {
        detail::fail(name, branch, " has ", scale.size(), " entries, but the block needs ", needed);
      }
    };
    check_branch("attention_scale", attention_norm, attention_scale);
    check_branch("mlp_scale", mlp_norm, mlp_scale);
    if (config_.cross) check_branch("cross_scale", cross_norm, cross_scale);
  }

  template <class X, class M>
  void check_memory_mask(const X& x, Index keys, const M& mask) const {
    const auto shape = detail::rank4(x).shape;
    const auto& c = cross_attention.config();
    detail::bind_mask(mask, Problem{name, shape[0], c.num_heads, c.num_kv_heads, shape[2], keys,
                                    c.head_dim, c.head_dim, c.head_dim});
  }

  template <class X, class Into>
  auto result_of(const X& x, const Into& into) const {
    check(x);
    auto result = detail::make_result<detail::ScalarOf<X>, X>(view(x).shape);
    into(result);
    return result;
  }

  /// The branches one after the other: attend(to, from), cross(to, from) unless it is null, mlp.
  template <class Out, class X, class Attend, class Cross>
  void run(Out& out, const X& x, const Attend& attend, const Cross& cross,
           const AttentionOptions& options) const {
    using S = detail::ScalarOf<X>;
    using Stream = View<S, detail::rank_of<X>>;
    using Seen = View<const S, detail::rank_of<X>>;
    static_assert(std::is_same_v<detail::ScalarOf<Out>, S>,
                  "heed: the output of a TransformerBlock has the number type of its input");
    const auto target = detail::module_target(name, out, view(x).shape);
    if (!detail::same_elements(target, detail::rank4(x))) {
      detail::check_not_aliased(name, target, detail::rank4(x), "x");
    }
    detail::each_parameter(*this, [&](const auto& parameter) {
      detail::check_not_aliased(name, target, detail::rank4(parameter), "a parameter");
    });
    Stream normed, change;
    const detail::Scratch scratch([&](detail::Layout& layout) {
      normed = detail::take_tensor<S>(layout, view(x).shape);
      change = detail::take_tensor<S>(layout, view(x).shape);
    });
    const auto to = view(out);
    const Seen result(to);
    const auto branch = [&](const Seen& from, const AnyNorm<Scalar>& norm,
                            const Vector<Scalar>& scale, const auto& f) {
      if (config_.pre_norm) norm.into(normed, from, options.pool);
      f(change, config_.pre_norm ? Seen(normed) : from);
      add_branch(target, detail::rank4(from), detail::rank4(change), scale, options.pool);
      if (!config_.pre_norm) norm.into(to, to, options.pool);
    };
    branch(Seen(view(x)), attention_norm, attention_scale, attend);
    if constexpr (!std::is_same_v<Cross, std::nullptr_t>) {
      branch(result, cross_norm, cross_scale, cross);
    }
    branch(result, mlp_norm, mlp_scale, [&](const auto& change_to, const auto& from) {
      mlp.into(change_to, from, options.pool);
    });
  }

  template <class S>
  static void add_branch(const View<S, 4>& out, const View<const S, 4>& x,
                         const std::type_identity_t<View<const S, 4>>& change,
                         const Vector<Scalar>& scale, Eigen::ThreadPoolInterface* pool) {
    detail::add_scaled(out, x, change, scale.size() > 0 ? scale.data() : nullptr, pool);
  }

  template <class X, class M, class Cross>
  auto forward_with(const X& x, const M& mask, const Cross& cross,
                    const AttentionOptions& options) const {
    using S = detail::ScalarOf<X>;
    using Seen = View<const S, detail::rank_of<X>>;
    using Stream = detail::ResultLike<S, Seen>;
    const auto shape = view(x).shape;
    const auto stream = [&] { return detail::make_result<S, Seen>(shape); };
    const auto branch = [&](const Seen& from, auto& left, const AnyNorm<Scalar>& norm,
                            const Vector<Scalar>& scale, const auto& f) {
      Stream between = stream();
      if (config_.pre_norm) norm.into(between, from, options.pool);
      auto inner = f(config_.pre_norm ? Seen(view(between)) : from);
      const auto add = [&](auto& to) {
        add_branch(detail::rank4(to), detail::rank4(from), detail::rank4(inner.output), scale,
                   options.pool);
      };
      if (config_.pre_norm) {
        add(left);
      } else {
        add(between);
        norm.into(left, between, options.pool);
      }
      return BranchPass<Stream, decltype(inner)>{std::move(between), std::move(inner)};
    };
    Stream after_attention = stream();
    auto of_attention = branch(
        Seen(view(x)), after_attention, attention_norm, attention_scale,
        [&](const Seen& from) { return attention.forward(from, from, from, mask, options); });
    Stream after_cross;
    auto of_cross = [&] {
      if constexpr (std::is_same_v<decltype(cross(Seen())), std::nullptr_t>) {
        return nullptr;
      } else {
        after_cross = stream();
        return branch(Seen(view(after_attention)), after_cross, cross_norm, cross_scale, cross);
      }
    }();
    auto output = detail::make_result<S, X>(shape);
    auto of_mlp =
        branch(Seen(view(config_.cross ? after_cross : after_attention)), output, mlp_norm,
               mlp_scale, [&](const Seen& from) { return mlp.forward(from, options.pool); });
    return BlockPass<X, decltype(output), Stream, decltype(of_attention.inner), decltype(of_cross),
                     decltype(of_mlp.inner)>{view(x),
                                             std::move(of_attention),
                                             std::move(after_attention),
                                             std::move(of_cross),
                                             std::move(after_cross),
                                             std::move(of_mlp),
                                             std::move(output),
                                             options};
  }

  /// From the gradient of what a branch left to that of what it got, in place. inner(grad) gives
  /// that of what the branch itself read.
  template <class Stream, class Seen, class Pass, class Inner>
  void backward_branch(Stream& grad, const Seen& from, const Pass& pass,
                       const AnyNorm<Scalar>& norm, AnyNorm<Scalar>& grad_norm,
                       const Vector<Scalar>& scale, Vector<Scalar>& grad_scale,
                       Eigen::ThreadPoolInterface* pool, const Inner& inner) const {
    using S = typename Seen::Scalar;
    Stream other = detail::make_result<S, Seen>(from.shape);
    if (!config_.pre_norm) {
      norm.backward_into(other, grad_norm, pass.between, grad, pool);
      std::swap(grad, other);
    }
    grad_scale.resize(scale.size());
    if (scale.size() > 0) {
      detail::scale_backward(
          detail::rank4(other), grad_scale.data(), View<const S, 4>(detail::rank4(grad)),
          View<const S, 4>(detail::rank4(pass.inner.output)), scale.data(), pool);
    }
    auto by_branch = inner(view(scale.size() > 0 ? std::as_const(other) : std::as_const(grad)));
    if (config_.pre_norm) {
      norm.backward_into(other, grad_norm, from, by_branch, pool);
      detail::add(grad, other, pool);
    } else {
      detail::add(grad, by_branch, pool);
    }
  }

  BlockConfig config_;
};

}  // namespace heed
