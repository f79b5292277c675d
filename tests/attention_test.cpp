#include "heed/attention.hpp"

#include <unsupported/Eigen/AutoDiff>

#include "score_support.hpp"

namespace heed::test {
namespace {

// ---------------------------------------------------------------- by hand

// Unscaled: e^(1.1 * 1.6) / (e^(1.1 * 1.6) + e^(1.1 * .7)) = .72908792234 of 1.6, the rest of .7.
TEST(ByHand, DotProductOfNumbersWithTwoKeysKept) {
  Matrix<double> query(1, 1), keys(3, 1);
  query << 1.1;
  keys << 1.6, .7, -.8;
  const auto [output, weights] =
      attention_with_weights(query, keys, keys, dot_product(), valid_lens({2}));
  EXPECT_NEAR(weights(0, 0), .72908792234, 1e-11);
  EXPECT_NEAR(weights(0, 1), .27091207765, 1e-11);
  EXPECT_EQ(weights(0, 2), 0);
  EXPECT_NEAR(output(0, 0), 1.3561791301, 1e-10);
  const auto pass = attention_forward(query, keys, keys, dot_product(), valid_lens({2}));
  EXPECT_NEAR(pass.output(0, 0), 1.3561791301, 1e-10);
  EXPECT_NEAR(pass.log_sum_exp(0), std::log(std::exp(1.76) + std::exp(.77)), 1e-14);
}

// Queries and keys of width 4, so that the scale is 1/2: scores 1/2 (2 ln 3) = ln 3 and 0, weights
// 3/4 and 1/4.
TEST(ByHand, TheScaleIsOneOverTheRootOfTheWidth) {
  Matrix<double> query(1, 4), keys(2, 4), values(2, 2);
  query << std::log(3), 0, 0, 0;
  keys << 2, 5, 0, 0, 0, 0, 7, 0;
  values << 1, 0, 0, 1;
  const auto output = attention(query, keys, values);
  EXPECT_NEAR(output(0, 0), .75, 1e-15);
  EXPECT_NEAR(output(0, 1), .25, 1e-15);
  EXPECT_TRUE(
      same(reference(scaled_dot_product_attention(query, keys, values)), reference(output)));
}

// Equal scores: the mean of the values that the mask keeps.
TEST(ByHand, EqualScoresAverageTheValues) {
  const Matrix<float> query = Matrix<float>::Zero(3, 8), keys = Matrix<float>::Ones(3, 8);
  Matrix<float> values(3, 1);
  values << 1, 3, 8;
  const auto all = attention(query, keys, values);
  const auto past = scaled_dot_product_attention(query, keys, values, causal());
  const std::array<float, 3> means = {1, 2, 4};
  for (Index i = 0; i < 3; ++i) {
    EXPECT_FLOAT_EQ(all(i, 0), 4);
    EXPECT_FLOAT_EQ(past(i, 0), means[static_cast<std::size_t>(i)]);
  }
}

TEST(ByHand, OneKeyGetsTheWholeWeight) {
  const Inputs in({.queries = 50, .keys = 1, .dim = 9, .width = 5}, 100);
  const auto output =
      attention(make<float, 2>(in.query), make<float, 2>(in.key), make<float, 2>(in.value));
  EXPECT_TRUE(near(
      reference(output),
      generate({1, 1, 50, 5}, [&](Index, Index, Index, Index c) { return in.value(0, 0, 0, c); }),
      2 * std::numeric_limits<float>::epsilon()));
}

// ---------------------------------------------------------------- ranks, layouts, types of results

TEST(Results, HaveTheTypeOfTheQuery) {
  const Inputs in({.queries = 2, .keys = 3, .dim = 4, .width = 5});
  const auto q2 = make<float, 2, Eigen::ColMajor>(in.query),
             k2 = make<float, 2, Eigen::ColMajor>(in.key);
  static_assert(std::is_same_v<decltype(attention(q2, k2, k2)), Matrix<float>>);
  static_assert(std::is_same_v<decltype(attention_forward(q2, k2, k2).output), Matrix<float>>);
  static_assert(std::is_same_v<decltype(attention_forward(q2, k2, k2).log_sum_exp), Vector<float>>);
  static_assert(
      std::is_same_v<decltype(attention_with_weights(q2, k2, k2).weights), Matrix<float>>);

  const Tensor<double, 3> row3(1, 1, 1);
  static_assert(std::is_same_v<decltype(attention(row3, row3, row3)), Tensor<double, 3>>);
  static_assert(
      std::is_same_v<decltype(attention_forward(row3, row3, row3).log_sum_exp), Matrix<double>>);
  const Eigen::Tensor<double, 3, Eigen::ColMajor, Index> column3(1, 1, 1);
  static_assert(std::is_same_v<decltype(attention(column3, row3, row3)),
                               Eigen::Tensor<double, 3, Eigen::ColMajor, Index>>);

  const Tensor<Eigen::half, 4> half4(1, 1, 1, 1);
  static_assert(std::is_same_v<decltype(attention(half4, half4, half4)), Tensor<Eigen::half, 4>>);
  static_assert(std::is_same_v<decltype(attention_forward(half4, half4, half4).log_sum_exp),
                               Tensor<float, 3>>);
  const Tensor<float, 3> float3(1, 1, 2);
  static_assert(std::is_same_v<decltype(attention(split_heads(float3, 1), split_heads(float3, 1),
                                                  split_heads(float3, 1))),
                               Tensor<float, 4>>);
}

template <class Scalar, int Order>
void expect_ranks() {
  const Inputs in({.queries = 31, .keys = 45, .dim = 9, .width = 7});
  const Expected<Scalar> two(in.query, in.key, in.value, scaled_dot(), everything());
  const auto q2 = make<Scalar, 2, Order>(in.query), k2 = make<Scalar, 2, Order>(in.key);
  const auto v2 = make<Scalar, 2, Order>(in.value);
  const auto pass2 = attention_forward(q2, k2, v2);
  EXPECT_TRUE(two.accepts(pass2.output));
  EXPECT_TRUE(two.accepts_log_sum_exp(pass2.log_sum_exp));
  EXPECT_TRUE(two.accepts_weights(attention_with_weights(q2, k2, v2).weights));

  const Inputs in3({.batch = 3, .queries = 31, .keys = 45, .dim = 9, .width = 7});
  const Expected<Scalar> three(in3.query, in3.key, in3.value, scaled_dot(), everything());
  const auto q3 = make<Scalar, 3, Order>(in3.query), k3 = make<Scalar, 3, Order>(in3.key);
  const auto v3 = make<Scalar, 3, Order>(in3.value);
  const auto pass3 = attention_forward(q3, k3, v3);
  EXPECT_TRUE(three.accepts(pass3.output));
  EXPECT_TRUE(three.accepts_log_sum_exp(pass3.log_sum_exp));
  EXPECT_TRUE(three.accepts_weights(attention_with_weights(q3, k3, v3).weights));

  const Inputs in4(
      {.batch = 2, .heads = 4, .key_heads = 2, .queries = 31, .keys = 45, .dim = 9, .width = 7});
  const Expected<Scalar> four(in4.query, in4.key, in4.value, scaled_dot(), everything());
  const auto q4 = make<Scalar, 4, Order>(in4.query), k4 = make<Scalar, 4, Order>(in4.key);
  const auto v4 = make<Scalar, 4, Order>(in4.value);
  const auto pass4 = attention_forward(q4, k4, v4);
  EXPECT_TRUE(four.accepts(pass4.output));
  EXPECT_TRUE(four.accepts_log_sum_exp(pass4.log_sum_exp));
  EXPECT_TRUE(four.accepts_weights(attention_with_weights(q4, k4, v4).weights));
}

TEST(Results, OfEveryRankAndStorageOrder) {
  expect_ranks<float, Eigen::RowMajor>();
  expect_ranks<float, Eigen::ColMajor>();
  expect_ranks<double, Eigen::RowMajor>();
  expect_ranks<double, Eigen::ColMajor>();
}

TEST(Views, OfAnyStride) {
  for (const Sizes& sizes : sweep()) {
    const Inputs in(sizes);
    const Expected<float> expected(in.query, in.key, in.value, scaled_dot(), everything());
    for (std::size_t n = 0; n < directions.size(); ++n) {
      Scattered<float> q(in.query, directions[n]), k(in.key, directions[(n + 1) % 4]);
      Scattered<float> v(in.value, directions[(n + 2) % 4]);
      EXPECT_TRUE(expected.accepts(attention(q.view(), k.view(), v.view())))
          << text(sizes) << ", directions " << n;
    }
  }
}

// Results of few keys take a way of their own to rows of whole vectors: every width of panel, on
// either side of where that ends, along rows and along columns, and not a number beside them.
TEST(Views, OfResultsInTheMidstOfOthers) {
  const auto some = [](Index, Index, Index i, Index j) { return j == 0 || (i + j) % 3 != 0; };
  for (const Index queries : {1, 7, 9, 16, 17, 24, 33}) {
    for (const Index keys : {1, 15, 48, 49, 96, 97}) {
      for (const Index width : {8, 24, 32, 40}) {
        const Inputs in({.queries = queries, .keys = keys, .dim = 9, .width = width});
        const auto q = make<float, 4>(in.query), k = make<float, 4>(in.key),
                   v = make<float, 4>(in.value);
        const auto expect_written = [&](const auto& mask, const auto& allowed) {
          const Expected<float> expected(in.query, in.key, in.value, scaled_dot(), allowed);
          for (const bool along_rows : {true, false}) {
            Matrix<float> around = Matrix<float>::Constant(queries + 2, width + 3, 77);
            const Index stride = along_rows ? width + 3 : queries + 2;
            const View<float, 4> out{around.data() + stride + 1,
                                     {1, 1, queries, width},
                                     {0, 0, along_rows ? stride : 1, along_rows ? 1 : stride}};
            attention_into(out, q, k, v, scaled_dot_product(), mask);
            EXPECT_TRUE(expected.accepts(out)) << queries << " " << keys << " " << width;
            EXPECT_EQ((around.array() == 77).count(), around.size() - queries * width);
          }
        };
        expect_written(no_mask(), everything());
        expect_written(mask_if(some), some);
      }
    }
  }
}

// A key and a value shared by every batch entry, head and position through strides of 0.
TEST(Views, OfRepeatedAxes) {
  const Inputs in(
      {.batch = 2, .heads = 3, .key_heads = 3, .queries = 26, .keys = 50, .dim = 8, .width = 4});
  const auto key = make<float, 2>(rows(random({1, 1, 50, 8}, 5), 0, 50));
  const View<const float, 4> repeated{key.data(), {2, 3, 50, 8}, {0, 0, 8, 1}};
  Inputs shared = in;
  shared.key = reference(repeated);
  const Expected<float> expected(shared.query, shared.key, shared.value, scaled_dot(),
                                 everything());
  EXPECT_TRUE(
      expected.accepts(attention(make<float, 4>(in.query), repeated, make<float, 4>(in.value))));
}

TEST(Views, OfSplitHeads) {
  const Reference packed_q = random({2, 1, 33, 24}, 1), packed_k = random({2, 1, 41, 12}, 2);
  const Reference packed_v = random({2, 1, 41, 10}, 3);
  const auto split = [](const Reference& x, Index heads) {
    const Index dim = x.dimension(3) / heads;
    return generate({x.dimension(0), heads, x.dimension(2), dim},
                    [&](Index b, Index h, Index i, Index d) { return x(b, 0, i, h * dim + d); });
  };
  const Expected<float> expected(split(packed_q, 4), split(packed_k, 2), split(packed_v, 2),
                                 scaled_dot(), everything());
  const auto q = make<float, 3>(packed_q), k = make<float, 3>(packed_k),
             v = make<float, 3>(packed_v);
  EXPECT_TRUE(expected.accepts(attention(split_heads(q, 4), split_heads(k, 2), split_heads(v, 2))));
  const auto qc = make<float, 3, Eigen::ColMajor>(packed_q),
             vc = make<float, 3, Eigen::ColMajor>(packed_v);
  EXPECT_TRUE(
      expected.accepts(attention(split_heads(qc, 4), split_heads(k, 2), split_heads(vc, 2))));
}

TEST(Views, OfMapsBlocksTransposesAndArrays) {
  const Inputs in({.queries = 27, .keys = 30, .dim = 6, .width = 6});
  const Expected<double> expected(in.query, in.key, in.value, scaled_dot(), everything());
  Matrix<double> around(40, 20);
  around.setConstant(nan);
  around.block(3, 5, 27, 6) = make<double, 2>(in.query);
  const Matrix<double> turned = make<double, 2>(in.key).transpose();
  const Eigen::ArrayXXd values = make<double, 2, Eigen::ColMajor>(in.value).array();
  const Eigen::Map<const Eigen::ArrayXXd> map(values.data(), 30, 6);
  EXPECT_TRUE(expected.accepts(attention(around.block(3, 5, 27, 6), turned.transpose(), values)));
  EXPECT_TRUE(expected.accepts(attention(around.block(3, 5, 27, 6), transposed(turned), map)));
}

TEST(GroupedHeads, EachGroupReadsItsOwnKeyHead) {
  for (const Index heads : {1, 2, 3, 6}) {
    for (const Index queries : {1, 5, 26}) {
      const Inputs in({.batch = 2,
                       .heads = 6,
                       .key_heads = heads,
                       .queries = queries,
                       .keys = 70,
                       .dim = 8,
                       .width = 5});
      expect_score<float>(in, scaled_dot_product(), scaled_dot());
    }
  }
}

// ---------------------------------------------------------------- numbers narrow, wide and exotic

template <class Scalar>
void expect_narrow() {
  for (const Sizes& sizes : sweep()) {
    expect_score<Scalar>(Inputs(sizes, 2), scaled_dot_product(), scaled_dot());
  }
}

TEST(Numbers, HalfAccumulatesInFloat) { expect_narrow<Eigen::half>(); }
TEST(Numbers, Bfloat16AccumulatesInFloat) { expect_narrow<Eigen::bfloat16>(); }

TEST(Numbers, HalfWithAScoreAModifierAndAMask) {
  const Sizes sizes{
      .batch = 2, .heads = 2, .key_heads = 1, .queries = 49, .keys = 200, .dim = 9, .width = 7};
  expect_score<Eigen::half>(
      Inputs(sizes), gaussian(.5) | softcap(2), causal(),
      [](const auto& p) { return 2 * std::tanh(squared_distance(p) / -16); },
      [](Index, Index, Index i, Index j) { return j <= i + 151; }, 2);
}

// 3,000 equal weights: in half the sum would stop growing at 2048 and the mean would be off by a
// third.
TEST(Numbers, LongSumsOfHalfAreNotHeldInHalf) {
  const Index n = 3000;
  Matrix<Eigen::half> query(1, 1), keys(n, 1), values(n, 1);
  query.setZero();
  keys.setZero();
  values.setConstant(Eigen::half(1));
  EXPECT_EQ(number(attention(query, keys, values)(0, 0)), 1);
}

TEST(Numbers, MayDifferWhereTheAccumulatorIsTheSame) {
  const Inputs in =
      Inputs({.queries = 30, .keys = 60, .dim = 9, .width = 7}).rounded_to<Eigen::half>();
  const Expected<float> expected(in.query, in.key, in.value, scaled_dot(), everything());
  const auto output =
      attention(make<float, 2>(in.query), make<Eigen::half, 2>(in.key), make<float, 2>(in.value));
  static_assert(std::is_same_v<decltype(output), const Matrix<float>>);
  EXPECT_TRUE(expected.accepts(output));
}

TEST(Numbers, LongDoubleKeepsItsPrecision) {
  const Inputs in(
      {.batch = 1, .heads = 2, .key_heads = 1, .queries = 6, .keys = 9, .dim = 5, .width = 3});
  const auto output = attention(make<long double, 4>(in.query), make<long double, 4>(in.key),
                                make<long double, 4>(in.value), dot_product(), causal());
  static_assert(std::is_same_v<decltype(output), const Tensor<long double, 4>>);
  const auto exact = attend<long double>(
      in.query, in.key, in.value, dot(), [](Index, Index, Index i, Index j) { return j <= i + 3; },
      [](auto...) { return 1.0; });
  for (Index n = 0; n < output.size(); ++n) {
    EXPECT_TRUE(std::abs(output.data()[n] - exact.output.data()[n]) <=
                16 * std::numeric_limits<long double>::epsilon());
  }
}

// q + s dq + t dk-shift: derivatives by s and t that automatic differentiation carries through
// attention, against central differences of the double computation.
TEST(Numbers, AutomaticDifferentiationRunsThrough) {
  using Dual = Eigen::AutoDiffScalar<Eigen::Vector2d>;
  const Inputs in({.queries = 5, .keys = 7, .dim = 3, .width = 2});
  const Reference dq = random({1, 1, 5, 3}, 11), dk = random({1, 1, 7, 3}, 12);
  const auto at = [&](double s, double t) {
    Reference q = in.query, k = in.key;
    for (Index n = 0; n < q.size(); ++n) q.data()[n] += s * dq.data()[n];
    for (Index n = 0; n < k.size(); ++n) k.data()[n] += t * dk.data()[n];
    return attend<double>(
               q, k, in.value, scaled_dot(),
               [](Index, Index, Index i, Index j) { return j <= i + 2; },
               [](auto...) { return 1.0; })
        .output;
  };
  Matrix<Dual> q(5, 3), k(7, 3), v(7, 2);
  for_each_index({1, 1, 7, 3}, [&](Index, Index, Index i, Index d) {
    if (i < 5) q(i, d) = Dual(in.query(0, 0, i, d), Eigen::Vector2d(dq(0, 0, i, d), 0));
    k(i, d) = Dual(in.key(0, 0, i, d), Eigen::Vector2d(0, dk(0, 0, i, d)));
    if (d < 2) v(i, d) = Dual(in.value(0, 0, i, d), Eigen::Vector2d(0, 0));
  });
  const auto output = attention(q, k, v, scaled_dot_product(), causal());
  const double step = 1e-5;
  const auto here = at(0, 0), up_s = at(step, 0), down_s = at(-step, 0), up_t = at(0, step),
             down_t = at(0, -step);
  for (Index i = 0; i < 5; ++i) {
    for (Index c = 0; c < 2; ++c) {
      EXPECT_NEAR(output(i, c).value(), here(0, 0, i, c), 1e-14);
      EXPECT_NEAR(output(i, c).derivatives()(0),
                  (up_s(0, 0, i, c) - down_s(0, 0, i, c)) / (2 * step), 1e-9);
      EXPECT_NEAR(output(i, c).derivatives()(1),
                  (up_t(0, 0, i, c) - down_t(0, 0, i, c)) / (2 * step), 1e-9);
    }
  }
}

// Parameters of scores and modifiers carry derivatives too: of a width and of a weight, against
// central differences of the double computation.
TEST(Numbers, AutomaticDifferentiationRunsThroughParameters) {
  using Dual = Eigen::AutoDiffScalar<Eigen::Vector2d>;
  const Inputs in({.queries = 4, .keys = 6, .dim = 2, .width = 1});
  const auto lift = [](const Reference& x) {
    Matrix<Dual> result(x.dimension(2), x.dimension(3));
    for_each_index(x.dimensions(), [&](Index, Index, Index i, Index d) {
      result(i, d) = Dual(x(0, 0, i, d), Eigen::Vector2d(0, 0));
    });
    return result;
  };
  const auto q = lift(in.query), k = lift(in.key), v = lift(in.value);
  Vector<Dual> weight(2);
  weight << Dual(.7, Eigen::Vector2d(1, 0)), Dual(-.4, Eigen::Vector2d(0, 1));
  const auto additive_output = attention(q, k, v, additive(weight) | softcap(3));
  const auto gaussian_output =
      attention(q, k, v, gaussian(Dual(1.2, Eigen::Vector2d(1, 0))), causal());

  const auto additive_at = [&](double w0, double w1) {
    const std::array<double, 2> w = {w0, w1};
    return attend<double>(
               in.query, in.key, in.value,
               [&](const auto& p) {
                 double sum = 0;
                 for (std::size_t d = 0; d < 2; ++d) sum += w[d] * std::tanh(p.query[d] + p.key[d]);
                 return 3 * std::tanh(sum / 3);
               },
               everything(), [](auto...) { return 1.0; })
        .output;
  };
  const auto gaussian_at = [&](double width) {
    return attend<double>(
               in.query, in.key, in.value,
               [=](const auto& p) { return -width * width / 2 * squared_distance(p); },
               [](Index, Index, Index i, Index j) { return j <= i + 2; },
               [](auto...) { return 1.0; })
        .output;
  };
  const double step = 1e-5;
  const auto slope = [&](const Reference& up, const Reference& down, Index i) {
    return (up(0, 0, i, 0) - down(0, 0, i, 0)) / (2 * step);
  };
  for (Index i = 0; i < 4; ++i) {
    EXPECT_NEAR(additive_output(i, 0).value(), additive_at(.7, -.4)(0, 0, i, 0), 1e-14);
    EXPECT_NEAR(additive_output(i, 0).derivatives()(0),
                slope(additive_at(.7 + step, -.4), additive_at(.7 - step, -.4), i), 1e-9);
    EXPECT_NEAR(additive_output(i, 0).derivatives()(1),
                slope(additive_at(.7, -.4 + step), additive_at(.7, -.4 - step), i), 1e-9);
    EXPECT_NEAR(gaussian_output(i, 0).value(), gaussian_at(1.2)(0, 0, i, 0), 1e-14);
    EXPECT_NEAR(gaussian_output(i, 0).derivatives()(0),
                slope(gaussian_at(1.2 + step), gaussian_at(1.2 - step), i), 1e-9);
  }
}

// ---------------------------------------------------------------- identities

TEST(Identities, WeightsSumToOneAndGiveTheOutput) {
  for (const Sizes& sizes : sweep()) {
    const Inputs in(sizes, 4);
    const auto [output, weights] = attention_with_weights(
        make<double, 4>(in.query), make<double, 4>(in.key), make<double, 4>(in.value));
    const Reference w = reference(weights), o = reference(output);
    const Index group = sizes.heads / sizes.key_heads;
    for_each_index({sizes.batch, sizes.heads, sizes.queries, 1},
                   [&](Index b, Index h, Index i, Index) {
                     double sum = 0, first = 0;
                     for (Index j = 0; j < sizes.keys; ++j) {
                       sum += w(b, h, i, j);
                       first += w(b, h, i, j) * in.value(b, h / group, j, 0);
                     }
                     EXPECT_NEAR(sum, 1, 1e-14);
                     EXPECT_NEAR(o(b, h, i, 0), first, 1e-14);
                   });
  }
}

TEST(Identities, TheOrderOfKeysDoesNotMatter) {
  for (const Sizes& sizes : sweep()) {
    const Inputs in(sizes);
    std::vector<Index> order(static_cast<std::size_t>(sizes.keys));
    for (std::size_t n = 0; n < order.size(); ++n) order[n] = static_cast<Index>(n);
    std::shuffle(order.begin(), order.end(), std::mt19937(5));
    const Expected<float> expected(in.query, in.key, in.value, scaled_dot(), everything());
    EXPECT_TRUE(expected.accepts(attention(make<float, 4>(in.query),
                                           make<float, 4>(permuted_keys(in.key, order)),
                                           make<float, 4>(permuted_keys(in.value, order)))));
  }
}

// softmax(s + c) = softmax(s): a feature that every key shares changes nothing but the log-sum-exp.
TEST(Identities, AConstantAddedToScoresMovesTheLogSumExpAlone) {
  const Inputs in({.queries = 30, .keys = 60, .dim = 4, .width = 3});
  const auto q = make<double, 2>(in.query), k = make<double, 2>(in.key),
             v = make<double, 2>(in.value);
  const auto plain = attention_forward(q, k, v, dot_product());
  const auto moved = attention_forward(
      q, k, v,
      dot_product() | score_mod([](auto s, Index, Index, Index, Index) { return s + 40; }));
  EXPECT_TRUE(near(reference(moved.output), reference(plain.output), 1e-13));
  EXPECT_TRUE(near(reference_rows(moved.log_sum_exp),
                   Reference(reference_rows(plain.log_sum_exp) + 40.0), 1e-13));
}

}  // namespace
}  // namespace heed::test
