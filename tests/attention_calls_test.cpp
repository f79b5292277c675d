#include <unsupported/Eigen/CXX11/ThreadPool>

#include "score_support.hpp"

namespace heed::test {
namespace {

// ---------------------------------------------------------------- where the result goes

TEST(Into, WritesWhatAttentionReturns) {
  for (const Sizes& sizes : sweep()) {
    const Inputs in(sizes);
    const auto q = make<float, 4>(in.query), k = make<float, 4>(in.key),
               v = make<float, 4>(in.value);
    const Reference expected = reference(attention(q, k, v, scaled_dot_product(), causal()));
    Tensor<float, 4> row_major(sizes.batch, sizes.heads, sizes.queries, sizes.width);
    attention_into(row_major, q, k, v, scaled_dot_product(), causal());
    EXPECT_TRUE(same(reference(row_major), expected)) << text(sizes);
    Eigen::Tensor<float, 4> column_major(sizes.batch, sizes.heads, sizes.queries, sizes.width);
    attention_into(column_major, q, k, v, scaled_dot_product(), causal());
    EXPECT_TRUE(same(reference(column_major), expected)) << text(sizes);
  }
}

TEST(Into, WritesInsideOfAViewAlone) {
  for (const Sizes& sizes : sweep()) {
    const Inputs in(sizes);
    const auto q = make<float, 4>(in.query), k = make<float, 4>(in.key),
               v = make<float, 4>(in.value);
    const Reference expected = reference(attention(q, k, v));
    const Reference blank = constant(expected.dimensions(), nan);
    for (const auto& backwards : directions) {
      Scattered<float> out(blank, backwards);
      attention_into(out.view(), q, k, v);
      EXPECT_TRUE(same(reference(out.view()), expected)) << text(sizes);
      EXPECT_EQ(out.written(), expected.size()) << text(sizes);
    }
  }
}

TEST(Into, WritesBackIntoPackedHeads) {
  const auto x = make<double, 3>(random({2, 1, 33, 24}, 1));
  Tensor<double, 3> out(2, 33, 24);
  attention_into(split_heads(out, 4), split_heads(x, 4), split_heads(x, 4), split_heads(x, 4));
  const auto expected = attention(split_heads(x, 4), split_heads(x, 4), split_heads(x, 4));
  for_each_index({2, 4, 33, 6}, [&](Index b, Index h, Index i, Index d) {
    EXPECT_EQ(out(b, i, 6 * h + d), expected(b, h, i, d));
  });
}

// Rows that lie apart are read in place by few queries, and copied for many.
TEST(Into, PackedHeadsGiveTheBitsOfSeparateOnes) {
  for (const Index queries : {5, 500}) {
    const auto q = make<float, 3>(random({2, 1, queries, 36}, 1)),
               k = make<float, 3>(random({2, 1, 401, 18}, 2)),
               v = make<float, 3>(random({2, 1, 401, 14}, 3));
    const auto apart = [](const auto& x, Index heads) {
      return make<float, 4>(reference(split_heads(x, heads)));
    };
    EXPECT_TRUE(same(reference(attention(split_heads(q, 4), split_heads(k, 2), split_heads(v, 2),
                                         scaled_dot_product(), causal())),
                     reference(attention(apart(q, 4), apart(k, 2), apart(v, 2),
                                         scaled_dot_product(), causal()))));
  }
}

TEST(Into, BlocksAndMapsOfMatrices) {
  const Inputs in({.queries = 9, .keys = 30, .dim = 4, .width = 5});
  const auto q = make<float, 2>(in.query), k = make<float, 2>(in.key), v = make<float, 2>(in.value);
  const Reference expected = reference(attention(q, k, v));
  Matrix<float> around(20, 20);
  around.setConstant(-7);
  auto block = around.block(2, 3, 9, 5);
  attention_into(block, q, k, v);
  EXPECT_TRUE(same(reference(Matrix<float>(around.block(2, 3, 9, 5))), expected));
  EXPECT_EQ((around.array() == -7).count(), 400 - 45);
  std::vector<float> memory(45);
  Eigen::Map<Eigen::MatrixXf> map(memory.data(), 9, 5);
  attention_into(map, q, k, v);
  EXPECT_TRUE(same(reference(Matrix<float>(map)), expected));
}

TEST(Into, RefusesToWriteOverItsInputs) {
  auto x = make<float, 2>(random({1, 1, 9, 4}, 1));
  const auto other = make<float, 2>(random({1, 1, 9, 4}, 2));
  const Reference before = reference(x);
  EXPECT_TRUE(
      refuses([&] { attention_into(x, x, other, other); }, {"heed::attention_into", "query"}));
  EXPECT_TRUE(
      refuses([&] { attention_into(x, other, x, other); }, {"heed::attention_into", "key"}));
  EXPECT_TRUE(
      refuses([&] { attention_into(x, other, other, x); }, {"heed::attention_into", "value"}));
  EXPECT_TRUE(same(reference(x), before));
  // Side by side in one block of memory is no overlap.
  Matrix<float> both(9, 8);
  both.leftCols(4) = x;
  both.rightCols(4).setZero();
  attention_into(both.rightCols(4), both.leftCols(4), other, other);
  EXPECT_TRUE(
      same(reference(Matrix<float>(both.rightCols(4))), reference(attention(x, other, other))));
}

// ---------------------------------------------------------------- threads

template <class Score, class Mask>
void expect_same_for_any_threads(const Sizes& sizes, const Score& score, const Mask& mask) {
  SCOPED_TRACE(text(sizes));
  const Inputs in(sizes);
  const auto q = make<float, 4>(in.query), k = make<float, 4>(in.key), v = make<float, 4>(in.value);
  const auto alone = attention_forward(q, k, v, score, mask);
  const auto alone_with_weights = attention_with_weights(q, k, v, score, mask);
  for (const int threads : {1, 2, 3}) {
    Eigen::ThreadPool pool(threads);
    const AttentionOptions options{.pool = &pool};
    const auto pass = attention_forward(q, k, v, score, mask, options);
    EXPECT_TRUE(same(reference(pass.output), reference(alone.output))) << threads;
    EXPECT_TRUE(same(reference_rows(pass.log_sum_exp), reference_rows(alone.log_sum_exp)))
        << threads;
    const auto with_weights = attention_with_weights(q, k, v, score, mask, options);
    EXPECT_TRUE(same(reference(with_weights.output), reference(alone_with_weights.output)))
        << threads;
    EXPECT_TRUE(same(reference(with_weights.weights), reference(alone_with_weights.weights)))
        << threads;
  }
}

TEST(Threads, ChangeNoBit) {
  for (const Sizes& sizes : sweep())
    expect_same_for_any_threads(sizes, scaled_dot_product(), causal());
  const std::vector<Sizes> extents = {
      {.batch = 1, .heads = 1, .key_heads = 1, .queries = 700, .keys = 700, .dim = 16, .width = 16},
      {.batch = 1, .heads = 1, .key_heads = 1, .queries = 1, .keys = 5000, .dim = 16, .width = 16},
      {.batch = 5, .heads = 7, .key_heads = 7, .queries = 5, .keys = 9, .dim = 4, .width = 3},
      {.batch = 1, .heads = 8, .key_heads = 2, .queries = 1, .keys = 900, .dim = 16, .width = 16}};
  for (const Sizes& sizes : extents) {
    expect_same_for_any_threads(sizes, scaled_dot_product(), causal());
    const auto w = vector_of<float>(sizes.dim, 4);
    expect_same_for_any_threads(sizes, additive(w) | softcap(2), sliding_window(50, 10));
  }
}

// A pool's own task may call attention with the same pool: nobody waits for a thread that waits.
TEST(Threads, ACallFromWithinThePool) {
  const Inputs in(
      {.batch = 2, .heads = 2, .key_heads = 2, .queries = 100, .keys = 100, .dim = 8, .width = 8});
  const auto q = make<float, 4>(in.query), k = make<float, 4>(in.key), v = make<float, 4>(in.value);
  const Reference expected = reference(attention(q, k, v));
  Eigen::ThreadPool pool(2);
  const AttentionOptions options{.pool = &pool};
  std::vector<Reference> results(4);
  Eigen::Barrier barrier(4);
  for (Reference& result : results) {
    pool.Schedule([&] {
      result = reference(attention(q, k, v, scaled_dot_product(), no_mask(), options));
      barrier.Notify();
    });
  }
  barrier.Wait();
  for (const Reference& result : results) EXPECT_TRUE(same(result, expected));
}

// What a user's lambda throws in a thread of the pool reaches the caller, and the pool lives on.
TEST(Threads, AnExceptionReachesTheCaller) {
  const Inputs in(
      {.batch = 2, .heads = 4, .key_heads = 4, .queries = 100, .keys = 100, .dim = 8, .width = 8});
  const auto q = make<float, 4>(in.query), k = make<float, 4>(in.key), v = make<float, 4>(in.value);
  Eigen::ThreadPool pool(2);
  const AttentionOptions options{.pool = &pool};
  const auto throwing = mask_if([](Index, Index, Index i, Index) -> bool {
    if (i == 70) throw std::domain_error("from the lambda");
    return true;
  });
  EXPECT_THROW(attention(q, k, v, scaled_dot_product(), throwing, options), std::domain_error);
  EXPECT_THROW(attention(q, k, v, scaled_dot_product(), throwing), std::domain_error);
  EXPECT_TRUE(same(reference(attention(q, k, v, scaled_dot_product(), no_mask(), options)),
                   reference(attention(q, k, v))));
}

// ---------------------------------------------------------------- shapes that do not fit

template <class Q, class K, class V, class Out>
void expect_refused(const Q& q, const K& k, const V& v, Out out,
                    std::initializer_list<std::string> numbers) {
  const auto with = [&](const char* function, auto call) {
    EXPECT_TRUE(refuses(call, {std::string("heed::") + function + ":"}));
    EXPECT_TRUE(refuses(call, numbers)) << function;
  };
  with("attention", [&] { attention(q, k, v); });
  with("attention_with_weights", [&] { attention_with_weights(q, k, v); });
  with("attention_forward", [&] { attention_forward(q, k, v); });
  with("scaled_dot_product_attention", [&] { scaled_dot_product_attention(q, k, v); });
  out.setConstant(-7);
  with("attention_into", [&] { attention_into(out, q, k, v); });
  const Reference untouched = reference(out);
  EXPECT_TRUE(same(untouched, constant(untouched.dimensions(), -7)));
}

Tensor<float, 4> four(Index batch, Index heads, Index rows, Index columns) {
  return make<float, 4>(random({batch, heads, rows, columns}, 1));
}
Tensor<float, 3> three(Index batch, Index rows, Index columns) {
  return make<float, 3>(random({batch, 1, rows, columns}, 1));
}
Matrix<float> two(Index rows, Index columns) {
  return make<float, 2>(random({1, 1, rows, columns}, 1));
}

TEST(Shapes, ThatDoNotFitAreRefused) {
  expect_refused(two(5, 13), two(6, 17), two(6, 4), two(5, 4), {"(5, 13)", "(6, 17)"});
  expect_refused(two(5, 3), two(13, 3), two(17, 4), two(5, 4), {"(13, 3)", "(17, 4)"});
  expect_refused(three(2, 5, 13), three(2, 6, 17), three(2, 6, 4), three(2, 5, 4),
                 {"(2, 5, 13)", "(2, 6, 17)"});
  expect_refused(three(2, 5, 3), three(3, 6, 3), three(3, 6, 4), three(2, 5, 4),
                 {"(2, 5, 3)", "(3, 6, 3)"});
  expect_refused(three(2, 5, 3), three(2, 6, 3), three(3, 6, 4), three(2, 5, 4), {"(3, 6, 4)"});
  expect_refused(three(2, 5, 3), three(2, 13, 3), three(2, 17, 4), three(2, 5, 4),
                 {"(2, 13, 3)", "(2, 17, 4)"});
  expect_refused(four(2, 4, 5, 3), four(2, 3, 6, 3), four(2, 3, 6, 4), four(2, 4, 5, 4),
                 {"(2, 4, 5, 3)", "(2, 3, 6, 3)"});
  expect_refused(four(2, 2, 5, 3), four(2, 4, 6, 3), four(2, 4, 6, 4), four(2, 2, 5, 4),
                 {"(2, 2, 5, 3)", "(2, 4, 6, 3)"});
  expect_refused(four(2, 4, 5, 3), four(2, 0, 6, 3), four(2, 0, 6, 4), four(2, 4, 5, 4),
                 {"(2, 4, 5, 3)", "(2, 0, 6, 3)"});
  expect_refused(four(2, 4, 5, 3), four(2, 4, 6, 3), four(2, 2, 6, 4), four(2, 4, 5, 4),
                 {"(2, 4, 6, 3)", "(2, 2, 6, 4)"});
  expect_refused(four(2, 4, 5, 3), four(3, 4, 6, 3), four(3, 4, 6, 4), four(2, 4, 5, 4),
                 {"(2, 4, 5, 3)", "(3, 4, 6, 3)"});
}

TEST(Shapes, OfTheOutputAreCheckedBeforeItIsWritten) {
  const auto q = four(2, 4, 5, 3), k = four(2, 2, 6, 3), v = four(2, 2, 6, 4);
  for (const Shape& shape :
       {Shape{3, 4, 5, 4}, Shape{2, 3, 5, 4}, Shape{2, 4, 9, 4}, Shape{2, 4, 5, 9}}) {
    Tensor<float, 4> out(shape);
    out.setConstant(-7);
    EXPECT_TRUE(refuses([&] { attention_into(out, q, k, v); },
                        {"heed::attention_into", text(shape), "(2, 4, 5, 4)"}));
    EXPECT_TRUE(same(reference(out), constant(shape, -7)));
  }
}

TEST(Shapes, OfMasksAndScoresAreCheckedBeforeAnythingIsWritten) {
  const auto q = three(2, 5, 3), k = three(2, 6, 3);
  auto out = three(2, 5, 3);
  out.setConstant(-7);
  EXPECT_TRUE(refuses([&] { attention_into(out, q, k, k, dot_product(), valid_lens({3, 2, 1})); },
                      {"heed::attention_into"}));
  EXPECT_TRUE(refuses([&] { attention_into(out, q, k, k, dot_product(), valid_lens({3, -2})); },
                      {"heed::attention_into", "-2"}));
  EXPECT_TRUE(refuses([&] { attention_into(out, q, k, k, dot_product() | bias(two(5, 7))); },
                      {"heed::attention_into", "7"}));
  EXPECT_TRUE(
      refuses([&] { attention_into(out, q, k, k, dot_product(), no_mask(), {.dropout = 2}); },
              {"heed::attention_into"}));
  EXPECT_TRUE(same(reference(out), constant({2, 1, 5, 3}, -7)));
}

}  // namespace
}  // namespace heed::test
