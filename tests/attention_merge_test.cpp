#include "score_support.hpp"

namespace heed::test {
namespace {

// Scores 0 and ln 3 with values 4 and 8: log-sum-exps 0 and ln 3, merged weights 1/4 and 3/4.
TEST(Merge, ByHand) {
  Matrix<double> query(1, 1), first(1, 1), second(1, 1), first_value(1, 1), second_value(1, 1);
  query << 1;
  first << 0;
  second << std::log(3);
  first_value << 4;
  second_value << 8;
  const auto merged = merge(attention_forward(query, first, first_value, dot_product()),
                            attention_forward(query, second, second_value, dot_product()));
  EXPECT_NEAR(merged.output(0, 0), 7, 1e-14);
  EXPECT_NEAR(merged.log_sum_exp(0), std::log(4), 1e-15);
}

template <class Scalar, int Rank>
void expect_split(const Sizes& sizes) {
  const Inputs in(sizes, 3);
  const Expected<Scalar> expected(in.query, in.key, in.value, scaled_dot(), everything());
  const auto q = make<Scalar, Rank>(in.query);
  const auto part = [&](Index first, Index last) {
    const auto k = make<Scalar, Rank>(rows(in.key, first, last));
    const auto v = make<Scalar, Rank>(rows(in.value, first, last));
    return attention_forward(q, k, v);
  };
  for (const Index at : {Index(0), Index(1), sizes.keys / 3, sizes.keys - 1, sizes.keys}) {
    SCOPED_TRACE(::testing::Message() << text(sizes) << " split at " << at);
    const auto merged = merge(part(0, at), part(at, sizes.keys));
    const auto turned = merge(part(at, sizes.keys), part(0, at));
    // Two passes round their results once more each.
    const double rounding = 4 * std::numeric_limits<Scalar>::epsilon();
    EXPECT_TRUE(near(reference(merged.output), expected.output, expected.output_bound + rounding));
    EXPECT_TRUE(near(reference(turned.output), expected.output, expected.output_bound + rounding));
    EXPECT_TRUE(expected.accepts_log_sum_exp(merged.log_sum_exp));
    EXPECT_TRUE(expected.accepts_log_sum_exp(turned.log_sum_exp));
  }
}

TEST(Merge, OfAnySplitIsTheWhole) {
  for (const Sizes& sizes : sweep()) {
    expect_split<float, 4>(sizes);
    expect_split<double, 4>(sizes);
  }
  expect_split<float, 3>({.batch = 3, .queries = 9, .keys = 70, .dim = 5, .width = 4});
  expect_split<float, 2>({.queries = 9, .keys = 70, .dim = 5, .width = 4});
}

TEST(Merge, AnEmptySideChangesNothing) {
  const Inputs in(
      {.batch = 2, .heads = 2, .key_heads = 2, .queries = 9, .keys = 30, .dim = 5, .width = 4});
  const auto q = make<float, 4>(in.query), k = make<float, 4>(in.key), v = make<float, 4>(in.value);
  const auto pass = attention_forward(q, k, v),
             empty = attention_forward(q, k, v, scaled_dot_product(), !no_mask());
  for (const auto& merged : {merge(pass, empty), merge(empty, pass)}) {
    EXPECT_TRUE(same(reference(merged.output), reference(pass.output)));
    EXPECT_TRUE(same(reference_rows(merged.log_sum_exp), reference_rows(pass.log_sum_exp)));
  }
  const auto nothing = merge(empty, empty);
  EXPECT_TRUE(same(reference(nothing.output), constant({2, 2, 9, 4}, 0)));
  EXPECT_TRUE(same(reference_rows(nothing.log_sum_exp), constant({2, 2, 9, 1}, -infinity)));
}

// Log-sum-exps of +-1e30: the larger side wins, and no exponential overflows.
TEST(Merge, OfVeryDifferentSides) {
  Matrix<float> query(1, 1), high(1, 1), low(1, 1), one(1, 1), two(1, 1);
  query << 1e15F;
  high << 1e15F;
  low << -1e15F;
  one << 1;
  two << 2;
  const auto a = attention_forward(query, high, one, dot_product()),
             b = attention_forward(query, low, two, dot_product());
  EXPECT_EQ(merge(a, b).output(0, 0), 1);
  EXPECT_EQ(merge(b, a).output(0, 0), 1);
  EXPECT_EQ(merge(b, b).output(0, 0), 2);
}

TEST(Merge, RefusesPassesOfDifferentShapes) {
  const auto pass = [](Index queries, Index width) {
    const Inputs in({.queries = queries, .keys = 3, .dim = 2, .width = width});
    return attention_forward(make<float, 2>(in.query), make<float, 2>(in.key),
                             make<float, 2>(in.value));
  };
  EXPECT_TRUE(refuses([&] { merge(pass(13, 4), pass(17, 4)); }, {"heed::merge", "13", "17"}));
  EXPECT_TRUE(refuses([&] { merge(pass(5, 13), pass(5, 17)); }, {"heed::merge", "13", "17"}));
}

TEST(Merge, RefusesALogSumExpOfAnotherShape) {
  const auto q = make<float, 3>(random({2, 1, 7, 4}, 1));
  const auto pass = attention_forward(q, q, q);
  const auto with_rows = [&](Index batch, Index queries) {
    auto other = pass;
    other.log_sum_exp.setZero(batch, queries);
    return other;
  };
  for (const auto& other : {with_rows(2, 5), with_rows(1, 7), with_rows(7, 2), with_rows(0, 0)}) {
    const std::string shape = "(" + std::to_string(other.log_sum_exp.rows()) + ", " +
                              std::to_string(other.log_sum_exp.cols()) + ")";
    EXPECT_TRUE(refuses([&] { merge(pass, other); }, {"heed::merge", shape, "(2, 7, 4)"}));
    EXPECT_TRUE(refuses([&] { merge(other, pass); }, {"heed::merge", shape, "(2, 7, 4)"}));
    EXPECT_TRUE(refuses([&] { merge(other, other); }, {"heed::merge", shape, "(2, 7, 4)"}));
  }
}

// What a pass refers to is read only; the result owns its elements.
TEST(Merge, OfViewsLeavesThemAlone) {
  const auto q = make<float, 4>(random({2, 3, 7, 4}, 1));
  auto a = attention_forward(q, q, q), b = attention_forward(q, q, q, dot_product());
  const auto expected = merge(a, b);
  const auto views = [](auto& pass) {
    return AttentionPass<View<float, 4>, View<float, 3>>{view(pass.output), view(pass.log_sum_exp)};
  };
  const auto before = a;
  const auto merged = merge(views(a), views(b));
  EXPECT_TRUE(same(reference(merged.output), reference(expected.output)));
  EXPECT_TRUE(same(reference_rows(merged.log_sum_exp), reference_rows(expected.log_sum_exp)));
  EXPECT_TRUE(same(reference(a.output), reference(before.output)));
  EXPECT_TRUE(same(reference_rows(a.log_sum_exp), reference_rows(before.log_sum_exp)));
}

}  // namespace
}  // namespace heed::test
