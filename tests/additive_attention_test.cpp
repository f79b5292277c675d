#include "heed/additive_attention.hpp"

#include "module_support.hpp"

namespace heed::test {
namespace {

// One hidden unit: W_q = 1, W_k = 1, w = 2; query ln 2, keys 0 and -ln 2: 2 tanh(ln 2) = 6/5 and 0.
TEST(AdditiveAttention, ByHand) {
  AdditiveAttention<double> module(1, 1, 1);
  module.query_projection.weight << 1;
  module.key_projection.weight << 1;
  module.score_weight << 2;
  Matrix<double> query(1, 1), keys(2, 1), values(2, 1);
  query << std::log(2);
  keys << 0, -std::log(2);
  values << 1, 0;
  EXPECT_NEAR(module(query, keys, values)(0, 0), std::exp(1.2) / (std::exp(1.2) + 1), 1e-15);
}

/// w^T tanh(W_q q + W_k k) over projected queries and keys.
template <class Scalar>
auto formula(const Vector<Scalar>& w) {
  return [w](const auto& p) {
    using Real = RealOf<decltype(p)>;
    Real sum = 0;
    for (std::size_t d = 0; d < p.query.size(); ++d) {
      sum += static_cast<Real>(w(static_cast<Index>(d))) * std::tanh(p.query[d] + p.key[d]);
    }
    return sum;
  };
}

template <class Scalar, int Order>
void expect_formula() {
  AdditiveAttention<Scalar> module(20, 2, 8, 3);
  const Reference q = random({2, 1, 13, 20}, 1), k = random({2, 1, 49, 2}, 2),
                  v = random({2, 1, 49, 4}, 3);
  const std::vector<int> lens = {7, 30};
  const auto allowed = [&](Index b, Index, Index, Index j) {
    return j < lens[static_cast<std::size_t>(b)];
  };
  const Expected<Scalar> expected(
      projected(module.query_projection, q), projected(module.key_projection, k), v,
      formula(module.score_weight), allowed, [](auto...) { return 1.0; },
      static_cast<double>(module.score_weight.cwiseAbs().sum()));
  const auto query = make<Scalar, 3, Order>(q), key = make<Scalar, 3, Order>(k),
             value = make<Scalar, 3, Order>(v);
  // The projections round their sums of 20 products.
  const double projection = 20 * static_cast<double>(std::numeric_limits<Scalar>::epsilon());
  const auto output = module(query, key, value, valid_lens(lens));
  EXPECT_TRUE(near(reference(output), expected.output, expected.output_bound + projection));
  const auto [again, weights] = module.forward_with_weights(query, key, value, valid_lens(lens));
  EXPECT_TRUE(near(reference(again), expected.output, expected.output_bound + projection));
  EXPECT_TRUE(near(reference(weights), expected.weights, expected.weights_bound + projection));
}

TEST(AdditiveAttention, IsTheFormula) {
  expect_formula<float, Eigen::RowMajor>();
  expect_formula<float, Eigen::ColMajor>();
  expect_formula<double, Eigen::RowMajor>();
}

TEST(AdditiveAttention, TakesMatricesAndBiases) {
  AdditiveAttention<double> module(3, 5, 4, 1);
  module.query_projection.bias = vector_of<double>(4, 8);
  module.key_projection.bias = vector_of<double>(4, 9);
  const Reference q = random({1, 1, 6, 3}, 1), k = random({1, 1, 9, 5}, 2),
                  v = random({1, 1, 9, 2}, 3);
  const Expected<double> expected(projected(module.query_projection, q),
                                  projected(module.key_projection, k), v,
                                  formula(module.score_weight), everything());
  EXPECT_TRUE(near(reference(module(make<double, 2>(q), make<double, 2>(k), make<double, 2>(v))),
                   expected.output, 1e-13));
}

TEST(AdditiveAttention, ForwardKeepsTheOutput) {
  AdditiveAttention<float> module(3, 5, 4, 1);
  const auto q = make<float, 3>(random({2, 1, 6, 3}, 1)),
             k = make<float, 3>(random({2, 1, 9, 5}, 2));
  const auto v = make<float, 3>(random({2, 1, 9, 2}, 3));
  const auto pass = module.forward(q, k, v, valid_lens({4, 9}));
  EXPECT_TRUE(same(reference(pass.output), reference(module(q, k, v, valid_lens({4, 9})))));
}

TEST(AdditiveAttention, DropsWeightsOnRequest) {
  AdditiveAttention<double> module(3, 5, 4, 1);
  const auto q = make<double, 3>(random({2, 1, 6, 3}, 1)),
             k = make<double, 3>(random({2, 1, 9, 5}, 2));
  Tensor<double, 3> ones(2, 9, 1);
  ones.setConstant(1);
  const auto plain = reference(module(q, k, ones)),
             dropped = reference(module(q, k, ones, no_mask(), {.dropout = .5, .seed = 1}));
  EXPECT_TRUE(near(plain, constant({2, 1, 6, 1}, 1), 1e-14));
  EXPECT_FALSE(near(dropped, plain, 1e-3));
}

TEST(AdditiveAttention, StartsFromXavierAndItsSeed) {
  const AdditiveAttention<float> a(60, 40, 50, 7), b(60, 40, 50, 7), c(60, 40, 50, 8);
  EXPECT_EQ(a.query_projection.weight.rows(), 50);
  EXPECT_EQ(a.query_projection.weight.cols(), 60);
  EXPECT_EQ(a.key_projection.weight.rows(), 50);
  EXPECT_EQ(a.key_projection.weight.cols(), 40);
  EXPECT_EQ(a.score_weight.size(), 50);
  expect_xavier(a.query_projection.weight);
  expect_xavier(a.key_projection.weight);
  EXPECT_EQ(a.query_projection.weight, b.query_projection.weight);
  EXPECT_EQ(a.key_projection.weight, b.key_projection.weight);
  EXPECT_EQ(a.score_weight, b.score_weight);
  EXPECT_NE(a.query_projection.weight, c.query_projection.weight);
  EXPECT_NE(a.score_weight, c.score_weight);
}

// The numbers of the Mersenne Twister, computed apart from the standard library.
TEST(AdditiveAttention, StartsFromTheSameWeightsOnEveryPlatform) {
  const AdditiveAttention<double> module(3, 2, 4, 7);
  EXPECT_NEAR(module.query_projection.weight(0, 0), 0.4710300553429396, 1e-15);
  EXPECT_NEAR(module.query_projection.weight(0, 1), 0.8319441689799905, 1e-15);
  EXPECT_NEAR(module.query_projection.weight(3, 2), 0.17810701323457817, 1e-15);
  EXPECT_NEAR(module.key_projection.weight(0, 0), -0.20510909116853226, 1e-15);
  EXPECT_NEAR(module.key_projection.weight(3, 1), -0.4647772731638862, 1e-15);
  EXPECT_NEAR(module.score_weight(0), 0.2641371780384591, 1e-15);
  EXPECT_NEAR(module.score_weight(3), -1.0221635707973187, 1e-15);
}

TEST(AdditiveAttention, RefusesWhatDoesNotFit) {
  AdditiveAttention<float> module(13, 5, 4);
  const auto q = make<float, 2>(random({1, 1, 6, 17}, 1)),
             k = make<float, 2>(random({1, 1, 9, 5}, 2));
  EXPECT_TRUE(refuses([&] { module(q, k, k); }, {"heed::", "13", "17"}));
  EXPECT_TRUE(
      refuses([&] { AdditiveAttention<float>(0, 5, 4); }, {"heed::AdditiveAttention", "0"}));
  EXPECT_TRUE(
      refuses([&] { AdditiveAttention<float>(3, 5, -4); }, {"heed::AdditiveAttention", "-4"}));
}

}  // namespace
}  // namespace heed::test
