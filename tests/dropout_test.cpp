#include "heed/dropout.hpp"

#include <unsupported/Eigen/CXX11/ThreadPool>

#include "score_support.hpp"

namespace heed::test {
namespace {

// The documented pattern, written a second time: a chain of SplitMix64 steps over batch, head,
// query and key, kept where the last is at least probability * 2^64.
bool kept(std::uint64_t seed, const std::array<Index, 4>& at, double probability) {
  std::uint64_t state = seed;
  for (const Index i : at) {
    state += 0x9e3779b97f4a7c15U * static_cast<std::uint64_t>(i + 1);
    state = (state ^ state >> 30) * 0xbf58476d1ce4e5b9U;
    state = (state ^ state >> 27) * 0x94d049bb133111ebU;
    state ^= state >> 31;
  }
  return std::ldexp(static_cast<double>(state), -64) >= probability;
}

auto keep(std::uint64_t seed, double probability) {
  return [=](Index b, Index h, Index i, Index j) {
    return kept(seed, {b, h, i, j}, probability) ? 1 / (1 - probability) : 0.;
  };
}

/// With equal scores and the identity as values, keys times the output is 0 or 1 / (1 - p).
Reference pattern(const Shape& shape, const AttentionOptions& options) {
  const auto [batch, heads, queries, keys] = shape;
  const Tensor<double, 4> q = constant({batch, heads, queries, 1}, 0),
                          k = constant({batch, heads, keys, 1}, 0);
  const Tensor<double, 4> v = generate(
      {batch, heads, keys, keys}, [](Index, Index, Index i, Index j) { return i == j ? 1. : 0.; });
  return reference(attention(q, k, v, dot_product(), no_mask(), options));
}

/// "1" for each kept key of one query.
std::string row(const Reference& pattern, Index b, Index h, Index i) {
  std::string bits;
  for (Index j = 0; j < pattern.dimension(3); ++j) bits += pattern(b, h, i, j) != 0 ? '1' : '0';
  return bits;
}

TEST(Dropout, IsTheSameOnEveryPlatform) {
  EXPECT_EQ(row(pattern({1, 1, 1, 24}, {.dropout = .5, .seed = 0}), 0, 0, 0),
            "001101010011110110001110");
  EXPECT_EQ(row(pattern({2, 3, 4, 24}, {.dropout = .5, .seed = 7}), 1, 2, 3),
            "110101110111110000000101");
}

// A query of NaN has weights of NaN, which are so whether they are dropped or kept.
TEST(Dropout, HidesNoNaNOfAQuery) {
  Matrix<float> q = Matrix<float>::Constant(3, 4, 1), k = Matrix<float>::Constant(2, 4, 1),
                v = Matrix<float>::Constant(2, 4, 1);
  q.row(1).setConstant(std::numeric_limits<float>::quiet_NaN());
  int all_dropped = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const AttentionOptions options{.dropout = .75, .seed = seed};
    all_dropped += !kept(seed, {0, 0, 1, 0}, .75) && !kept(seed, {0, 0, 1, 1}, .75);
    const auto score = scaled_dot_product();
    for (const Matrix<float>& out :
         {attention(q, k, v, score, no_mask(), options),
          attention_with_weights(q, k, v, score, no_mask(), options).output}) {
      EXPECT_TRUE(out.row(1).array().isNaN().all()) << seed;
      EXPECT_TRUE(out.row(0).array().isFinite().all() && out.row(2).array().isFinite().all());
    }
  }
  EXPECT_GT(all_dropped, 5);  // of 20, at (3/4)^2 each
}

TEST(Dropout, FollowsTheFormula) {
  for (const Sizes& sizes : sweep()) {
    const Inputs in(sizes);
    for (const double p : {.1, .5, .875}) {
      const Expected<float> expected(in.query, in.key, in.value, scaled_dot(), everything(),
                                     keep(42, p));
      EXPECT_TRUE(expected.accepts(attention(make<float, 4>(in.query), make<float, 4>(in.key),
                                             make<float, 4>(in.value), scaled_dot_product(),
                                             no_mask(), {.dropout = p, .seed = 42})))
          << text(sizes);
    }
  }
}

TEST(Dropout, FollowsTheFormulaUnderAMaskAndInDouble) {
  const auto allowed = [](Index, Index, Index i, Index j) { return j <= i + 151; };
  const Inputs in(
      {.batch = 2, .heads = 4, .key_heads = 2, .queries = 49, .keys = 200, .dim = 8, .width = 5});
  const auto q = make<double, 4>(in.query), k = make<double, 4>(in.key),
             v = make<double, 4>(in.value);
  const AttentionOptions options{.dropout = .25, .seed = 3};
  const Expected<double> expected(in.query, in.key, in.value, scaled_dot(), allowed, keep(3, .25));
  EXPECT_TRUE(expected.accepts(attention(q, k, v, scaled_dot_product(), causal(), options)));
  const auto pass = attention_forward(q, k, v, scaled_dot_product(), causal(), options);
  EXPECT_TRUE(expected.accepts(pass.output));
  EXPECT_TRUE(expected.accepts_log_sum_exp(pass.log_sum_exp)) << "which dropout does not touch";
  const auto [output, weights] =
      attention_with_weights(q, k, v, scaled_dot_product(), causal(), options);
  EXPECT_TRUE(expected.accepts(output));
  EXPECT_TRUE(expected.accepts_weights(weights)) << "which are those before dropout";
}

TEST(Dropout, OfOneBatchEntryDoesNotDependOnTheRest) {
  const AttentionOptions options{.dropout = .4, .seed = 9};
  const Reference large = pattern({3, 4, 60, 210}, options),
                  small = pattern({2, 2, 25, 24}, options);
  for_each_index({2, 2, 25, 24}, [&](Index b, Index h, Index i, Index j) {
    ASSERT_EQ(small(b, h, i, j) != 0, large(b, h, i, j) != 0) << text(Shape{b, h, i, j});
  });
}

TEST(Dropout, DoesNotDependOnThreads) {
  const Reference alone = pattern({2, 3, 60, 60}, {.dropout = .4, .seed = 9});
  for (const int threads : {1, 2, 3}) {
    Eigen::ThreadPool pool(threads);
    EXPECT_TRUE(same(pattern({2, 3, 60, 60}, {.dropout = .4, .seed = 9, .pool = &pool}), alone));
  }
}

// 240,000 weights: the share of the kept is within six standard deviations of 1 - p.
TEST(Dropout, DropsWithTheGivenProbability) {
  for (const double p : {.05, .5, .9}) {
    const Reference all = pattern({2, 3, 200, 200}, {.dropout = p, .seed = 1});
    double count = 0;
    for (Index n = 0; n < all.size(); ++n) {
      if (all.data()[n] == 0) continue;
      ++count;
      ASSERT_NEAR(all.data()[n], 1 / (200 * (1 - p)), 1e-15);
    }
    const auto size = static_cast<double>(all.size());
    EXPECT_NEAR(count / size, 1 - p, 6 * std::sqrt(p * (1 - p) / size));
  }
}

TEST(Dropout, PatternsOfSeedsBatchesHeadsAndQueriesDiffer) {
  const Reference a = pattern({2, 2, 2, 64}, {.dropout = .5, .seed = 1}),
                  b = pattern({2, 2, 2, 64}, {.dropout = .5, .seed = 2});
  const std::string first = row(a, 0, 0, 0);
  EXPECT_NE(first, row(b, 0, 0, 0));
  EXPECT_NE(first, row(a, 1, 0, 0));
  EXPECT_NE(first, row(a, 0, 1, 0));
  EXPECT_NE(first, row(a, 0, 0, 1));
  EXPECT_NE(row(a, 1, 0, 0), row(a, 0, 1, 0));
}

TEST(Dropout, OfNothingIsNoDropout) {
  const Inputs in({.queries = 30, .keys = 200, .dim = 8, .width = 5});
  const auto q = make<float, 2>(in.query), k = make<float, 2>(in.key), v = make<float, 2>(in.value);
  EXPECT_TRUE(same(
      reference(attention(q, k, v, scaled_dot_product(), no_mask(), {.dropout = 0, .seed = 5})),
      reference(attention(q, k, v))));
}

TEST(Dropout, RefusesProbabilitiesOutsideOfItsRange) {
  const auto x = make<float, 2>(random({1, 1, 3, 4}, 1));
  for (const double p : {-.1, 1., 1.5, nan, infinity}) {
    const AttentionOptions options{.dropout = p};
    const auto score = scaled_dot_product();
    EXPECT_TRUE(refuses([&] { attention(x, x, x, score, no_mask(), options); },
                        {"heed::attention", "dropout"}));
    EXPECT_TRUE(refuses([&] { attention_with_weights(x, x, x, score, no_mask(), options); },
                        {"heed::attention_with_weights", "dropout"}));
    EXPECT_TRUE(refuses([&] { attention_forward(x, x, x, score, no_mask(), options); },
                        {"heed::attention_forward", "dropout"}));
  }
}

}  // namespace
}  // namespace heed::test
