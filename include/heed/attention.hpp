#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "heed/detail/check.hpp"
#include "heed/detail/decode.hpp"
#include "heed/detail/forward.hpp"
#include "heed/detail/materialised.hpp"
#include "heed/detail/problem.hpp"
#include "heed/dropout.hpp"
#include "heed/mask.hpp"
#include "heed/modifier.hpp"
#include "heed/score.hpp"
#include "heed/tensor.hpp"

namespace heed {

struct AttentionOptions {
  double dropout = 0;      ///< probability that a weight is dropped, in [0, 1)
  std::uint64_t seed = 0;  ///< of the dropout; the same seed drops the same weights
  Eigen::ThreadPoolInterface* pool = nullptr;  ///< null: the calling thread alone
};

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

template <class T>
inline constexpr bool is_tensor_argument = is_view<T> || EigenDense<T> || EigenTensorLike<T>;

/// The shapes of a call, or std::invalid_argument with the axis and both shapes.
template <std::size_t R>
Problem check_shapes(const char* function, const std::array<Index, R>& query,
                     const std::array<Index, R>& key, const std::array<Index, R>& value) {
  const auto require_equal = [&](std::size_t axis, const char* axis_name, const char* a_name,
                                 const std::array<Index, R>& a, const char* b_name,
                                 const std::array<Index, R>& b) {
    if (a[axis] != b[axis]) {
      fail(function, a_name, " and ", b_name, " differ in ", axis_name, " (axis ",
           static_cast<Index>(axis), "): ", a[axis], " and ", b[axis], "; ", a_name, " is ", a,
           ", ", b_name, " is ", b);
    }
  };
  Problem problem{function,     1, 1, 1, query[R - 2], key[R - 2], query[R - 1], key[R - 1],
                  value[R - 1], R};
  require_equal(R - 2, "their number of keys", "key", key, "value", value);
  if constexpr (R >= 3) {
    require_equal(0, "batch", "query", query, "key", key);
    require_equal(0, "batch", "query", query, "value", value);
    problem.batch = query[0];
  }
  if constexpr (R == 4) {
    require_equal(1, "heads", "key", key, "value", value);
    problem.heads = query[1];
    problem.kv_heads = key[1];
    const bool divides =
        problem.kv_heads > 0 ? problem.heads % problem.kv_heads == 0 : problem.heads == 0;
    if (!divides) {
      fail(function, problem.kv_heads, " key heads do not divide ", problem.heads,
           " query heads (axis 1); query is ", query, ", key is ", key);
    }
  }
  return problem;
}

template <class Q, class K, class V, class S, class M>
constexpr void check_types() {
  static_assert(is_tensor_argument<Q> && is_tensor_argument<K> && is_tensor_argument<V>,
                "heed: query, key and value are Eigen tensors, matrices or heed::Views");
  static_assert(rank_of<Q> >= 2 && rank_of<Q> <= 4, "heed: query has a rank from 2 to 4");
  static_assert(rank_of<Q> == rank_of<K> && rank_of<K> == rank_of<V>,
                "heed: query, key and value have one rank");
  static_assert(Score<S>,
                "heed: the argument after value is a score, such as scaled_dot_product(); a mask "
                "comes after the score");
  static_assert(Mask<M>,
                "heed: the argument after the score is a mask, such as causal() or no_mask()");
  using Accumulate = Accumulator<ScalarOf<Q>>;
  static_assert(std::is_same_v<Accumulate, Accumulator<ScalarOf<K>>> &&
                    std::is_same_v<Accumulate, Accumulator<ScalarOf<V>>>,
                "heed: query, key and value are of one number type (half, bfloat16 and float mix)");
}

/// One call of attention: its tensors as rank 4, checked, with score, mask and dropout made for it.
template <class Q, class K, class V>
struct Call {
  using Accumulate = Accumulator<ScalarOf<Q>>;
  static constexpr std::size_t rank = rank_of<Q>;
  Inputs<ScalarOf<Q>, ScalarOf<K>, ScalarOf<V>> in;
  std::array<Index, rank> query_shape;
  Problem problem;

  Call(const char* function, const Q& q, const K& k, const V& v)
      : in{rank4(q), rank4(k), rank4(v)},
        query_shape(view(q).shape),
        problem(check_shapes(function, view(q).shape, view(k).shape, view(v).shape)) {}

  std::array<Index, rank> output_shape() const {
    auto shape = query_shape;
    shape[rank - 1] = problem.value_dim;
    return shape;
  }
  std::array<Index, rank> weights_shape() const {
    auto shape = query_shape;
    shape[rank - 1] = problem.keys;
    return shape;
  }
  auto make_output() const { return make_result<ScalarOf<Q>, Q>(output_shape()); }
  auto make_log_sum_exp() const {
    std::array<Index, rank - 1> shape;
    std::copy_n(query_shape.begin(), rank - 1, shape.begin());
    return make_result<Accumulate, Q>(shape);
  }

  /// Binds the policies, which is where they are checked, then calls body(score, mask, dropout).
  template <class S, class M, class Body>
  void with_policies(const S& score, const M& mask, const AttentionOptions& options, double unit,
                     const Body& body) const {
    const auto bound_score = bind_score<Accumulate>(score, problem, unit);
    const auto bound_mask = mask.bind(problem);
    const Dropout dropout(problem.function, options.dropout, options.seed);
    body(bound_score, bound_mask, dropout);
  }

  /// `make` gives where to write, (output, log-sum-exp) as rank 4 and 3, once all is checked.
  template <class S, class M, class Make>
  void run(const S& score, const M& mask, const AttentionOptions& options, const Make& make) const {
    constexpr bool fused = Laned<Accumulate>;
    with_policies(score, mask, options, fused ? log2_e : 1.0,
                  [&](const auto& bound_score, const auto& bound_mask, const auto& dropout) {
                    const auto [out, log_sum_exp] = make();
                    if constexpr (fused) {
                      if constexpr (FeaturesAlike<decltype(bound_score.similarity)>) {
                        const Decode few(problem, in, bound_score, bound_mask, dropout, out,
                                         log_sum_exp);
                        if (few.suits()) return few.run(options.pool);
                      }
                      Forward(problem, in, bound_score, bound_mask, dropout, out, log_sum_exp)
                          .run(options.pool);
                    } else {
                      materialised(problem, in, bound_score, bound_mask, dropout, options.pool, out,
                                   View<Accumulate, 4>{}, log_sum_exp);
                    }
                  });
  }
};

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
