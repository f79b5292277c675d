#pragma once

#include <cstdint>
#include <utility>

#include "heed/attention.hpp"
#include "heed/detail/check.hpp"
#include "heed/linear.hpp"
#include "heed/tensor.hpp"

namespace heed {

/// What a pass through AdditiveAttention gives; the projections and the log-sum-exp are what its
/// gradient needs.
template <class Projected, class Output, class LogSumExp>
struct AdditivePass {
  Output output;
  Projected query, key;
  LogSumExp log_sum_exp;
};

/// score(q, k) = w^T tanh(W_q q + W_k k), for queries and keys of different widths (Bahdanau, Cho
/// and Bengio, 2015). A Scalar of float, double, half, bfloat16 or the user's own.
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
  /// rank 2 to 4 -> (..., queries, value_dim). Errors as in attention and Linear.
  template <class Q, class K, class V, class M = NoMask>
  auto operator()(const Q& q, const K& k, const V& v, const M& mask = no_mask(),
                  const AttentionOptions& options = {}) const {
    return attention(query_projection(q), key_projection(k), v, additive(score_weight), mask,
                     options);
  }

  /// -> {output, weights}; weights (..., queries, keys)
  template <class Q, class K, class V, class M = NoMask>
  auto forward_with_weights(const Q& q, const K& k, const V& v, const M& mask = no_mask(),
                            const AttentionOptions& options = {}) const {
    return attention_with_weights(query_projection(q), key_projection(k), v, additive(score_weight),
                                  mask, options);
  }

  /// The pass keeps what the gradient needs; q, k and v must outlive it.
  template <class Q, class K, class V, class M = NoMask>
  auto forward(const Q& q, const K& k, const V& v, const M& mask = no_mask(),
               const AttentionOptions& options = {}) const {
    auto query = query_projection(q);
    auto key = key_projection(k);
    auto pass = attention_forward(query, key, v, additive(score_weight), mask, options);
    return AdditivePass<decltype(query), decltype(pass.output), decltype(pass.log_sum_exp)>{
        std::move(pass.output), std::move(query), std::move(key), std::move(pass.log_sum_exp)};
  }
};

}  // namespace heed
