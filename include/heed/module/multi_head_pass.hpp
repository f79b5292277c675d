#pragma once

#include <utility>

#include "heed/core/alias.hpp"
#include "heed/core/view.hpp"
#include "heed/module/pass.hpp"

namespace heed {

/// What a pass through MultiHeadAttention gives, of the number type of the query; all but the
/// output is what backward needs.
template <class Scalar, class Q, class K, class V, class M>
struct MultiHeadPass {
  ModuleInputs<Q, K, V, M> inputs;
  detail::ResultLike<Scalar, Q> output;
  Tensor<Scalar, 3> query, key, value;               ///< as they meet, (batch, seq, heads * dim)
  Tensor<Scalar, 3> projected_query, projected_key;  ///< before qk_norm; without it, empty
  Tensor<Scalar, 3> context;  ///< (batch, queries, heads * dim), before the last projection
  Tensor<detail::Accumulator<Scalar>, 3> log_sum_exp;  ///< (batch, heads, queries)

  explicit MultiHeadPass(ModuleInputs<Q, K, V, M> given) : inputs(std::move(given)) {}
};

}  // namespace heed
