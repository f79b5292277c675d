#include "heed/additive_attention.hpp"

#include <unsupported/Eigen/CXX11/ThreadPool>

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

TEST(AdditiveAttention, IntoEveryStrideAndNothingElse) {
  const AdditiveAttention<float> module(6, 2, 8, 3);
  const Reference q = random({2, 1, 13, 6}, 1), k = random({2, 1, 49, 2}, 2),
                  v = random({2, 1, 49, 6}, 3);
  const auto query = make<float, 3>(q), key = make<float, 3>(k), value = make<float, 3>(v);
  const Reference expected = reference(module(query, key, value, valid_lens({7, 30})));
  Scattered<float> to(constant({2, 1, 13, 6}, nan));
  const auto wide = to.view();
  module.into(
      View<float, 3>{wide.data, {2, 13, 6}, {wide.strides[0], wide.strides[2], wide.strides[3]}},
      query, key, value, valid_lens({7, 30}));
  EXPECT_TRUE(near(reference(wide), expected, 1e-6));
  EXPECT_EQ(to.written(), 2 * 13 * 6);
  Tensor<float, 3> own = query, same_value = value, narrow(2, 13, 5);
  EXPECT_TRUE(refuses([&] { module.into(narrow, own, key, value); },
                      {"heed::AdditiveAttention", "(2, 13, 5)", "(2, 13, 6)"}));
  EXPECT_TRUE(refuses([&] { module.into(own, own, key, value); }, {"shares", "query"}));
  EXPECT_TRUE(
      refuses([&] { module.into(same_value, value, key, same_value); }, {"shares", "value"}));
  EXPECT_TRUE(same(reference(own), q));
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

/// Every call of the module throws, with the function's name and the parts.
template <class Module, class X, class Pass>
void expect_refused(const Module& module, const X& x, const Pass& pass,
                    std::initializer_list<std::string> parts) {
  const auto has = [&](const auto& f, const std::string& function) {
    EXPECT_TRUE(refuses(f, {"heed::" + function + ":"}));
    EXPECT_TRUE(refuses(f, parts));
  };
  has([&] { module(x, x, x); }, "AdditiveAttention");
  has([&] { module.forward(x, x, x); }, "AdditiveAttention");
  has([&] { module.forward_with_weights(x, x, x); }, "AdditiveAttention");
  has([&] { module.backward(pass, pass.output); }, "AdditiveAttention::backward");
}

TEST(AdditiveAttention, ChecksWeightsThatWereAssigned) {
  const AdditiveAttention<float> good(5, 5, 4, 1), other(5, 5, 7, 1);
  const auto x = make<float, 2>(random({1, 1, 6, 5}, 1));
  const auto pass = good.forward(x, x, x);
  auto module = good;
  module.query_projection = other.query_projection;
  expect_refused(module, x, pass, {"query_projection", "(7, 5)", "(4, 5)"});
  module.key_projection = other.key_projection;
  expect_refused(module, x, pass, {"query_projection", "(7, 5)", "(4, 5)"});
  module.query_projection = good.query_projection;
  expect_refused(module, x, pass, {"key_projection", "(7, 5)", "(4, 5)"});
  module = good;
  module.score_weight.setOnes(3);
  expect_refused(module, x, pass, {"query_projection", "(4, 5)", "(3, 5)"});
  module = good;
  module.key_projection.bias.setOnes(3);
  expect_refused(module, x, pass, {"the bias of key_projection", "3", "4"});
}

TEST(AdditiveAttention, WithoutWeightsIsRefused) {
  AdditiveAttention<float> module(5, 5, 4, 1);
  const auto x = make<float, 2>(random({1, 1, 6, 5}, 1));
  const auto pass = module.forward(x, x, x);
  const AdditiveAttention<float> empty;
  expect_refused(empty, x, pass, {"no weights"});
  expect_refused(empty, Matrix<float>(6, 0), pass, {"no weights"});
  const auto taken = std::move(module);
  expect_refused(module, x, pass, {"no weights"});
  EXPECT_TRUE(same(reference(taken(x, x, x)), reference(pass.output)));
}

// The module of the first test: weights P = e^1.2 / (e^1.2 + 1) and 1 - P, values 1 and 0, so the
// output is P and the scores have the slopes g = P (1 - P) and -g. tanh(ln 2) = 3/5 has the slope
// 1 - 9/25 = 16/25, tanh(0) the slope 1; score_j = 2 tanh(q + k_j).
TEST(AdditiveAttentionBackward, ByHand) {
  AdditiveAttention<double> module(1, 1, 1);
  module.query_projection.weight << 1;
  module.key_projection.weight << 1;
  module.score_weight << 2;
  Matrix<double> query(1, 1), keys(2, 1), values(2, 1), grad(1, 1);
  query << std::log(2);
  keys << 0, -std::log(2);
  values << 1, 0;
  grad << 1;
  const auto result = module.backward(module.forward(query, keys, values), grad);
  const double p = std::exp(1.2) / (std::exp(1.2) + 1), g = p * (1 - p);
  EXPECT_NEAR(result.key(0, 0), g * 2 * 16 / 25, 1e-15);
  EXPECT_NEAR(result.key(1, 0), -g * 2, 1e-15);
  EXPECT_NEAR(result.query(0, 0), g * 2 * (16 / 25. - 1), 1e-15);
  EXPECT_NEAR(result.value(0, 0), p, 1e-15);
  EXPECT_NEAR(result.value(1, 0), 1 - p, 1e-15);
  EXPECT_NEAR(result.parameters.score_weight(0), g * (3 / 5. - 0), 1e-15);
  EXPECT_NEAR(result.parameters.query_projection.weight(0, 0), std::log(2) * g * 2 * (16 / 25. - 1),
              1e-15);
  EXPECT_NEAR(result.parameters.key_projection.weight(0, 0), -std::log(2) * -g * 2, 1e-15);
}

template <int Rank, int Order, class Mask>
void expect_gradients(Index batch, const Mask& mask, const AttentionOptions& options = {}) {
  AdditiveAttention<double> module(3, 5, 9, 1);
  module.query_projection.bias = vector_of<double>(9, 8);
  expect_module_slopes(module, make<double, Rank, Order>(random({batch, 1, 5, 3}, 1)),
                       make<double, Rank, Order>(random({batch, 1, 7, 5}, 2)),
                       make<double, Rank, Order>(random({batch, 1, 7, 2}, 3)), mask, options);
}

TEST(AdditiveAttentionBackward, IsTheSlopeOfEveryInputAndParameter) {
  expect_gradients<3, Eigen::RowMajor>(2, no_mask());
  expect_gradients<3, Eigen::RowMajor>(2, valid_lens({0, 4}));
  expect_gradients<3, Eigen::RowMajor>(2, causal(), {.dropout = .4, .seed = 3});
  expect_gradients<3, Eigen::ColMajor>(2, valid_lens({7, 4}));
  expect_gradients<2, Eigen::RowMajor>(1, causal());
  expect_gradients<2, Eigen::ColMajor>(1, no_mask());
  AdditiveAttention<double> module(3, 5, 4, 1);
  expect_module_slopes(module, make<double, 4>(random({2, 4, 3, 3}, 1)),
                       make<double, 4>(random({2, 2, 6, 5}, 2)),
                       make<double, 4>(random({2, 2, 6, 2}, 3)), causal());
}

TEST(AdditiveAttentionBackward, HiddenInputsReachNothing) {
  AdditiveAttention<float> module(3, 5, 9, 1);
  const std::vector<Index> lens = {20, 0};
  const auto padded = [&](Index width, std::uint64_t seed, double poison) {
    const Reference x = random({2, 1, 30, width}, seed);
    return make<float, 3>(generate({2, 1, 30, width}, [&](Index b, Index, Index i, Index d) {
      return i < lens[static_cast<std::size_t>(b)] ? x(b, 0, i, d) : poison;
    }));
  };
  // In the second batch entry no query has a key.
  const auto run = [&](double poison) {
    const auto query = make<float, 3>(generate({2, 1, 6, 3}, [&](Index b, Index, Index i, Index d) {
      return b == 1 ? poison : .1 * static_cast<double>(i - d);
    }));
    const auto key = padded(5, 2, poison), value = padded(2, 3, poison);
    const auto pass = module.forward(query, key, value, valid_lens(lens));
    return numbers(module.backward(
        pass, make<float, 3>(generate({2, 1, 6, 2}, [&](Index b, Index, Index i, Index d) {
          return b == 1 ? poison : .3 * static_cast<double>(2 * d - i);
        }))));
  };
  const auto clean = run(0);
  for (const double x : clean) ASSERT_TRUE(std::isfinite(x));
  for (const double poison : {nan, infinity}) EXPECT_EQ(run(poison), clean) << poison;
}

TEST(AdditiveAttentionBackward, ThreadsChangeNoBit) {
  AdditiveAttention<float> module(13, 17, 25, 1);
  const auto q = make<float, 3>(random({3, 1, 40, 13}, 1)),
             k = make<float, 3>(random({3, 1, 50, 17}, 2)),
             v = make<float, 3>(random({3, 1, 50, 9}, 3)),
             grad = make<float, 3>(random({3, 1, 40, 9}, 4));
  const auto run = [&](Eigen::ThreadPoolInterface* pool) {
    const AttentionOptions options{.dropout = .2, .seed = 5, .pool = pool};
    return numbers(module.backward(module.forward(q, k, v, causal(), options), grad));
  };
  const auto alone = run(nullptr);
  for (const int threads : {1, 2, 3}) {
    Eigen::ThreadPool pool(threads);
    EXPECT_EQ(run(&pool), alone);
  }
}

TEST(AdditiveAttentionBackward, AFewStepsOfGradientDescentLowerTheLoss) {
  const auto q = make<double, 3>(random({2, 1, 6, 3}, 1, 2)),
             k = make<double, 3>(random({2, 1, 9, 5}, 2, 2)),
             v = make<double, 3>(random({2, 1, 9, 2}, 3));
  const AdditiveAttention<double> teacher(3, 5, 8, 11);
  AdditiveAttention<double> module(3, 5, 8, 12);
  const auto distances = descend(module, reference(teacher(q, k, v)), 60, .3,
                                 [&](const auto& trained) { return trained.forward(q, k, v); });
  EXPECT_LT(distances.back(), .2 * distances.front());
}

TEST(AdditiveAttentionBackward, OfHalf) {
  AdditiveAttention<Eigen::half> module(3, 5, 9, 1);
  AdditiveAttention<double> exact(3, 5, 9, 1);
  const Reference q = rounded<Eigen::half>(random({2, 1, 5, 3}, 1)),
                  k = rounded<Eigen::half>(random({2, 1, 7, 5}, 2)),
                  v = rounded<Eigen::half>(random({2, 1, 7, 2}, 3)),
                  g = rounded<Eigen::half>(random({2, 1, 5, 2}, 4));
  const auto run = [&]<class Scalar>(const AdditiveAttention<Scalar>& m) {
    const auto query = make<Scalar, 3>(q), key = make<Scalar, 3>(k), value = make<Scalar, 3>(v);
    return numbers(m.backward(m.forward(query, key, value), make<Scalar, 3>(g)));
  };
  const auto narrow = run(module), wide = run(exact);
  ASSERT_EQ(narrow.size(), wide.size());
  // Weights, projections and their gradients are each rounded to 11 bits.
  for (std::size_t n = 0; n < wide.size(); ++n) {
    EXPECT_TRUE(std::abs(narrow[n] - wide[n]) <= 20 * epsilon<Eigen::half>()) << n;
  }
}

TEST(AdditiveAttentionBackward, RefusesWhatDoesNotFit) {
  AdditiveAttention<float> module(3, 5, 4), other(3, 5, 7), wider(6, 5, 4);
  const auto q = make<float, 2>(random({1, 1, 6, 3}, 1)),
             k = make<float, 2>(random({1, 1, 9, 5}, 2));
  const auto pass = module.forward(q, k, k);
  EXPECT_TRUE(refuses([&] { module.backward(pass, Matrix<float>(6, 13)); },
                      {"heed::AdditiveAttention::backward", "axis 1", "(6, 13)", "(6, 5)"}));
  EXPECT_TRUE(refuses([&] { other.backward(pass, pass.output); },
                      {"heed::AdditiveAttention::backward", "(6, 4)", "(7, 3)"}));
  EXPECT_TRUE(refuses([&] { wider.backward(pass, pass.output); },
                      {"heed::AdditiveAttention::backward", "(6, 3)", "(4, 6)"}));
}

// The tensors of a pass are public too.
TEST(AdditiveAttentionBackward, RefusesAPassOfOtherShapes) {
  const AdditiveAttention<float> module(3, 5, 4);
  const auto q = make<float, 2>(random({1, 1, 6, 3}, 1)),
             k = make<float, 2>(random({1, 1, 9, 5}, 2));
  const auto good = module.forward(q, k, k);
  const auto expect = [&](const auto& change, const std::string& shape) {
    auto pass = good;
    change(pass);
    EXPECT_TRUE(refuses([&] { module.backward(pass, good.output); }, {"heed::", shape}));
  };
  for (const Index rows : {0, 3, 7}) {
    const std::string n = "(" + std::to_string(rows);
    expect([&](auto& pass) { pass.projected_query.setZero(rows, 4); }, n + ", 4)");
    expect([&](auto& pass) { pass.projected_key.setZero(rows, 4); }, n + ", 4)");
    expect([&](auto& pass) { pass.output.setZero(rows, 5); }, n + ", 5)");
    expect([&](auto& pass) { pass.log_sum_exp.setZero(rows); }, n + ")");
  }
  EXPECT_NO_THROW(module.backward(good, good.output));
}

}  // namespace
}  // namespace heed::test
