#pragma once

#include "heed/core/view.hpp"
#include "heed/policy/problem.hpp"

namespace heed::detail {

/// The tensors of one call, as (batch, heads, seq, dim).
template <class Query, class Key, class Value>
struct Inputs {
  View<const Query, 4> query;
  View<const Key, 4> key;
  View<const Value, 4> value;
};

/// What the backward pass is given beside the inputs, as (batch, heads, queries[, value_dim]).
template <class Output, class LogSumExp, class GradOutput>
struct PassViews {
  View<const Output, 4> output;
  View<const LogSumExp, 3> log_sum_exp;
  View<const GradOutput, 4> grad_output;
};

/// Where the backward pass writes, each as its input.
template <class Query, class Key, class Value>
struct GradientViews {
  View<Query, 4> query;
  View<Key, 4> key;
  View<Value, 4> value;
};

/// What one backward pass goes by.
template <class In, class Pass, class BoundScore, class BoundMask, class DropoutPolicy,
          class Gradients>
struct BackwardCall {
  using Score = BoundScore;
  using Mask = BoundMask;
  const Problem& problem;
  const In& in;
  const Pass& pass;
  const BoundScore& score;
  const BoundMask& mask;
  const DropoutPolicy& dropout;
  const Gradients& gradients;
};
template <class In, class Pass, class Score, class Mask, class DropoutPolicy, class Gradients>
BackwardCall(const Problem&, const In&, const Pass&, const Score&, const Mask&,
             const DropoutPolicy&, const Gradients&)
    -> BackwardCall<In, Pass, Score, Mask, DropoutPolicy, Gradients>;

}  // namespace heed::detail
