#pragma once

#include <array>
#include <type_traits>
#include <utility>

#include "heed/core/alias.hpp"
#include "heed/core/error.hpp"
#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/core/view.hpp"
#include "heed/kernel/gemm.hpp"
#include "heed/policy/problem.hpp"

namespace heed {
namespace detail {

template <class A, class B>
constexpr void check_factors() {
  static_assert(rank_of<A> >= 2 && rank_of<A> <= 4, "heed: factors have a rank from 2 to 4");
  static_assert(rank_of<A> == rank_of<B>, "heed: both factors have one rank");
  static_assert(std::is_same_v<Accumulator<ScalarOf<A>>, Accumulator<ScalarOf<B>>>,
                "heed: both factors are of one number type (half, bfloat16 and float mix)");
  static_assert(!std::is_same_v<ScalarOf<A>, bool>, "heed: a product is of numbers, not of bool");
}

/// Shape of the product, or std::invalid_argument.
template <std::size_t R>
std::array<Index, R> product_shape(const char* function, const std::array<Index, R>& a,
                                   const std::array<Index, R>& b) {
  check_extents(function, "the first factor", a);
  check_extents(function, "the second factor", b);
  for (std::size_t axis = 0; axis + 2 < R; ++axis) {
    if (a[axis] != b[axis]) {
      fail(function, "the factors differ in axis ", static_cast<Index>(axis), ": ", a[axis],
           " and ", b[axis], "; they are ", a, " and ", b);
    }
  }
  if (a[R - 1] != b[R - 2]) {
    fail(function, "the last axis of the first factor, ", a[R - 1],
         ", is not the one before the last of the second, ", b[R - 2], "; they are ", a, " and ",
         b);
  }
  auto shape = a;
  shape[R - 1] = b[R - 1];
  check_extents(function, "the product", shape);
  return shape;
}

}  // namespace detail

/// Gradients of both factors of a product, each of its factor's shape.
template <class A, class B>
struct MatmulGradients {
  A a;
  B b;
};

/// a b for each pair of matrices: (..., m, k) x (..., k, n) -> (..., m, n), of rank 2 to 4 with
/// equal leading axes; either factor may be transposed(...), which costs no copy. The result has
/// the storage order of a. std::invalid_argument where the shapes do not fit.
template <class A, class B>
auto batched_matmul(const A& a, const B& b) {
  detail::check_factors<A, B>();
  const auto shape = detail::product_shape("batched_matmul", view(a).shape, view(b).shape);
  auto result = detail::make_result<detail::ScalarOf<A>, A>(shape);
  detail::multiply(detail::rank4(a), detail::rank4(b), detail::rank4(result), nullptr);
  return result;
}

/// Writes a b into out, which shares no elements with a or b, on the threads of the pool. A second
/// call of one shape allocates nothing.
template <class Out, class A, class B>
void batched_matmul_into(Out&& out, const A& a, const B& b,
                         Eigen::ThreadPoolInterface* pool = nullptr) {
  detail::check_factors<A, B>();
  const auto shape = detail::product_shape("batched_matmul_into", view(a).shape, view(b).shape);
  const auto target = view(out);
  static_assert(!std::is_const_v<std::remove_pointer_t<decltype(target.data)>>,
                "heed: the output cannot be written to");
  static_assert(decltype(target)::Rank == detail::rank_of<A>,
                "heed: the output has the rank of the factors");
  if (target.shape != shape) {
    detail::fail("batched_matmul_into", "the output has shape ", target.shape, ", the product ",
                 shape);
  }
  const auto wide = detail::rank4(target);
  detail::check_writable("batched_matmul_into", wide, "the output");
  detail::check_not_aliased("batched_matmul_into", wide, detail::rank4(a), "the first factor");
  detail::check_not_aliased("batched_matmul_into", wide, detail::rank4(b), "the second factor");
  detail::multiply(detail::rank4(a), detail::rank4(b), wide, pool);
}

/// Gradients of a and b from that of batched_matmul(a, b): dA = dC B^T and dB = A^T dC, on the
/// threads of the pool. Each has the shape of its factor as it was given, transposed(...) or not,
/// its number type and its storage order. std::invalid_argument where the shapes do not fit.
template <class A, class B, class G>
auto batched_matmul_backward(const A& a, const B& b, const G& grad,
                             Eigen::ThreadPoolInterface* pool = nullptr) {
  detail::check_factors<A, B>();
  detail::check_factors<A, G>();
  constexpr const char* function = "batched_matmul_backward";
  detail::check_gradient_shape(function, "the product",
                               detail::product_shape(function, view(a).shape, view(b).shape),
                               view(grad).shape);
  auto grad_a = detail::make_result<detail::ScalarOf<A>, A>(view(a).shape);
  auto grad_b = detail::make_result<detail::ScalarOf<B>, B>(view(b).shape);
  detail::multiply(detail::rank4(grad), transposed(detail::rank4(b)), detail::rank4(grad_a), pool);
  detail::multiply(transposed(detail::rank4(a)), detail::rank4(grad), detail::rank4(grad_b), pool);
  return MatmulGradients<decltype(grad_a), decltype(grad_b)>{std::move(grad_a), std::move(grad_b)};
}

}  // namespace heed
