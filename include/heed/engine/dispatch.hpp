#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

#include "heed/core/alias.hpp"
#include "heed/core/error.hpp"
#include "heed/core/key_source.hpp"
#include "heed/core/ragged.hpp"
#include "heed/core/unit.hpp"
#include "heed/core/view.hpp"
#include "heed/engine/backward/loop.hpp"
#include "heed/engine/backward/sink.hpp"
#include "heed/engine/call.hpp"
#include "heed/engine/decode.hpp"
#include "heed/engine/forward.hpp"
#include "heed/engine/reference/backward.hpp"
#include "heed/engine/reference/forward.hpp"
#include "heed/policy/dropout.hpp"
#include "heed/policy/modifier/chain.hpp"
#include "heed/policy/options.hpp"
#include "heed/policy/problem.hpp"

namespace heed {
namespace detail {

template <class T>
inline constexpr bool is_tensor_argument = is_view<T> || EigenDense<T> || EigenTensorLike<T>;

/// Refuses heads of keys that do not divide those of queries.
template <std::size_t R>
void check_heads(const Problem& problem, const std::array<Index, R>& query,
                 const std::array<Index, R>& key) {
  const bool divides = problem.heads == problem.kv_heads ||
                       (problem.kv_heads > 0 && problem.heads % problem.kv_heads == 0);
  if (!divides) {
    problem.refuse(problem.kv_heads, " key heads do not divide ", problem.heads,
                   " query heads (axis 1); query is ", query, ", key is ", key);
  }
}

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
  check_extents(function, "query", query);
  check_extents(function, "key", key);
  check_extents(function, "value", value);
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
    check_heads(problem, query, key);
  }
  return problem;
}

template <class Q, class K, class V, class S, class M>
constexpr void check_tensor_types() {
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
  check_not_integers<Q, K, V>();
}

template <class Q, class K, class V, class S, class M>
constexpr void check_types() {
  if constexpr (is_ragged<Q> || is_ragged<K> || is_ragged<V>) {
    static_assert(is_ragged<Q> && is_ragged<K> && is_ragged<V>,
                  "heed: query, key and value are all ragged, or none of them is");
    check_tensor_types<TokensOf<const Q>, TokensOf<const K>, TokensOf<const V>, S, M>();
  } else {
    check_tensor_types<Q, K, V, S, M>();
  }
}

/// Refuses a gradient of another shape than its parameters, or that shares elements with what
/// `others(check)` hands to check(view, name).
template <class Bound, class Others>
void check_trained(const char* function, const Bound& bound, const Others& others) {
  if constexpr (trained<Bound>) {
    const auto& parameters = bound.parameters();
    if (bound.gradient.shape != parameters.shape) {
      fail(function, "the gradient of ", bound.parameter_name, " has shape ", bound.gradient.shape,
           ", but the parameter has shape ", parameters.shape);
    }
    auto gradient = spread(bound.gradient);
    // An axis of extent 1 that repeats over the scores.
    for (std::size_t axis = 0; axis < 4; ++axis) {
      if (gradient.shape[axis] == 1) gradient.strides[axis] = 0;
    }
    check_writable(function, gradient, "the gradient of a parameter");
    others([&](const auto& x, const char* name) {
      check_not_aliased(function, gradient, x, name, "the gradient of a parameter");
    });
  }
}

/// check(view, name) for the parameters of a bound score and of its modifiers.
void for_each_parameters(const auto& score, const auto& check) {
  const auto one = [&]<class Bound>(const Bound& bound) {
    if constexpr (has_parameters<Bound>) check(spread(bound.parameters()), bound.parameter_name);
  };
  one(score.similarity);
  std::apply([&](const auto&... modifier) { (one(modifier), ...); }, score.modifiers);
}

/// check(view, name) for the tensors that a mask reads.
void for_each_tensor_of(const auto& mask, const auto& check) {
  for_each_mask_tensor(mask, [&](const auto& x, const char* name) { check(spread(x), name); });
}

/// body(in_unit, definition) with the score in `Unit` and in natural units, which may be one.
template <class Number, class Unit, class S>
void with_scores(const S& score, const Problem& problem, const auto& body) {
  const auto definition = bind_score<Number, NaturalUnit>(score, problem);
  using InUnit = decltype(bind_score<Number, Unit>(score, problem));
  if constexpr (std::is_same_v<InUnit, std::remove_const_t<decltype(definition)>>) {
    body(definition, definition);
  } else {
    body(bind_score<Number, Unit>(score, problem), definition);
  }
}

/// Refuses a result that shares elements with a tensor of the mask.
void check_not_of_mask(const char* function, const auto& mask, const auto& result,
                       const char* result_name = "the output") {
  for_each_tensor_of(mask, [&](const auto& tensor, const char* name) {
    check_not_aliased(function, result, tensor, name, result_name);
  });
}

/// Refuses a result that shares elements with a parameter of the score or a tensor of the mask.
void check_not_of_policies(const char* function, const auto& score, const auto& mask,
                           const auto& result, const char* result_name = "the output") {
  for_each_parameters(score, [&](const auto& parameters, const char* name) {
    check_not_aliased(function, result, parameters, name, result_name);
  });
  check_not_of_mask(function, mask, result, result_name);
}

/// Refuses gradients of the parameters of a score that do not fit, or that share elements with what
/// is read or with other gradients. `inputs(check)` hands on what the call reads.
template <class Pass, class Output>
void check_trained_score(const char* function, const auto& score, const auto& inputs,
                         const Pass& pass, const Output& output) {
  const auto others = [&](const auto& check) {
    inputs(check);
    for_each_parameters(score, check);
    check(pass.output, "pass.output");
    check(spread(pass.log_sum_exp), "pass.log_sum_exp");
    check(pass.grad_output, "grad_output");
    check(output.query, "gradients.query");
    check(output.key, "gradients.key");
    check(output.value, "gradients.value");
  };
  constexpr std::size_t bounds =
      1 + std::tuple_size_v<std::remove_cvref_t<decltype(score.modifiers)>>;
  std::array<ByteBox, bounds> gradients;
  std::size_t count = 0;
  const auto one = [&]<class Bound>(const Bound& bound) {
    if constexpr (trained<Bound>) {
      check_trained(function, bound, others);
      const ByteBox own = byte_box(spread(bound.gradient));
      for (std::size_t n = 0; n < count; ++n) {
        if (share_bytes(own, gradients[n])) {
          fail(function, "the gradient of ", bound.parameter_name,
               " shares elements with that of another parameter");
        }
      }
      gradients[count++] = own;
    }
  };
  one(score.similarity);
  std::apply([&](const auto&... modifier) { (one(modifier), ...); }, score.modifiers);
}

/// Refuses gradients that share elements with a tensor of the policies, and gradients of parameters
/// as check_trained_score does.
template <class Call>
void check_gradients(const Call& call, const auto& score, const auto& mask, const auto& pass,
                     const auto& output) {
  const char* function = call.problem.function;
  check_not_of_policies(function, score, mask, output.query, "gradients.query");
  check_not_of_policies(function, score, mask, output.key, "gradients.key");
  check_not_of_policies(function, score, mask, output.value, "gradients.value");
  const auto inputs = [&](const auto& check) {
    call.for_each_input(check);
    for_each_tensor_of(mask, check);
  };
  check_trained_score(function, score, inputs, pass, output);
}

/// Refuses a pass that does not fit the inputs of `call`, and a gradient of the output that does
/// not.
template <class Call, class Output, class LogSumExp, class GradOutput>
void check_pass_shapes(const Call& call, const Output& output, const LogSumExp& log_sum_exp,
                       const GradOutput& grad_output) {
  std::array<Index, Call::rank - 1> rows;
  std::copy_n(call.query_shape.begin(), Call::rank - 1, rows.begin());
  const auto require = [&](const char* what, const auto& shape, const auto& expected,
                           const char* hint) {
    if (shape != expected) {
      fail(call.problem.function, what, " has shape ", shape, ", but these inputs give ", expected,
           hint);
    }
  };
  require("pass.output", output.shape, call.output_shape(), "; is the pass from other inputs?");
  require("pass.log_sum_exp", log_sum_exp.shape, rows, "; is the pass from other inputs?");
  require("grad_output", grad_output.shape, call.output_shape(), "");
}

/// The results of a call: of the shape of its queries, each of the type that goes with `Like`.
template <class Like, class Element, std::size_t rank>
struct CallResults {
  std::array<Index, rank> query_shape;
  Problem problem;

  std::array<Index, rank> output_shape() const {
    auto shape = query_shape;
    shape[rank - 1] = problem.value_dim;
    return shape;
  }
  auto make_output() const {
    check_extents(problem.function, "the output", output_shape());
    return make_result<Element, Like>(output_shape());
  }
  /// One number for each query.
  auto make_log_sum_exp() const {
    std::array<Index, rank - 1> shape;
    std::copy_n(query_shape.begin(), rank - 1, shape.begin());
    return make_result<Accumulator<Element>, Like>(shape);
  }
};

/// One call of attention: its tensors as rank 4, checked, with score, mask and dropout made for it.
template <class Q, class K, class V>
struct TensorCall : CallResults<Q, ScalarOf<Q>, rank_of<Q>> {
  using Results = CallResults<Q, ScalarOf<Q>, rank_of<Q>>;
  using Results::problem;
  using Results::query_shape;
  using Number = Accumulator<ScalarOf<Q>>;
  using FusedUnit = std::conditional_t<Laned<Number>, BinaryUnit, NaturalUnit>;
  using Element = ScalarOf<Q>;
  static constexpr std::size_t rank = rank_of<Q>;
  View<const ScalarOf<Q>, 4> query;
  TensorRows<ScalarOf<K>> keys;
  TensorRows<ScalarOf<V>> values;

  TensorCall(const char* function, const Q& q, const K& k, const V& v)
      : Results{view(q).shape, check_shapes(function, view(q).shape, view(k).shape, view(v).shape)},
        query(rank4(q)),
        keys{rank4(k)},
        values{rank4(v)} {}

  std::array<Index, rank> weights_shape() const {
    auto shape = query_shape;
    shape[rank - 1] = problem.keys;
    return shape;
  }
  auto make_weights() const {
    check_extents(problem.function, "the weights", weights_shape());
    return make_result<ScalarOf<Q>, Q>(weights_shape());
  }

  /// A tensor of the query's rank, and numbers for its rows, as the engines see them.
  template <class T>
  static auto wide(T& x) {
    return rank4(x);
  }
  template <class T>
  static auto wide_rows(T& x) {
    return expand<3, 1>(result_view(x));
  }

  template <class T>
  static void check_tokens(const T&, const char*) {
    static_assert(!is_ragged<T>, "heed: the output is ragged, but the inputs are not");
  }

  /// check(view, name) for everything that is read beside the policies.
  void for_each_input(const auto& check) const {
    check(query, "query");
    check(keys.tensor, "key");
    check(values.tensor, "value");
  }

  /// The forward pass on the engine that suits. `make` gives the ForwardOutput, once all is
  /// checked.
  template <class S, class M, class Make>
  void run(const S& score, const M& mask, const AttentionOptions& options, const Make& make) const {
    bind<FusedUnit>(score, mask, options, make, [&](const auto& call) {
      check_not_of_policies(problem.function, call.score, mask, call.output.output);
      if (problem.batch * problem.heads * problem.queries == 0) return;
      run_first_that_suits<Decode, Forward, Reference>(call, options.pool);
    });
  }

  /// The forward pass by the definition, which gives weights as well.
  template <class S, class M, class Make>
  void run_reference(const S& score, const M& mask, const AttentionOptions& options,
                     const Make& make) const {
    bind<NaturalUnit>(score, mask, options, make, [&](const auto& call) {
      check_not_of_policies(problem.function, call.score, mask, call.output.output);
      check_not_of_policies(problem.function, call.score, mask, call.output.weights, "the weights");
      run_first_that_suits<Reference>(call, options.pool);
    });
  }

  /// The scores alone. `make` gives the ScoreOutput, once all is checked.
  template <class S, class M, class Make>
  void run_scores(const S& score, const M& mask, const AttentionOptions& options,
                  const Make& make) const {
    bind<NaturalUnit>(score, mask, options, make, [&](const auto& call) {
      run_first_that_suits<ReferenceScores>(call, options.pool);
    });
  }

  /// The gradients. `make` gives the BackwardOutput, once all is checked; `pass` what of it is
  /// read.
  template <class Pass, class S, class M, class Make>
  void run_backward(const Pass& pass, const S& score, const M& mask,
                    const AttentionOptions& options, const Make& make) const {
    bind<FusedUnit>(score, mask, options, make, [&](const auto& call) {
      check_gradients(*this, call.definition, mask, pass, call.output);
      run_first_that_suits<Backward, ReferenceBackward>(call, options.pool);
      add_sink_gradients(call);
    });
  }

 private:
  /// Binds the policies, which is where they are checked, makes the output, then calls
  /// body(BoundCall).
  template <class Unit, class S, class M, class Make, class Body>
  void bind(const S& score, const M& mask, const AttentionOptions& options, const Make& make,
            const Body& body) const {
    with_scores<Number, Unit>(score, problem, [&](const auto& in_unit, const auto& definition) {
      const auto bound_mask = bind_mask(mask, problem);
      const Dropout dropout(problem.function, options.dropout, options.seed);
      const auto output = make();
      body(BoundCall<
           ScalarOf<Q>, TensorRows<ScalarOf<K>>, TensorRows<ScalarOf<V>>,
           std::remove_cvref_t<decltype(in_unit)>, std::remove_cvref_t<decltype(definition)>,
           std::remove_const_t<decltype(bound_mask)>, std::remove_const_t<decltype(output)>>{
          problem, query, keys, values, in_unit, definition, bound_mask, dropout, output});
    });
  }
};

}  // namespace detail
}  // namespace heed
