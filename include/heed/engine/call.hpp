#pragma once

#include <limits>

#include "heed/core/key_source.hpp"
#include "heed/core/parallel.hpp"
#include "heed/core/view.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/dropout.hpp"
#include "heed/policy/key_set.hpp"
#include "heed/policy/problem.hpp"

namespace heed::detail {

/// One call of attention as every engine gets it, forwards and backwards: its extents, queries as
/// (batch, heads, queries, dim), keys and values by the run of rows, policies bound, and where the
/// results go (ForwardOutput, BackwardOutput).
template <class Query_, KeySource Keys_, KeySource Values_, class Score_, class Definition_,
          class Mask_, class Output_>
struct BoundCall {
  using Query = Query_;
  using Number = Accumulator<Query>;
  using Keys = Keys_;
  using Values = Values_;
  using Score = Score_;
  using Definition = Definition_;
  using Mask = Mask_;
  using Output = Output_;

  const Problem& problem;
  const View<const Query, 4>& query;
  const Keys& keys;
  const Values& values;
  const Score& score;             // in the unit that suits the fused engines
  const Definition_& definition;  // the same score in natural units
  const Mask& mask;
  const Dropout& dropout;
  const Output& output;
};

/// In binary units products below -2^128 ln 2 (doubles: -2^1024 ln 2) are -infinity. Other scores
/// may well be -infinity by themselves.
template <class Score>
inline constexpr bool lacks_range =
    Score::Unit::binary == 1 && is_product<typename Score::Similarity>;

/// Whether that is why none of the keys that a query sees counts, where `largest` is the largest of
/// its scores.
template <class Call>
bool out_of_range(const Call& call, typename Call::Number largest, Index b, Index h, Index i) {
  return lacks_range<typename Call::Score> &&
         largest == -std::numeric_limits<typename Call::Number>::infinity() &&
         sees_any(call.mask, b, h, i, call.problem.keys);
}

/// Where the forward pass writes. log_sum_exp (batch, heads, queries) is a view of nothing where it
/// is not wanted.
template <class Element, class Number>
struct ForwardOutput {
  View<Element, 4> output;
  View<Number, 3> log_sum_exp;
};

/// The same, with the weights (batch, heads, queries, keys).
template <class Element, class Number, class Weight = Element>
struct WeightedOutput : ForwardOutput<Element, Number> {
  View<Weight, 4> weights;
};
template <class Output>
concept WithWeights = requires(const Output& output) { output.weights; };

/// Where the scores alone go, (batch, heads, queries, keys).
template <class Element>
struct ScoreOutput {
  View<Element, 4> scores;
};

/// What the backward pass is given beside the inputs, and where it writes the gradients, each as
/// its input.
template <class Output, class LogSumExp, class GradOutput, class Query, class Key, class Value>
struct BackwardOutput {
  View<const Output, 4> output;
  View<const LogSumExp, 3> log_sum_exp;
  View<const GradOutput, 4> grad_output;
  View<Query, 4> query;
  View<Key, 4> key;
  View<Value, 4> value;
};

/// Work in pieces that are done in any order, by any thread.
template <class Engine>
concept InPieces = requires(const Engine& engine, Index n) {
  { engine.pieces() } -> std::same_as<Index>;
  engine.run(n, n);
};
/// Work that an engine shares out itself.
template <class Engine>
concept OnPool =
    requires(const Engine& engine, Eigen::ThreadPoolInterface* pool) { engine.run(pool); };

/// What every engine is: made for a call if its types are `possible`, run if the call `suits`. One
/// that suits all calls of the types says so by std::true_type.
template <class Engine, class Call>
concept EngineFor = (InPieces<Engine> || OnPool<Engine>) && requires(const Call& call) {
  { Engine::possible } -> std::convertible_to<bool>;
  { Engine::suits(call) } -> std::convertible_to<bool>;
  Engine(call);
};

/// body(engine) with the first of the engines that suits the call.
template <template <class> class First, template <class> class... Rest, class Call>
void with_first_that_suits(const Call& call, const auto& body) {
  static_assert(EngineFor<First<Call>, Call>);
  if constexpr (!First<Call>::possible) {
    with_first_that_suits<Rest...>(call, body);
  } else if constexpr (std::same_as<decltype(First<Call>::suits(call)), std::true_type>) {
    body(First<Call>(call));
  } else {
    if (First<Call>::suits(call)) return body(First<Call>(call));
    with_first_that_suits<Rest...>(call, body);
  }
}

/// All of an engine's work.
template <class Engine>
void run_engine(const Engine& engine, Eigen::ThreadPoolInterface* pool) {
  if constexpr (OnPool<Engine>) {
    engine.run(pool);
  } else {
    if constexpr (requires { engine.multiply_adds(); }) {
      pool = pool_for(engine.multiply_adds(), pool);
    }
    parallel_for(pool, engine.pieces(),
                 [&engine](Index first, Index last) { engine.run(first, last); });
  }
}

template <template <class> class... Engines, class Call>
void run_first_that_suits(const Call& call, Eigen::ThreadPoolInterface* pool) {
  with_first_that_suits<Engines...>(call, [pool](const auto& engine) { run_engine(engine, pool); });
}

}  // namespace heed::detail
