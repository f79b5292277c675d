#include "heed/multi_head_attention.hpp"

#include <unsupported/Eigen/CXX11/ThreadPool>

#include "module_support.hpp"

namespace heed::test {
namespace {

// Two heads of width 1, all projections the identity. Each head attends by its own coordinate:
// query (ln 3, 0), keys (1, 5) and (0, 7): head 0 has weights 3/4 and 1/4, head 1 a half each.
TEST(MultiHeadAttention, ByHand) {
  MultiHeadAttention<double> module({.embed_dim = 2, .num_heads = 2});
  for (auto* layer : {&module.query_projection, &module.key_projection, &module.value_projection,
                      &module.output_projection}) {
    layer->weight.setIdentity();
  }
  Tensor<double, 3> query(1, 1, 2), key(1, 2, 2), value(1, 2, 2);
  query.setValues({{{std::log(3), 0}}});
  key.setValues({{{1, 5}, {0, 7}}});
  value.setValues({{{4, 10}, {8, 20}}});
  const auto [output, weights] = module.forward_with_weights(query, key, value);
  EXPECT_NEAR(weights(0, 0, 0, 0), .75, 1e-15);
  EXPECT_NEAR(weights(0, 0, 0, 1), .25, 1e-15);
  EXPECT_NEAR(weights(0, 1, 0, 0), .5, 1e-15);
  EXPECT_NEAR(output(0, 0, 0), 5, 1e-14);
  EXPECT_NEAR(output(0, 0, 1), 15, 1e-14);
}

/// Heads as they meet, (batch, heads, seq, dim): normed, then rotated by their place in the
/// sequence.
template <class Scalar>
Reference as_they_meet(Reference x, const Vector<Scalar>& norm, const MultiHeadConfig& config) {
  const Index width = x.dimension(3);
  const Index dim = config.rotary && config.rotary->dim != 0 ? config.rotary->dim : width;
  for_each_index(
      {x.dimension(0), x.dimension(1), x.dimension(2), 1}, [&](Index b, Index h, Index i, Index) {
        double squares = 0;
        for (Index c = 0; c < width; ++c) squares += x(b, h, i, c) * x(b, h, i, c);
        const double root = std::sqrt(squares / static_cast<double>(width) + 1e-6);
        for (Index c = 0; config.qk_norm && c < width; ++c) {
          x(b, h, i, c) *= number(norm(c)) / root;
        }
        for (Index c = 0; config.rotary && c < dim / 2; ++c) {
          const bool half = config.rotary->layout == RotaryLayout::half;
          const double angle =
              static_cast<double>(i) *
              std::pow(config.rotary->base, -2 * static_cast<double>(c) / static_cast<double>(dim));
          double &first = x(b, h, i, half ? c : 2 * c),
                 &second = x(b, h, i, half ? c + dim / 2 : 2 * c + 1);
          const double before = first;
          first = before * std::cos(angle) - second * std::sin(angle);
          second = second * std::cos(angle) + before * std::sin(angle);
        }
      });
  return x;
}

struct Case {
  MultiHeadConfig config;
  Index batch, queries, keys;
};

template <class Scalar, class Mask, class Allowed>
void expect_split_project_attend_merge(const Case& c, const Mask& mask, const Allowed& allowed) {
  const MultiHeadConfig& f = c.config;
  SCOPED_TRACE(::testing::Message()
               << f.embed_dim << " wide, " << f.num_heads << " heads, " << f.num_kv_heads
               << " key heads, keys " << f.key_dim << " values " << f.value_dim);
  MultiHeadAttention<Scalar> module(f, 5);
  const Index key_heads = f.num_kv_heads != 0 ? f.num_kv_heads : f.num_heads;
  const Index key_dim = f.key_dim != 0 ? f.key_dim : f.embed_dim,
              value_dim = f.value_dim != 0 ? f.value_dim : f.embed_dim;
  const Index head_dim = f.head_dim != 0 ? f.head_dim : f.embed_dim / f.num_heads;
  EXPECT_EQ(module.config().head_dim, head_dim);
  ASSERT_EQ(module.query_projection.weight.rows(), f.num_heads * head_dim);
  ASSERT_EQ(module.query_projection.weight.cols(), f.embed_dim);
  ASSERT_EQ(module.key_projection.weight.rows(), key_heads * head_dim);
  ASSERT_EQ(module.key_projection.weight.cols(), key_dim);
  ASSERT_EQ(module.value_projection.weight.rows(), key_heads * head_dim);
  ASSERT_EQ(module.value_projection.weight.cols(), value_dim);
  ASSERT_EQ(module.output_projection.weight.rows(), f.embed_dim);
  ASSERT_EQ(module.output_projection.weight.cols(), f.num_heads * head_dim);
  for (auto* layer : {&module.query_projection, &module.key_projection, &module.value_projection,
                      &module.output_projection}) {
    ASSERT_EQ(layer->bias.size(), f.bias ? layer->weight.rows() : 0);
    // Biases start from zero; others show a bias that is left out.
    if (f.bias) layer->bias = vector_of<Scalar>(layer->weight.rows(), 9);
  }
  for (auto* norm : {&module.query_norm, &module.key_norm}) {
    ASSERT_EQ(norm->size(), f.qk_norm ? head_dim : 0);
    EXPECT_EQ(*norm, Vector<Scalar>(Vector<Scalar>::Ones(norm->size())));
    *norm = vector_of<Scalar>(norm->size(), norm == &module.key_norm ? 7 : 8);
  }
  const Reference q = random({c.batch, 1, c.queries, f.embed_dim}, 1),
                  k = random({c.batch, 1, c.keys, key_dim}, 2);
  const Reference v = random({c.batch, 1, c.keys, value_dim}, 3);
  const auto inner = attend<double>(
      as_they_meet(split(projected(module.query_projection, q), f.num_heads), module.query_norm, f),
      as_they_meet(split(projected(module.key_projection, k), key_heads), module.key_norm, f),
      split(projected(module.value_projection, v), key_heads), scaled_dot(), allowed,
      [](auto...) { return 1.0; });
  const Reference expected = projected(module.output_projection, merged(inner.output));
  // Four sums of products of numbers below 1, one after the other.
  const Index terms = f.embed_dim + key_dim + value_dim + f.num_heads * head_dim;
  const double bound = 8 * std::sqrt(static_cast<double>(terms)) *
                       static_cast<double>(std::numeric_limits<Scalar>::epsilon()) * 4;
  const auto query = make<Scalar, 3>(q), key = make<Scalar, 3>(k), value = make<Scalar, 3>(v);
  const auto output = module(query, key, value, mask);
  EXPECT_TRUE(near(reference(output), expected, bound));
  const auto [again, weights] = module.forward_with_weights(query, key, value, mask);
  EXPECT_TRUE(near(reference(again), expected, bound));
  EXPECT_TRUE(near(reference(weights), inner.weights, bound));
  EXPECT_TRUE(same(reference(module.forward(query, key, value, mask).output), reference(output)));
}

// What is one tensor is projected in one product, and what is not in several.
TEST(MultiHeadAttention, OneTensorGivesTheBitsOfItsCopies) {
  const MultiHeadAttention<float> module({.embed_dim = 24,
                                          .num_heads = 4,
                                          .num_kv_heads = 2,
                                          .bias = true,
                                          .rotary = RotaryConfig{.layout = RotaryLayout::half},
                                          .qk_norm = true},
                                         3);
  for (const Index tokens : {1, 9, 70}) {
    const auto x = make<float, 3>(random({2, 1, tokens, 24}, 1));
    const Tensor<float, 3> key = x, value = x;
    const Reference apart = reference(module(x, key, value, causal()));
    for (const int threads : {1, 2, 3}) {
      Eigen::ThreadPool pool(threads);
      const AttentionOptions options{.pool = &pool};
      EXPECT_TRUE(same(reference(module(x, x, x, causal(), options)), apart));
      EXPECT_TRUE(same(reference(module(x, key, key, causal(), options)), apart));
      EXPECT_TRUE(same(reference(module(x, key, value, causal(), options)), apart));
      EXPECT_TRUE(same(reference(module.forward(x, x, x, causal(), options).output), apart));
    }
  }
}

TEST(MultiHeadAttention, IsSplitProjectAttendMerge) {
  const std::vector<Case> cases = {
      {{.embed_dim = 16, .num_heads = 4}, 2, 7, 7},
      {{.embed_dim = 16, .num_heads = 1}, 1, 1, 49},
      {{.embed_dim = 24, .num_heads = 8, .num_kv_heads = 2}, 2, 26, 50},
      {{.embed_dim = 24, .num_heads = 6, .num_kv_heads = 1, .bias = true}, 1, 9, 193},
      {{.embed_dim = 20, .num_heads = 5, .key_dim = 7, .value_dim = 11, .bias = true}, 3, 5, 8},
      {{.embed_dim = 32,
        .num_heads = 4,
        .num_kv_heads = 2,
        .key_dim = 3,
        .value_dim = 64,
        .bias = true},
       2,
       25,
       24},
      {{.embed_dim = 8, .num_heads = 2, .head_dim = 8}, 2, 7, 9},
      {{.embed_dim = 5, .num_heads = 3, .bias = true, .head_dim = 4}, 2, 9, 25},
      {{.embed_dim = 24,
        .num_heads = 4,
        .num_kv_heads = 2,
        .key_dim = 3,
        .value_dim = 7,
        .bias = true,
        .head_dim = 2},
       1,
       26,
       50},
      {{.embed_dim = 16, .num_heads = 4, .qk_norm = true}, 2, 7, 9},
      {{.embed_dim = 12,
        .num_heads = 4,
        .num_kv_heads = 2,
        .head_dim = 10,
        .rotary = RotaryConfig{.dim = 6, .layout = RotaryLayout::interleaved}},
       2,
       26,
       30},
      {{.embed_dim = 20,
        .num_heads = 4,
        .num_kv_heads = 1,
        .key_dim = 7,
        .bias = true,
        .head_dim = 34,
        .rotary = RotaryConfig{.base = 500, .layout = RotaryLayout::half},
        .qk_norm = true},
       2,
       25,
       49}};
  for (const Case& c : cases) {
    expect_split_project_attend_merge<float>(c, no_mask(), everything());
    expect_split_project_attend_merge<double>(c, no_mask(), everything());
    const auto allowed = [](Index, Index h, Index i, Index j) { return (h + i + j) % 3 != 0; };
    expect_split_project_attend_merge<float>(c, mask_if(allowed), allowed);
  }
}

TEST(MultiHeadAttention, HiddenInputsReachNothing) {
  MultiHeadAttention<float> module({.embed_dim = 16, .num_heads = 4}, 2);
  const Reference x = random({2, 1, 30, 16}, 1);
  const auto padded = [&](double poison) {
    return make<float, 3>(generate({2, 1, 30, 16}, [&](Index b, Index, Index i, Index d) {
      return i < (b == 0 ? 20 : 5) ? x(b, 0, i, d) : poison;
    }));
  };
  const auto query = make<float, 3>(x);
  const auto run = [&](double poison) {
    const auto keys = padded(poison);
    return reference(module(query, keys, keys, valid_lens({20, 5})));
  };
  const Reference clean = run(0);
  for (const double poison : {nan, infinity, -infinity})
    EXPECT_TRUE(same(run(poison), clean)) << poison;
}

TEST(MultiHeadAttention, AQueryWithoutAKeyGivesTheBiasOfTheOutput) {
  MultiHeadAttention<double> module({.embed_dim = 8, .num_heads = 2, .bias = true}, 2);
  module.output_projection.bias = vector_of<double>(8, 4);
  const auto x = make<double, 3>(random({1, 1, 5, 8}, 1));
  const auto output = module(x, x, x, valid_lens({0}));
  for (Index i = 0; i < 5; ++i) {
    for (Index c = 0; c < 8; ++c) EXPECT_EQ(output(0, i, c), module.output_projection.bias(c));
  }
}

TEST(MultiHeadAttention, ThreadsChangeNoBit) {
  MultiHeadAttention<float> module({.embed_dim = 32,
                                    .num_heads = 4,
                                    .num_kv_heads = 2,
                                    .bias = true,
                                    .rotary = RotaryConfig{.layout = RotaryLayout::half},
                                    .qk_norm = true},
                                   2);
  const auto x = make<float, 3>(random({2, 1, 70, 32}, 1));
  const Reference alone = reference(module(x, x, x, causal(), {.dropout = .3, .seed = 4}));
  for (const int threads : {1, 2, 3}) {
    Eigen::ThreadPool pool(threads);
    EXPECT_TRUE(same(
        reference(module(x, x, x, causal(), {.dropout = .3, .seed = 4, .pool = &pool})), alone));
  }
}

TEST(MultiHeadAttention, IntoEveryStrideAndNothingElse) {
  MultiHeadAttention<float> module({.embed_dim = 16, .num_heads = 4, .bias = true}, 2);
  const Reference x = random({2, 1, 30, 16}, 1);
  const auto input = make<float, 3>(x);
  const Reference expected = reference(module(input, input, input, causal()));
  for (const auto& backwards : directions) {
    Scattered<float> to(constant({2, 1, 30, 16}, nan), backwards);
    const auto wide = to.view();
    module.into(
        View<float, 3>{wide.data, {2, 30, 16}, {wide.strides[0], wide.strides[2], wide.strides[3]}},
        input, input, input, causal());
    EXPECT_TRUE(near(reference(wide), expected, 1e-6));
    EXPECT_EQ(to.written(), x.size());
  }
  Tensor<float, 3> own = input, short_one(2, 29, 16);
  const auto other = input;
  EXPECT_TRUE(
      refuses([&] { module.into(short_one, own, own, own); }, {"(2, 29, 16)", "(2, 30, 16)"}));
  EXPECT_TRUE(refuses([&] { module.into(own, own, other, other); }, {"shares", "query"}));
  EXPECT_TRUE(refuses([&] { module.into(own, other, own, other); }, {"shares", "key"}));
  EXPECT_TRUE(refuses([&] { module.into(own, other, other, own); }, {"shares", "value"}));
  EXPECT_TRUE(refuses([&] { module.into(own, other, other, other, valid_lens({1})); }, {"heed::"}));
  auto& weight = module.key_projection.weight;
  const Matrix<float> one = weight;
  EXPECT_TRUE(refuses([&] { module.into(weight, one, one, one); }, {"shares", "weight"}));
  EXPECT_EQ(weight, one);
  EXPECT_TRUE(same(reference(own), x));
}

TEST(MultiHeadAttention, TakesColumnMajorTensors) {
  MultiHeadAttention<float> module({.embed_dim = 16, .num_heads = 4}, 2);
  const Reference x = random({2, 1, 30, 16}, 1);
  const auto row_major = make<float, 3>(x);
  const auto column_major = make<float, 3, Eigen::ColMajor>(x);
  const auto output = module(column_major, column_major, column_major);
  static_assert(static_cast<int>(std::remove_cvref_t<decltype(output)>::Layout) == Eigen::ColMajor);
  EXPECT_TRUE(near(reference(output), reference(module(row_major, row_major, row_major)), 1e-6));
}

TEST(MultiHeadAttention, TakesMatricesWithoutABatch) {
  MultiHeadAttention<float> module({.embed_dim = 16, .num_heads = 4, .num_kv_heads = 2}, 2);
  const Reference q = random({1, 1, 9, 16}, 1), k = random({1, 1, 30, 16}, 2);
  const auto batched = module.forward_with_weights(make<float, 3>(q), make<float, 3>(k),
                                                   make<float, 3>(k), causal());
  const auto plain = module.forward_with_weights(make<float, 2>(q), make<float, 2>(k),
                                                 make<float, 2>(k), causal());
  EXPECT_TRUE(same(reference(plain.output), reference(batched.output)));
  ASSERT_EQ(plain.weights.dimension(0), 4) << "heads, queries, keys";
  for_each_index({1, 4, 9, 30}, [&](Index, Index h, Index i, Index j) {
    EXPECT_EQ(plain.weights(h, i, j), batched.weights(0, h, i, j));
  });
}

TEST(MultiHeadAttention, StartsFromXavierAndItsSeed) {
  const MultiHeadConfig config{.embed_dim = 48,
                               .num_heads = 4,
                               .num_kv_heads = 2,
                               .key_dim = 20,
                               .value_dim = 30,
                               .bias = true};
  const MultiHeadAttention<float> a(config, 7), b(config, 7), c(config, 8);
  expect_xavier(a.query_projection.weight);
  expect_xavier(a.key_projection.weight);
  expect_xavier(a.value_projection.weight);
  expect_xavier(a.output_projection.weight);
  EXPECT_EQ(a.query_projection.weight, b.query_projection.weight);
  EXPECT_EQ(a.output_projection.weight, b.output_projection.weight);
  EXPECT_NE(a.query_projection.weight, c.query_projection.weight);
  EXPECT_NE(a.query_projection.weight, a.output_projection.weight);
  EXPECT_EQ(a.query_projection.bias, Vector<float>(Vector<float>::Zero(48)));
}

// The numbers of the Mersenne Twister, computed apart from the standard library.
TEST(MultiHeadAttention, StartsFromTheSameWeightsOnEveryPlatform) {
  const MultiHeadAttention<double> module(
      {.embed_dim = 4, .num_heads = 2, .num_kv_heads = 1, .key_dim = 3, .value_dim = 5}, 7);
  EXPECT_NEAR(module.query_projection.weight(0, 1), 0.7782125113118723, 1e-15);
  EXPECT_NEAR(module.query_projection.weight(3, 3), -0.3394730132355927, 1e-15);
  EXPECT_NEAR(module.key_projection.weight(0, 0), 1.0850642975915623, 1e-15);
  EXPECT_NEAR(module.key_projection.weight(1, 2), -0.45500520118134574, 1e-15);
  EXPECT_NEAR(module.value_projection.weight(0, 0), -0.8457899414829827, 1e-15);
  EXPECT_NEAR(module.value_projection.weight(1, 4), -0.8928379033632072, 1e-15);
  EXPECT_NEAR(module.output_projection.weight(0, 0), -0.39689671294466733, 1e-15);
  EXPECT_NEAR(module.output_projection.weight(3, 3), -0.6472931956957454, 1e-15);
}

TEST(MultiHeadAttention, RefusesWhatDoesNotFit) {
  EXPECT_TRUE(refuses([] { MultiHeadAttention<float>({.embed_dim = 17, .num_heads = 5}); },
                      {"heed::MultiHeadAttention", "17", "5"}));
  EXPECT_TRUE(refuses(
      [] { MultiHeadAttention<float>({.embed_dim = 24, .num_heads = 8, .num_kv_heads = 3}); },
      {"heed::MultiHeadAttention", "8", "3"}));
  EXPECT_TRUE(refuses([] { MultiHeadAttention<float>({.embed_dim = 24, .num_heads = 0}); },
                      {"heed::MultiHeadAttention", "0"}));
  EXPECT_TRUE(refuses([] { MultiHeadAttention<float>({.embed_dim = 24, .num_heads = -3}); },
                      {"heed::MultiHeadAttention", "-3"}));
  MultiHeadAttention<float> module({.embed_dim = 16, .num_heads = 4});
  const auto x = make<float, 3>(random({2, 1, 5, 16}, 1)),
             wide = make<float, 3>(random({2, 1, 5, 17}, 1));
  const auto other_batch = make<float, 3>(random({3, 1, 5, 16}, 1)),
             longer = make<float, 3>(random({2, 1, 9, 16}, 1));
  EXPECT_TRUE(refuses([&] { module(wide, x, x); }, {"heed::", "17", "16"}));
  EXPECT_TRUE(refuses([&] { module(x, wide, x); }, {"heed::", "17", "16"}));
  EXPECT_TRUE(refuses([&] { module(x, x, wide); }, {"heed::", "17", "16"}));
  EXPECT_TRUE(refuses([&] { module(x, other_batch, other_batch); }, {"heed::", "2", "3"}));
  EXPECT_TRUE(refuses([&] { module(x, x, longer); }, {"heed::", "5", "9"}));
  EXPECT_TRUE(refuses([&] { module(x, x, x, valid_lens({1, 2, 3})); }, {"heed::", "3", "2"}));
  EXPECT_TRUE(
      refuses([] { MultiHeadAttention<float>({.embed_dim = 24, .num_heads = 3, .head_dim = -4}); },
              {"heed::MultiHeadAttention", "head_dim", "-4"}));
  const auto rotated = [](const RotaryConfig& rotary) {
    return [rotary] {
      MultiHeadAttention<float>({.embed_dim = 20, .num_heads = 4, .rotary = rotary});
    };
  };
  EXPECT_TRUE(refuses(rotated({.layout = RotaryLayout::half}),
                      {"heed::MultiHeadAttention", "rotated", "5"}));
  EXPECT_TRUE(refuses(rotated({.dim = 6, .layout = RotaryLayout::half}),
                      {"heed::MultiHeadAttention", "6", "5"}));
  EXPECT_TRUE(refuses(rotated({.dim = 4, .layout = RotaryLayout::half, .axes = 2}),
                      {"heed::MultiHeadAttention", "2 axes"}));
}

/// Every call of the module throws, with the function's name and the parts.
template <class Module, class X, class Pass>
void expect_refused(const Module& module, const X& x, const Pass& pass, const std::string& name,
                    std::initializer_list<std::string> parts) {
  const auto has = [&](const auto& f, const std::string& function) {
    EXPECT_TRUE(refuses(f, {"heed::" + function + ":"}));
    EXPECT_TRUE(refuses(f, parts));
  };
  has([&] { module(x, x, x); }, name);
  has([&] { module.forward(x, x, x); }, name);
  has([&] { module.forward_with_weights(x, x, x); }, name);
  has([&] { module.backward(pass, pass.output); }, name + "::backward");
}

// Weights of heads twice as wide as the configuration says: fine once it says so.
TEST(MultiHeadAttention, ChecksWeightsThatWereAssigned) {
  const std::string name = "MultiHeadAttention";
  const MultiHeadConfig config{.embed_dim = 8, .num_heads = 2};
  MultiHeadConfig wide = config;
  wide.head_dim = 8;
  const MultiHeadAttention<float> good(config, 1), other(wide, 1);
  const auto x = make<float, 3>(random({2, 1, 5, 8}, 1));
  const auto pass = good.forward(x, x, x);
  auto module = good;
  module.query_projection = other.query_projection;
  expect_refused(module, x, pass, name, {"query_projection", "(16, 8)", "(8, 8)"});
  module.key_projection = other.key_projection;
  module.value_projection = other.value_projection;
  module.output_projection = other.output_projection;
  expect_refused(module, x, pass, name, {"query_projection", "(16, 8)", "(8, 8)"});
  module.query_projection = good.query_projection;
  expect_refused(module, x, pass, name, {"key_projection", "(16, 8)", "(8, 8)"});
  module.key_projection = good.key_projection;
  expect_refused(module, x, pass, name, {"value_projection", "(16, 8)", "(8, 8)"});
  module.value_projection = good.value_projection;
  expect_refused(module, x, pass, name, {"output_projection", "(8, 16)", "(8, 8)"});
  module.output_projection = good.output_projection;
  EXPECT_TRUE(same(reference(module(x, x, x)), reference(pass.output)));
  // A bias may be there or not, whatever the module began with, but of the right length.
  module.output_projection.bias.setOnes(8);
  EXPECT_TRUE(near(
      reference(module(x, x, x)),
      generate({2, 1, 5, 8},
               [&](Index b, Index, Index i, Index c) { return number(pass.output(b, i, c)) + 1; }),
      1e-6));
  for (auto* layer : {&module.query_projection, &module.key_projection, &module.value_projection,
                      &module.output_projection}) {
    layer->bias.setOnes(7);
    expect_refused(module, x, pass, name, {"bias", "7", "8"});
    layer->bias.resize(0);
  }
}

TEST(MultiHeadAttention, WithoutWeightsIsRefused) {
  const auto x = make<float, 3>(random({2, 1, 5, 8}, 1));
  MultiHeadAttention<float> module({.embed_dim = 8, .num_heads = 2});
  const auto pass = module.forward(x, x, x);
  expect_refused(MultiHeadAttention<float>(), x, pass, "MultiHeadAttention", {"no weights"});
  const Tensor<float, 3> none(2, 5, 0);
  expect_refused(MultiHeadAttention<float>(), none, pass, "MultiHeadAttention", {"no weights"});
  const auto taken = std::move(module);
  expect_refused(module, x, pass, "MultiHeadAttention", {"query_projection", "(0, 0)", "(8, 8)"});
  EXPECT_TRUE(same(reference(taken(x, x, x)), reference(pass.output)));
}

}  // namespace
}  // namespace heed::test
