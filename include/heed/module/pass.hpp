#pragma once

#include <array>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "heed/core/alias.hpp"
#include "heed/core/error.hpp"
#include "heed/core/scratch.hpp"
#include "heed/core/view.hpp"
#include "heed/module/linear.hpp"
#include "heed/operator/attention.hpp"
#include "heed/operator/attention_backward.hpp"

namespace heed {

/// What a module's backward gives: the gradients of its inputs, each of its input's shape, number
/// type and storage order, and of its parameters, which are a module themselves.
template <class Query, class Key, class Value, class Parameters>
struct ModuleGradients {
  Query query;
  Key key;
  Value value;
  Parameters parameters;
};

/// What a pass through a module was made from: views of the inputs, which must outlive the pass,
/// and a copy of the mask.
template <class Q, class K, class V, class M>
struct ModuleInputs {
  detail::ViewOf<const Q> query;
  detail::ViewOf<const K> key;
  detail::ViewOf<const V> value;
  M mask;
  AttentionOptions options;

  template <class Parameters>
  auto make_gradients(Parameters parameters) const {
    auto dq = detail::make_result<detail::ScalarOf<Q>, Q>(query.shape);
    auto dk = detail::make_result<detail::ScalarOf<K>, K>(key.shape);
    auto dv = detail::make_result<detail::ScalarOf<V>, V>(value.shape);
    return ModuleGradients<decltype(dq), decltype(dk), decltype(dv), Parameters>{
        std::move(dq), std::move(dk), std::move(dv), std::move(parameters)};
  }
};

namespace detail {

/// Weights are public: refuses a projection that was given others than (out, in), or a bias for
/// another number of outputs.
template <class Scalar>
void check_projection(const char* function, const char* name, const Linear<Scalar>& projection,
                      Index out, Index in) {
  using Shape = std::array<Index, 2>;
  const Shape shape{projection.out_features(), projection.in_features()}, needed{out, in};
  if (shape != needed) {
    fail(function, "the weight of ", name, " has shape ", shape, ", but the module needs ", needed);
  }
  if (projection.bias.size() != 0 && projection.bias.size() != out) {
    fail(function, "the bias of ", name, " has ", projection.bias.size(), " entries for ", out,
         " outputs");
  }
}

/// Refuses a pass whose projection has not the shape that this one gives for the input, each of
/// rank 2 to 4.
template <class Input, class Projected, class Scalar>
void check_projected(const char* function, const char* name, const Input& input,
                     const Projected& projected, const Linear<Scalar>& projection) {
  const auto x = view(input).shape;
  const auto y = view(projected).shape;
  auto expected = x;
  expected.back() = projection.out_features();
  if (x.back() != projection.in_features() || y != expected) {
    fail(function, "the pass has a ", name, " of shape ", x, ", projected to ", y,
         ", but the projection's weight is (", projection.out_features(), ", ",
         projection.in_features(), "); is the pass from another module?");
  }
}

/// (seq, dim) as (1, seq, dim).
template <class Element, int Rank>
View<Element, 3> as_batch(const View<Element, Rank>& x) {
  const auto wide = detail::expand<4, 2>(x);
  return {wide.data,
          {wide.shape[0], wide.shape[2], wide.shape[3]},
          {wide.strides[0], wide.strides[2], wide.strides[3]}};
}

/// Room for a tensor.
template <class Element, std::size_t Rank>
View<Element, static_cast<int>(Rank)> take_tensor(Layout& layout,
                                                  const std::array<Index, Rank>& shape) {
  static_assert(std::is_trivially_copyable_v<Element>,
                "heed: memory is lent to plain numbers only");
  View<Element, static_cast<int>(Rank)> result{nullptr, shape, {}};
  Index stride = 1;
  for (std::size_t axis = Rank; axis-- > 0; stride *= shape[axis]) result.strides[axis] = stride;
  result.data = layout.take<Element>(stride);
  return result;
}

/// What a module's result is written to, as rank 4: refused where its shape is another or where
/// elements of it overlap.
template <class Out, std::size_t Rank>
auto module_target(const char* function, Out& out, const std::array<Index, Rank>& shape) {
  const auto target = view(out);
  using Element = std::remove_pointer_t<decltype(target.data)>;
  static_assert(!std::is_const_v<Element>, "heed: the output cannot be written to");
  static_assert(decltype(target)::Rank == Rank, "heed: the output has the rank of the query");
  check_not_integers<Out>();
  if (target.shape != shape) {
    fail(function, "the output has shape ", target.shape, ", but the module gives ", shape);
  }
  const auto wide = rank4(target);
  check_writable(function, wide, "the output");
  return wide;
}

/// Refuses an output that shares elements with a projection's parameters.
template <class Out, class Scalar>
void check_not_parameters(const char* function, const View<Out, 4>& out,
                          const Linear<Scalar>& projection) {
  check_not_aliased(function, out, rank4(projection.weight), "a weight");
  check_not_aliased(function, out, rank4(projection.bias), "a bias");
}

/// Refuses a gradient of another shape than the output has.
template <class Output, class G>
void check_output_gradient(const char* function, const Output& output, const G& grad_output) {
  static_assert(rank_of<Output> == rank_of<G>,
                "heed: grad_output has the rank of the output of the pass");
  check_gradient_shape(function, "the output", view(output).shape, view(grad_output).shape);
}

}  // namespace detail
}  // namespace heed
