#pragma once

#include <gtest/gtest.h>

#include <mpi.h>
#include <algorithm>
#include <cmath>
#include <vector>

#include "../support.hpp"
#include "heed/mpi.hpp"

namespace heed::test {

inline int world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}
inline int world_size() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

inline constexpr SequenceLayout layouts[] = {SequenceLayout::contiguous, SequenceLayout::zigzag};

/// Lengths that divide into the chunks of 1, 2, 3, 4 and 8 ranks: multiples of 48.
struct Extents {
  Index batch = 2, heads = 4, kv_heads = 2, queries = 96, keys = 96, dim = 7, width = 5;
};

/// The same numbers on every rank.
template <class Scalar>
struct Whole {
  using Heads = Tensor<Scalar, 4>;
  Heads query, key, value, grad;

  explicit Whole(const Extents& e, double scale = 1)
      : query(make<Scalar, 4>(random({e.batch, e.heads, e.queries, e.dim}, 1, scale))),
        key(make<Scalar, 4>(random({e.batch, e.kv_heads, e.keys, e.dim}, 2, scale))),
        value(make<Scalar, 4>(random({e.batch, e.kv_heads, e.keys, e.width}, 3))),
        grad(make<Scalar, 4>(random({e.batch, e.heads, e.queries, e.width}, 4))) {}
};

/// The rows of a rank's queries, in the order of its piece, of a tensor over pairs.
template <class T>
T rows_of_rank(const T& pairs, SequenceLayout layout) {
  return shard(pairs, MPI_COMM_WORLD, layout).piece;
}

/// (batch, heads, queries, 1) of all ranks' log-sum-exps (batch, heads, queries).
template <class Rows>
auto gather_rows(const Rows& rows, SequenceLayout layout) {
  const auto own = view(rows);
  using Number = typename std::remove_const_t<decltype(own)>::Scalar;
  const View<const Number, 4> as_column{own.data,
                                        {own.shape[0], own.shape[1], own.shape[2], 1},
                                        {own.strides[0], own.strides[1], own.strides[2], 1}};
  return gather(as_column, MPI_COMM_WORLD, layout);
}

template <class T>
double largest_of(const T& x) {
  double result = 0;
  for (Index n = 0; n < x.size(); ++n) result = std::max(result, std::abs(number(x.data()[n])));
  return result;
}

/// Within the bound of the largest, or equal.
template <class A, class B>
::testing::AssertionResult close(const A& actual, const B& expected, double bound) {
  return near(reference(actual), reference(expected), bound * (1 + largest_of(expected)));
}

/// The same bits.
template <class A, class B>
::testing::AssertionResult identical(const A& actual, const B& expected) {
  if (actual.size() != expected.size()) return ::testing::AssertionFailure() << "other shapes";
  for (Index n = 0; n < actual.size(); ++n) {
    if (!(actual.data()[n] == expected.data()[n])) {
      return ::testing::AssertionFailure() << "element " << n << ": " << number(actual.data()[n])
                                           << " and not " << number(expected.data()[n]);
    }
  }
  return ::testing::AssertionSuccess();
}

/// The pieces of this rank.
template <class Scalar>
struct Pieces {
  SequenceLayout layout;
  Tensor<Scalar, 4> query, key, value, grad;

  Pieces(const Whole<Scalar>& whole, SequenceLayout of)
      : layout(of),
        query(shard(whole.query, MPI_COMM_WORLD, of).piece),
        key(shard(whole.key, MPI_COMM_WORLD, of).piece),
        value(shard(whole.value, MPI_COMM_WORLD, of).piece),
        grad(shard(whole.grad, MPI_COMM_WORLD, of).piece) {}
};

/// Ring attention is attention for both layouts: output, log-sum-exp and gradients. `score()` and
/// `mask()` are for the whole, `score(layout)` and `mask(layout)` for a rank; compare(layout,
/// bound) is for the gradients of parameters, which the scores have a place for.
template <class Scalar>
void expect_ring(const Extents& extents, const auto& whole_score, const auto& ring_score,
                 const auto& whole_mask, const auto& ring_mask, const auto& compare,
                 const AttentionOptions& options = {}) {
  const Whole<Scalar> whole(extents);
  const auto expected_pass =
      attention_forward(whole.query, whole.key, whole.value, whole_score(), whole_mask(), options);
  const auto expected = attention_backward(whole.query, whole.key, whole.value, expected_pass,
                                           whole.grad, whole_score(), whole_mask(), options);
  const double bound = 256 * epsilon<Scalar>();
  for (const SequenceLayout layout : layouts) {
    const Pieces<Scalar> own(whole, layout);
    const auto pass = ring_attention_forward(own.query, own.key, own.value, MPI_COMM_WORLD, layout,
                                             ring_score(layout), ring_mask(layout), options);
    const auto gradients =
        ring_attention_backward(own.query, own.key, own.value, pass, own.grad, MPI_COMM_WORLD,
                                layout, ring_score(layout), ring_mask(layout), options);
    const char* name = layout == SequenceLayout::zigzag ? "zigzag" : "contiguous";
    EXPECT_TRUE(close(gather(pass.output, MPI_COMM_WORLD, layout), expected_pass.output, bound))
        << name;
    EXPECT_TRUE(near(reference(gather_rows(pass.log_sum_exp, layout)),
                     reference_rows(expected_pass.log_sum_exp), 8 * bound))
        << "log-sum-exp, " << name;
    EXPECT_TRUE(close(gather(gradients.query, MPI_COMM_WORLD, layout), expected.query, bound))
        << "query, " << name;
    EXPECT_TRUE(close(gather(gradients.key, MPI_COMM_WORLD, layout), expected.key, bound))
        << "key, " << name;
    EXPECT_TRUE(close(gather(gradients.value, MPI_COMM_WORLD, layout), expected.value, bound))
        << "value, " << name;
    compare(layout, bound);
  }
}
/// Where the score and the mask are the same for all.
template <class Scalar>
void expect_ring(const Extents& extents, const auto& score, const auto& mask,
                 const AttentionOptions& options = {}) {
  expect_ring<Scalar>(
      extents, [&] { return score; }, [&](SequenceLayout) { return score; }, [&] { return mask; },
      [&](SequenceLayout) { return mask; }, [](SequenceLayout, double) {}, options);
}

}  // namespace heed::test
