#include "heed/attention.hpp"
#include "heed/softmax.hpp"
#include "score_support.hpp"

namespace heed::test {
namespace {

// q = (1, 2), (0, 1); k = (3, 1), (1, 0), (-1, 1). q.k: 5, 1, 1 and 1, 0, 1. ALiBi with a slope of
// .5 adds 0, .5, 1 to the first query and -.5, 0, .5 to the second. Causal, bottom right: the first
// sees two keys.
TEST(AttentionScores, ByHand) {
  Matrix<double> q(2, 2), k(3, 2), plain(2, 3), changed(2, 3);
  q << 1, 2, 0, 1;
  k << 3, 1, 1, 0, -1, 1;
  plain << 5, 1, 1, 1, 0, 1;
  changed << 5, 1.5, -infinity, .5, 0, 1.5;
  EXPECT_TRUE(same(reference(attention_scores(q, k, dot_product())), reference(plain)));
  EXPECT_TRUE(near(reference(attention_scores(q, k)),
                   reference(Matrix<double>(plain / std::sqrt(2.))), 1e-15));
  const Matrix<double> scores = attention_scores(q, k, dot_product() | alibi({.5}), causal());
  EXPECT_TRUE(same(reference(scores), reference(changed)));
}

/// Scores as the formula gives them in double.
template <class Scalar, int Rank, int Order>
void expect_scores(const Reference& query, const Reference& key) {
  const Reference in_q = rounded<Scalar>(query), in_k = rounded<Scalar>(key);
  const auto q = make<Scalar, Rank, Order>(in_q), k = make<Scalar, Rank, Order>(in_k);
  const auto score = gaussian(.5) | softcap(3) |
                     alibi(std::vector<double>(static_cast<std::size_t>(in_q.dimension(1)), .25));
  const auto mask = sliding_window(4, 2) || prefix(1);
  const auto scores = attention_scores(q, k, score, mask);
  static_assert(std::is_same_v<typename decltype(scores)::Scalar, Scalar>);
  const Index group = in_q.dimension(1) / in_k.dimension(1), keys = in_k.dimension(2),
              queries = in_q.dimension(2);
  const auto expected =
      generate({in_q.dimension(0), in_q.dimension(1), queries, keys},
               [&](Index b, Index h, Index i, Index j) {
                 const Index p = i + keys - queries;
                 if (j >= 1 && (j < p - 4 || j > p + 2)) return -infinity;
                 double sum = 0;
                 for (Index c = 0; c < in_q.dimension(3); ++c) {
                   const double apart = .5 * (in_q(b, h, i, c) - in_k(b, h / group, j, c));
                   sum += apart * apart;
                 }
                 return 3 * std::tanh(-sum / 6) + .25 * static_cast<double>(j - i);
               });
  const double accumulated = std::is_same_v<Scalar, double> ? epsilon<double>() : epsilon<float>();
  double largest = 1;
  for (Index n = 0; n < expected.size(); ++n) {
    if (expected.data()[n] > -infinity) largest = std::max(largest, std::abs(expected.data()[n]));
  }
  const double narrow = sizeof(Scalar) == 2 ? epsilon<Scalar>() / 2 : 0;
  EXPECT_TRUE(near(reference(scores), expected, (16 * accumulated + narrow) * largest));
}

TEST(AttentionScores, OfEveryTypeAndRank) {
  const Reference q = random({2, 4, 5, 6}, 1), k = random({2, 2, 9, 6}, 2);
  expect_scores<float, 4, Eigen::RowMajor>(q, k);
  expect_scores<float, 4, Eigen::ColMajor>(q, k);
  expect_scores<double, 4, Eigen::RowMajor>(q, k);
  expect_scores<Eigen::half, 4, Eigen::RowMajor>(q, k);
  expect_scores<Eigen::bfloat16, 4, Eigen::RowMajor>(q, k);
  expect_scores<double, 3, Eigen::RowMajor>(random({3, 1, 4, 5}, 1), random({3, 1, 7, 5}, 2));
  expect_scores<float, 2, Eigen::ColMajor>(random({1, 1, 1, 5}, 1), random({1, 1, 40, 5}, 2));
}

TEST(AttentionScores, TheirSoftmaxIsTheWeights) {
  const Inputs in({.batch = 2, .heads = 2, .key_heads = 1, .queries = 7, .keys = 200, .dim = 9});
  const auto q = make<double, 4>(in.query), k = make<double, 4>(in.key),
             v = make<double, 4>(in.value);
  const auto score = scaled_dot_product() | softcap(2);
  const auto mask = causal() && valid_lens({150, 0});
  const auto weights = attention_with_weights(q, k, v, score, mask).weights;
  EXPECT_TRUE(
      near(reference(softmax(attention_scores(q, k, score, mask))), reference(weights), 1e-15));
}

// A key that no query sees may hold anything, and so may its bias.
TEST(AttentionScores, DoNotReadHiddenKeys) {
  auto k = make<double, 2>(constant({1, 1, 3, 2}, 1));
  Matrix<double> q = make<double, 2>(constant({1, 1, 2, 2}, 1)), added(2, 3);
  k.row(2).setConstant(nan);
  added << 0, 1, nan, 2, 3, nan;
  Matrix<double> expected(2, 3);
  expected << 2, 3, -infinity, 4, 5, -infinity;
  EXPECT_TRUE(same(reference(attention_scores(q, k, dot_product() | bias(added), prefix(2))),
                   reference(expected)));
}

TEST(AttentionScores, AreTheSameForAnyNumberOfThreads) {
  Eigen::ThreadPool pool(3);
  const auto q = make<float, 4>(random({2, 3, 17, 8}, 1)),
             k = make<float, 4>(random({2, 3, 30, 8}, 2));
  EXPECT_TRUE(
      same(reference(attention_scores(q, k, scaled_dot_product(), no_mask(), {.pool = &pool})),
           reference(attention_scores(q, k))));
}

TEST(AttentionScores, OfNothing) {
  const auto no_keys = attention_scores(Tensor<float, 3>(2, 5, 4), Tensor<float, 3>(2, 0, 4));
  EXPECT_EQ(no_keys.dimension(1), 5);
  EXPECT_EQ(no_keys.dimension(2), 0);
  EXPECT_EQ(attention_scores(Tensor<float, 3>(0, 5, 4), Tensor<float, 3>(0, 7, 4)).size(), 0);
}

TEST(AttentionScores, RefuseWhatDoesNotFit) {
  const Matrix<float> q(3, 4), k(5, 6);
  EXPECT_TRUE(refuses([&] { attention_scores(q, k); }, {"heed::attention_scores", "4", "6"}));
  const Tensor<float, 3> two(2, 3, 4), three(3, 5, 4);
  EXPECT_TRUE(refuses([&] { attention_scores(two, three); },
                      {"heed::attention_scores", "axis 0", "2", "3"}));
}

// ---------------------------------------------------------------- attention_with_weights_into

TEST(AttentionWithWeightsInto, WritesWhatAttentionWithWeightsGives) {
  const Inputs in(
      {.batch = 2, .heads = 4, .key_heads = 2, .queries = 5, .keys = 9, .dim = 6, .width = 3});
  const auto q = make<float, 4>(in.query), k = make<float, 4>(in.key), v = make<float, 4>(in.value);
  const AttentionOptions options{.dropout = .3, .seed = 4};
  const auto expected = attention_with_weights(q, k, v, gaussian(), causal(), options);
  Tensor<float, 4> output(2, 4, 5, 3), weights(2, 4, 5, 9);
  attention_with_weights_into(output, weights, q, k, v, gaussian(), causal(), options);
  EXPECT_TRUE(same(reference(output), reference(expected.output)));
  EXPECT_TRUE(same(reference(weights), reference(expected.weights)));

  // Of another type and with strides; nothing beside the elements is written.
  Scattered<double> far(constant({2, 4, 5, 9}, 7), {1, 3});
  Scattered<float> out(constant({2, 4, 5, 3}, 7), {2});
  const Index before = far.written();
  attention_with_weights_into(out.view(), far.view(), q, k, v, gaussian(), causal(), options);
  EXPECT_TRUE(same(reference(out.view()), reference(expected.output)));
  EXPECT_TRUE(near(reference(far.view()), reference(expected.weights), 1e-7));
  EXPECT_EQ(far.written(), before);
}

TEST(AttentionWithWeightsInto, ByHand) {
  // The scores are 0, log 3: weights 1/4, 3/4, and 4 / 4 + 8 * 3 / 4 = 7.
  Matrix<double> q(1, 1), k(2, 1), v(2, 1), output(1, 1), weights(1, 2);
  q << 1;
  k << 0, std::log(3.);
  v << 4, 8;
  attention_with_weights_into(output, weights, q, k, v, dot_product());
  EXPECT_NEAR(output(0), 7, 1e-14);
  EXPECT_NEAR(weights(0), .25, 1e-15);
  EXPECT_NEAR(weights(1), .75, 1e-15);
  attention_with_weights_into(output, weights, q, k, v, dot_product(), prefix(0));
  EXPECT_EQ(output(0), 0);
  EXPECT_EQ(weights(0), 0);
  EXPECT_EQ(weights(1), 0);
}

TEST(AttentionWithWeightsInto, RefusesWhatDoesNotFit) {
  const Matrix<float> q = Matrix<float>::Ones(3, 4), k = Matrix<float>::Ones(5, 4),
                      v = Matrix<float>::Ones(5, 2);
  Matrix<float> output = Matrix<float>::Constant(3, 2, 7),
                weights = Matrix<float>::Constant(3, 5, 7), wrong(3, 6);
  const auto refused = [&](auto&& out, auto&& pairs, std::initializer_list<std::string> parts) {
    EXPECT_TRUE(refuses([&] { attention_with_weights_into(out, pairs, q, k, v); }, parts));
  };
  refused(wrong, weights, {"heed::attention_with_weights_into", "the output", "(3, 6)", "(3, 2)"});
  refused(output, wrong, {"heed::attention_with_weights_into", "the weights", "(3, 6)", "(3, 5)"});
  refused(output, View<float, 2>{weights.data(), {3, 5}, {0, 1}}, {"the weights", "overlap"});
  refused(View<float, 2>{output.data(), {3, 2}, {1, 1}}, weights, {"the output", "overlap"});
  EXPECT_TRUE((output.array() == 7).all() && (weights.array() == 7).all());
}

TEST(AttentionWithWeightsInto, RefusesResultsThatShareElements) {
  // One memory for all: output 3 x 2, weights 3 x 5, query 3 x 4, key 5 x 4, value 5 x 2.
  std::vector<float> memory(200, 1);
  const auto block = [&](Index first, Index rows, Index columns) {
    return View<float, 2>{memory.data() + first, {rows, columns}, {columns, 1}};
  };
  const auto refused = [&](const std::array<Index, 5>& at,
                           std::initializer_list<std::string> parts) {
    EXPECT_TRUE(refuses(
        [&] {
          attention_with_weights_into(block(at[0], 3, 2), block(at[1], 3, 5), block(at[2], 3, 4),
                                      block(at[3], 5, 4), block(at[4], 5, 2));
        },
        parts));
  };
  refused({0, 5, 30, 60, 90}, {"the output", "the weights"});
  refused({0, 10, 5, 60, 90}, {"the output", "query"});
  refused({0, 100, 30, 5, 90}, {"the output", "key"});
  refused({99, 10, 30, 60, 90}, {"the output", "value"});
  refused({0, 40, 30, 60, 90}, {"the weights", "query"});
  refused({0, 50, 30, 60, 90}, {"the weights", "key"});
  refused({0, 99, 30, 60, 90}, {"the weights", "value"});
  EXPECT_TRUE(std::all_of(memory.begin(), memory.end(), [](float x) { return x == 1; }));
  EXPECT_NO_THROW(attention_with_weights_into(block(0, 3, 2), block(6, 3, 5), block(30, 3, 4),
                                              block(60, 5, 4), block(90, 5, 2)));

  const Matrix<float> q = Matrix<float>::Ones(3, 4), k = Matrix<float>::Ones(5, 4),
                      v = Matrix<float>::Ones(5, 5);
  Matrix<float> table = Matrix<float>::Ones(3, 5), other(3, 5);
  const auto score = scaled_dot_product() | bias(table);
  EXPECT_TRUE(refuses([&] { attention_with_weights_into(table, other, q, k, v, score); },
                      {"the output", "the tensor of bias"}));
  EXPECT_TRUE(refuses([&] { attention_with_weights_into(other, table, q, k, v, score); },
                      {"the weights", "the tensor of bias"}));
}

}  // namespace
}  // namespace heed::test
