#include <unsupported/Eigen/CXX11/ThreadPool>

#include "heed/multi_head_attention.hpp"
#include "module_support.hpp"

namespace heed::test {
namespace {

// The module of MultiHeadAttention.ByHand: identities, query (ln 3, 0), keys (1, 5) and (0, 7),
// values (4, 10) and (8, 20); weights 3/4 and 1/4 of head 0, a half each of head 1; output (5, 15).
// With the gradient (1, 1) of the output, dP of head 0 is 4 and 8, its mean 5: dS = 3/4 (4 - 5) and
// 1/4 (8 - 5) = -3/4 and 3/4; of head 1 10 and 20, mean 15: dS = -5/2 and 5/2.
TEST(MultiHeadAttentionBackward, ByHand) {
  MultiHeadAttention<double> module({.embed_dim = 2, .num_heads = 2});
  for (auto* layer : {&module.query_projection, &module.key_projection, &module.value_projection,
                      &module.output_projection}) {
    layer->weight.setIdentity();
  }
  Tensor<double, 3> query(1, 1, 2), key(1, 2, 2), value(1, 2, 2), grad(1, 1, 2);
  query.setValues({{{std::log(3), 0}}});
  key.setValues({{{1, 5}, {0, 7}}});
  value.setValues({{{4, 10}, {8, 20}}});
  grad.setConstant(1);
  const auto result = module.backward(module.forward(query, key, value), grad);
  const auto expect = [](const auto& actual, std::initializer_list<double> expected) {
    ASSERT_EQ(actual.size(), static_cast<Index>(expected.size()));
    for (Index n = 0; n < actual.size(); ++n)
      EXPECT_NEAR(actual.data()[n], expected.begin()[n], 1e-14) << n;
  };
  const double ln3 = std::log(3);
  // dV = P; dK = dS q; dq = sum of dS k: -3/4 * 1 and -5/2 * 5 + 5/2 * 7.
  expect(result.value, {.75, .5, .25, .5});
  expect(result.key, {-.75 * ln3, 0, .75 * ln3, 0});
  expect(result.query, {-.75, 5});
  const auto& p = result.parameters;
  expect(p.query_projection.weight, {-.75 * ln3, 0, 5 * ln3, 0});
  expect(p.key_projection.weight, {-.75 * ln3, -.75 * ln3 * 5 + .75 * ln3 * 7, 0, 0});
  expect(p.value_projection.weight,
         {.75 * 4 + .25 * 8, .75 * 10 + .25 * 20, .5 * 4 + .5 * 8, .5 * 10 + .5 * 20});
  expect(p.output_projection.weight, {5, 15, 5, 15});
}

template <int Rank, int Order, class Mask>
void expect_gradients(const MultiHeadConfig& config, Index batch, const Mask& mask,
                      const AttentionOptions& options = {}) {
  MultiHeadAttention<double> module(config, 5);
  const auto& c = module.config();
  SCOPED_TRACE(::testing::Message() << c.embed_dim << " wide, " << c.num_heads << " heads, "
                                    << c.num_kv_heads << " key heads, keys " << c.key_dim
                                    << " values " << c.value_dim << ", rank " << Rank);
  for (auto* layer : {&module.query_projection, &module.key_projection, &module.value_projection,
                      &module.output_projection}) {
    if (c.bias) layer->bias = vector_of<double>(layer->weight.rows(), 9);
  }
  for (auto* norm : {&module.query_norm, &module.key_norm}) {
    *norm += vector_of<double>(norm->size(), norm == &module.key_norm ? 7 : 8, .5);
  }
  expect_module_slopes(module, make<double, Rank, Order>(random({batch, 1, 5, c.embed_dim}, 1)),
                       make<double, Rank, Order>(random({batch, 1, 7, c.key_dim}, 2)),
                       make<double, Rank, Order>(random({batch, 1, 7, c.value_dim}, 3)), mask,
                       options);
}

TEST(MultiHeadAttentionBackward, IsTheSlopeOfEveryInputAndParameter) {
  const MultiHeadConfig plain{.embed_dim = 6, .num_heads = 2},
      grouped{.embed_dim = 8, .num_heads = 4, .num_kv_heads = 2, .bias = true},
      widths{.embed_dim = 6, .num_heads = 3, .key_dim = 5, .value_dim = 9, .bias = true};
  const MultiHeadConfig wider{.embed_dim = 4, .num_heads = 3, .head_dim = 5},
      narrower{.embed_dim = 7, .num_heads = 4, .num_kv_heads = 2, .bias = true, .head_dim = 1};
  const auto by_head =
      mask_if([](Index b, Index h, Index i, Index j) { return (b + h + i + 2 * j) % 3 != 0; });
  expect_gradients<3, Eigen::RowMajor>(plain, 2, no_mask());
  expect_gradients<3, Eigen::RowMajor>(plain, 2, valid_lens({0, 4}));
  expect_gradients<3, Eigen::RowMajor>(grouped, 2, by_head);
  expect_gradients<3, Eigen::RowMajor>(grouped, 2, causal(), {.dropout = .4, .seed = 3});
  expect_gradients<3, Eigen::RowMajor>(widths, 2, by_head && valid_lens({5, 3}));
  expect_gradients<3, Eigen::ColMajor>(widths, 2, causal());
  expect_gradients<2, Eigen::RowMajor>(grouped, 1, causal());
  expect_gradients<2, Eigen::ColMajor>(widths, 1, no_mask());
  expect_gradients<3, Eigen::RowMajor>(wider, 2, causal());
  expect_gradients<3, Eigen::RowMajor>(narrower, 2, by_head);
  const MultiHeadConfig normed{.embed_dim = 6, .num_heads = 2, .qk_norm = true};
  const MultiHeadConfig rotated{
      .embed_dim = 8,
      .num_heads = 2,
      .rotary = RotaryConfig{.dim = 2, .layout = RotaryLayout::interleaved}};
  const MultiHeadConfig both{.embed_dim = 7,
                             .num_heads = 4,
                             .num_kv_heads = 2,
                             .key_dim = 5,
                             .bias = true,
                             .head_dim = 6,
                             .rotary = RotaryConfig{.layout = RotaryLayout::half},
                             .qk_norm = true};
  expect_gradients<3, Eigen::RowMajor>(normed, 2, causal());
  expect_gradients<3, Eigen::RowMajor>(rotated, 2, no_mask());
  expect_gradients<3, Eigen::RowMajor>(both, 2, by_head && valid_lens({5, 3}));
  expect_gradients<2, Eigen::ColMajor>(both, 1, causal());
}

TEST(MultiHeadAttentionBackward, OfOneInputIsTheSumOfItsThreeParts) {
  const MultiHeadAttention<double> module({.embed_dim = 6, .num_heads = 2}, 5);
  auto x = make<double, 3>(random({2, 1, 7, 6}, 1));
  const Reference weights = random({2, 1, 7, 6}, 2);
  const auto result = module.backward(module.forward(x, x, x, causal()), make<double, 3>(weights));
  const Tensor<double, 3> sum = result.query + result.key + result.value;
  expect_slopes(x, sum, [&] { return weighted(module(x, x, x, causal()), weights); }, "input");
}

TEST(MultiHeadAttentionBackward, ResultsHaveTheTypesOfTheInputs) {
  const MultiHeadAttention<float> module({.embed_dim = 6, .num_heads = 2}, 5);
  const auto column_major = make<float, 3, Eigen::ColMajor>(random({2, 1, 7, 6}, 1));
  const auto row_major = make<float, 3>(random({2, 1, 9, 6}, 2));
  const auto result = module.backward(module.forward(column_major, row_major, view(row_major)),
                                      make<float, 3>(random({2, 1, 7, 6}, 3)));
  static_assert(std::is_same_v<std::remove_cvref_t<decltype(result.query)>,
                               Eigen::Tensor<float, 3, Eigen::ColMajor, Index>>);
  static_assert(std::is_same_v<std::remove_cvref_t<decltype(result.key)>, Tensor<float, 3>>);
  static_assert(std::is_same_v<std::remove_cvref_t<decltype(result.value)>, Tensor<float, 3>>);
  EXPECT_EQ(result.query.dimension(1), 7);
  EXPECT_EQ(result.value.dimension(1), 9);
  EXPECT_EQ(result.parameters.config().num_heads, 2);
}

TEST(MultiHeadAttentionBackward, HiddenInputsReachNothing) {
  const MultiHeadAttention<float> module({.embed_dim = 16,
                                          .num_heads = 4,
                                          .num_kv_heads = 2,
                                          .bias = true,
                                          .rotary = RotaryConfig{.layout = RotaryLayout::half},
                                          .qk_norm = true},
                                         2);
  const Reference x = random({2, 1, 30, 16}, 1), q = random({2, 1, 9, 16}, 2);
  const std::vector<Index> lens = {20, 0};
  const auto grad = make<float, 3>(random({2, 1, 9, 16}, 3));
  // In the second batch entry no query has a key: its queries matter no more than the keys.
  const auto run = [&](double poison) {
    const auto keys =
        make<float, 3>(generate({2, 1, 30, 16}, [&](Index b, Index, Index i, Index d) {
          return i < lens[static_cast<std::size_t>(b)] ? x(b, 0, i, d) : poison;
        }));
    const auto query =
        make<float, 3>(generate({2, 1, 9, 16}, [&](Index b, Index, Index i, Index d) {
          return b == 0 ? q(b, 0, i, d) : poison;
        }));
    return module.backward(module.forward(query, keys, keys, valid_lens(lens)), grad);
  };
  const auto clean = run(0);
  for (const double y : numbers(clean)) ASSERT_TRUE(std::isfinite(y));
  for_each_index({1, 1, 30, 16}, [&](Index, Index, Index i, Index d) {
    EXPECT_EQ(clean.key(1, i, d), 0);
    EXPECT_EQ(clean.value(1, i, d), 0);
    if (i < 9) {
      EXPECT_EQ(clean.query(1, i, d), 0);
    }
    if (i >= 20) {
      EXPECT_EQ(clean.key(0, i, d), 0);
    }
  });
  for (const double poison : {nan, infinity, -infinity}) {
    EXPECT_EQ(numbers(run(poison)), numbers(clean)) << poison;
  }
}

TEST(MultiHeadAttentionBackward, ThreadsChangeNoBit) {
  const MultiHeadAttention<float> module(
      {.embed_dim = 32, .num_heads = 4, .num_kv_heads = 2, .bias = true}, 2);
  const auto x = make<float, 3>(random({2, 1, 110, 32}, 1)),
             grad = make<float, 3>(random({2, 1, 110, 32}, 2));
  const auto run = [&](Eigen::ThreadPoolInterface* pool) {
    const AttentionOptions options{.dropout = .3, .seed = 4, .pool = pool};
    return numbers(module.backward(module.forward(x, x, x, causal(), options), grad));
  };
  const auto alone = run(nullptr);
  for (const int threads : {1, 2, 3}) {
    Eigen::ThreadPool pool(threads);
    EXPECT_EQ(run(&pool), alone);
  }
}

TEST(MultiHeadAttentionBackward, AFewStepsOfGradientDescentLowerTheLoss) {
  const auto x = make<double, 3>(random({3, 1, 8, 12}, 1));
  const MultiHeadConfig config{.embed_dim = 12, .num_heads = 3, .bias = true};
  const MultiHeadAttention<double> teacher(config, 11);
  MultiHeadAttention<double> module(config, 12);
  const auto distances =
      descend(module, reference(teacher(x, x, x, causal())), 60, .01,
              [&](const auto& trained) { return trained.forward(x, x, x, causal()); });
  EXPECT_LT(distances.back(), .2 * distances.front());
}

TEST(MultiHeadAttentionBackward, OfHalf) {
  const MultiHeadConfig config{.embed_dim = 8, .num_heads = 2, .bias = true};
  const Reference x = rounded<Eigen::half>(random({2, 1, 7, 8}, 1)),
                  g = rounded<Eigen::half>(random({2, 1, 7, 8}, 2));
  const auto run = [&]<class Scalar>(const MultiHeadAttention<Scalar>& module) {
    const auto input = make<Scalar, 3>(x);
    return numbers(module.backward(module.forward(input, input, input), make<Scalar, 3>(g)));
  };
  const auto narrow = run(MultiHeadAttention<Eigen::half>(config, 1)),
             wide = run(MultiHeadAttention<double>(config, 1));
  ASSERT_EQ(narrow.size(), wide.size());
  // Weights, projections and their gradients are each rounded to 11 bits.
  for (std::size_t n = 0; n < wide.size(); ++n) {
    EXPECT_TRUE(std::abs(narrow[n] - wide[n]) <= 20 * epsilon<Eigen::half>()) << n;
  }
}

TEST(MultiHeadAttentionBackward, OfNothing) {
  const MultiHeadAttention<float> module({.embed_dim = 6, .num_heads = 2}, 5);
  const auto q = make<float, 3>(random({2, 1, 5, 6}, 1));
  const Tensor<float, 3> none(2, 0, 6);
  for (const double y : numbers(module.backward(module.forward(q, none, none), q))) EXPECT_EQ(y, 0);
  const auto result = module.backward(module.forward(none, q, q), none);
  EXPECT_EQ(result.query.size(), 0);
  for (const double y : numbers(result)) EXPECT_EQ(y, 0);
}

TEST(MultiHeadAttentionBackward, RefusesWhatDoesNotFit) {
  const MultiHeadAttention<float> module({.embed_dim = 12, .num_heads = 4}),
      heads({.embed_dim = 12, .num_heads = 3}), wide({.embed_dim = 16, .num_heads = 4});
  const auto x = make<float, 3>(random({2, 1, 5, 12}, 1));
  const auto pass = module.forward(x, x, x);
  EXPECT_TRUE(
      refuses([&] { module.backward(pass, Tensor<float, 3>(2, 13, 12)); },
              {"heed::MultiHeadAttention::backward", "axis 1", "(2, 13, 12)", "(2, 5, 12)"}));
  EXPECT_TRUE(refuses([&] { wide.backward(pass, x); },
                      {"heed::MultiHeadAttention::backward", "(2, 5, 12)", "(16, 16)"}));
  EXPECT_TRUE(refuses([&] { heads.backward(pass, x); },
                      {"heed::MultiHeadAttention::backward", "(2, 4, 5)", "3 heads"}));
}

// The tensors of a pass are public too.
TEST(MultiHeadAttentionBackward, RefusesAPassOfOtherShapes) {
  const MultiHeadAttention<float> module({.embed_dim = 12, .num_heads = 4});
  const auto x = make<float, 3>(random({2, 1, 5, 12}, 1));
  const auto good = module.forward(x, x, x);
  const auto expect = [&](const auto& change, const std::string& shape) {
    auto pass = good;
    change(pass);
    EXPECT_TRUE(
        refuses([&] { module.backward(pass, x); }, {"heed::MultiHeadAttention::backward", shape}));
  };
  for (const Index batch : {0, 1, 3}) {
    const std::string shape = "(" + std::to_string(batch) + ", 5, 12)";
    expect([&](auto& pass) { pass.query.resize(batch, 5, 12); }, shape);
    expect([&](auto& pass) { pass.key.resize(batch, 5, 12); }, shape);
    expect([&](auto& pass) { pass.value.resize(batch, 5, 12); }, shape);
    expect([&](auto& pass) { pass.context.resize(batch, 5, 12); }, shape);
    expect([&](auto& pass) { pass.output.resize(batch, 5, 12); }, shape);
  }
  expect([&](auto& pass) { pass.key.resize(2, 4, 12); }, "(2, 4, 12)");
  expect([&](auto& pass) { pass.log_sum_exp.resize(2, 4, 3); }, "(2, 4, 3)");
  expect([&](auto& pass) { pass.log_sum_exp.resize(0, 0, 0); }, "(0, 0, 0)");
  const MultiHeadAttention<float> normed({.embed_dim = 12, .num_heads = 4, .qk_norm = true});
  EXPECT_TRUE(refuses([&] { normed.backward(good, x); },
                      {"heed::MultiHeadAttention::backward", "(0, 0, 0)"}));
  auto moved = good;
  const auto taken = std::move(moved);
  if (moved.query.size() == 0) {
    EXPECT_TRUE(
        refuses([&] { module.backward(moved, x); }, {"heed::MultiHeadAttention::backward"}));
  }
  EXPECT_NO_THROW(module.backward(taken, x));
}

TEST(ForEachParameter, GoesThroughTheProjectionsInOrder) {
  const MultiHeadConfig config{.embed_dim = 4, .num_heads = 2, .num_kv_heads = 1, .bias = true};
  const MultiHeadAttention<float> module(config, 1);
  std::vector<const float*> visited;
  for_each_parameter(module, module, [&](const auto& value, const auto& gradient) {
    EXPECT_EQ(value.data(), gradient.data());
    visited.push_back(value.data());
  });
  std::vector<const float*> expected;
  for (const auto* layer : {&module.query_projection, &module.key_projection,
                            &module.value_projection, &module.output_projection}) {
    expected.push_back(layer->weight.data());
    expected.push_back(layer->bias.data());
  }
  EXPECT_EQ(visited, expected);
  MultiHeadAttention<float> other({.embed_dim = 4, .num_heads = 2}, 1);
  const auto weight = other.query_projection.weight;
  EXPECT_TRUE(
      refuses([&] { for_each_parameter(other, module, [](auto& x, const auto&) { x.setZero(); }); },
              {"heed::for_each_parameter", "(4, 1)", "(0, 1)"}));
  EXPECT_EQ(other.query_projection.weight, weight) << "written before the check";
}

}  // namespace
}  // namespace heed::test
