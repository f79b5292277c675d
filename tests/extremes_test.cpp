#include <functional>

#include "heed/heed.hpp"
#include "support.hpp"

/// What is visible and large, infinite or NaN, and parameters at the edge of a number type: the
/// fused engines and the definition agree, and what cannot be computed is refused.
namespace heed::test {
namespace {

constexpr float huge = 3e38F;

/// One predicate type, so that the engines are compiled once for each score.
using Predicate = std::function<bool(Index b, Index h, Index i, Index j)>;

/// The outputs of the fused engines, which choose between two loops by the number of queries, and
/// of the definition, NaN for NaN.
template <class Score>
void expect_agreement(const Matrix<float>& q, const Matrix<float>& k, const Matrix<float>& v,
                      const Score& score, float tolerance = 1e-5F) {
  const auto defined = attention_with_weights(q, k, v, score).output;
  const auto all = attention(q, k, v, score);
  for (Index i = 0; i < q.rows(); ++i) {
    const auto one = attention(Matrix<float>(q.row(i)), k, v, score);
    for (Index c = 0; c < v.cols(); ++c) {
      const float expected = defined(i, c);
      for (const float x : {all(i, c), one(0, c)}) {
        if (std::isnan(expected)) {
          EXPECT_TRUE(std::isnan(x)) << "query " << i << ": " << x << " and not NaN";
        } else {
          EXPECT_TRUE(x == expected || std::abs(x - expected) <= tolerance * std::abs(expected))
              << "query " << i << ": " << x << " and not " << expected;
        }
      }
    }
  }
}

/// 33 queries near 0 and 40 keys of 16 features, of which key 5 is `far`.
struct FarKey {
  Matrix<float> q = Matrix<float>::Constant(33, 16, .25F), k = Matrix<float>::Zero(40, 16);
  Matrix<float> v = Matrix<float>::Ones(40, 16);

  explicit FarKey(float far) {
    k.row(5).setConstant(far);
    v.row(5).setConstant(100);
    for (Index j = 0; j < 40; ++j) k(j, j % 16) += .01F * static_cast<float>(j);
  }
};

TEST(Extremes, AnInfinitelyFarKeyHasNoWeight) {
  // Squares of 1e25 are beyond float: 1e50 is infinite. Every other value is 1.
  for (const float far : {1e25F, 1e30F, huge, std::numeric_limits<float>::infinity()}) {
    const FarKey in(far);
    const auto check = [&](const auto& score) {
      expect_agreement(in.q, in.k, in.v, score);
      const auto output = attention(in.q, in.k, in.v, score);
      for (Index i = 0; i < output.rows(); ++i) EXPECT_NEAR(output(i, 3), 1, 1e-5) << far;
      // All that counts gives 1, so that no score matters; nor does the far key.
      const auto pass = attention_forward(in.q, in.k, in.v, score);
      const auto gradients = attention_backward(in.q, in.k, in.v, pass, pass.output, score);
      EXPECT_TRUE((gradients.key.array().abs() <= 1e-4F).all()) << far;
      EXPECT_TRUE((gradients.value.row(5).array() == 0).all()) << far;
    };
    check(triangular(2));
    check(boxcar(2));
    check(gaussian(.5));
    check(gaussian(1e-25));  // whose square is 0 in float: all the near keys are alike
  }
}

TEST(Extremes, AVisibleNanReachesEveryQuery) {
  FarKey in(0);
  in.k(7, 3) = std::numeric_limits<float>::quiet_NaN();
  const auto check = [&](const auto& score) {
    expect_agreement(in.q, in.k, in.v, score);
    const auto output = attention(in.q, in.k, in.v, score);
    for (Index i = 0; i < output.rows(); ++i) EXPECT_TRUE(std::isnan(output(i, 0)));
  };
  check(boxcar(1));
  check(triangular(1));
  check(gaussian(.5));
  check(scaled_dot_product());
  check(dot_product() | softcap(5));
}

TEST(Extremes, LogitsAndValuesNearTheLargestNumber) {
  Matrix<float> q = Matrix<float>::Zero(33, 16), k = Matrix<float>::Zero(40, 16);
  Matrix<float> v = Matrix<float>::Random(40, 16);
  q.col(0).setOnes();
  // In binary digits the score would be 3e38 * 1.44, which is no float.
  k(3, 0) = k(9, 0) = huge;
  expect_agreement(q, k, v, dot_product());
  const auto output = attention(q, k, v, dot_product());
  for (Index c = 0; c < 16; ++c) {
    // Two keys share the weight: (v_3 + v_9) / 2.
    EXPECT_NEAR(output(20, c), (v(3, c) + v(9, c)) / 2, 1e-6);
  }
  // 40 weights of 1 times 3e38, before they are divided by their sum.
  k.setZero();
  v.setConstant(huge);
  expect_agreement(q, k, v, dot_product());
  EXPECT_NEAR(attention(q, k, v, dot_product())(4, 4), huge, 1e-5F * huge);
}

TEST(Extremes, LogitsNearTheLowestNumber) {
  // In binary digits -2.5e38 is -3.6e38, which is no float. All scores are that, so that their
  // weights are 1/40; then key 7 has -2.4e38, and the whole weight.
  const Matrix<float> q = Matrix<float>::Identity(1, 16).replicate(33, 1);
  const Matrix<float> v = Matrix<float>::Random(40, 16);
  Matrix<float> k = Matrix<float>::Zero(40, 16);
  k.col(0).setConstant(-2.5e38F);
  expect_agreement(q, k, v, dot_product());
  EXPECT_NEAR(attention(q, k, v, dot_product())(20, 3), v.col(3).mean(), 1e-6);
  EXPECT_EQ(attention_forward(q, k, v, dot_product()).log_sum_exp(32), -2.5e38F);
  k(7, 0) = -2.4e38F;
  expect_agreement(q, k, v, dot_product());
  EXPECT_NEAR(attention(q, k, v, dot_product())(20, 3), v(7, 3), 1e-6);
  // Queries that a mask leaves no key have none: of 33 the first 25, as those after see keys from
  // 0 on.
  const auto some =
      attention(q, k, v, dot_product(),
                mask_if([](Index, Index, Index i, Index j) { return j < 40 * (i / 25); }));
  EXPECT_TRUE((some.topRows(25).array() == 0).all());
  EXPECT_NEAR(some(25, 3), v(7, 3), 1e-6);
}

TEST(Extremes, GradientsOfLogitsNearTheLargestNumber) {
  // All scores are 3e38, and so is the log of the sum of their powers, as log(40) is far below its
  // last digit: the weights that come from it are 1, and each value takes all of dO.
  const Matrix<float> q = Matrix<float>::Ones(33, 1), k = Matrix<float>::Constant(40, 1, huge);
  const Matrix<float> v = Matrix<float>::Random(40, 16), ones = Matrix<float>::Ones(33, 16);
  const auto pass = attention_forward(q, k, v, dot_product());
  EXPECT_EQ(pass.log_sum_exp(32), huge);
  const auto gradients = attention_backward(q, k, v, pass, ones, dot_product());
  EXPECT_TRUE((gradients.value.array() == 33).all());
  const Matrix<float> low = -k;
  const auto of_low = attention_forward(q, low, v, dot_product());
  EXPECT_TRUE(
      (attention_backward(q, low, v, of_low, ones, dot_product()).value.array() == 33).all());
}

TEST(Extremes, APanelKeepsTheBitsOfItsFiniteQueries) {
  Matrix<float> q = Matrix<float>::Random(33, 16), k = Matrix<float>::Random(40, 16);
  const Matrix<float> v = Matrix<float>::Random(40, 16);
  const auto before = attention(q, k, v);
  q(8, 0) = std::numeric_limits<float>::quiet_NaN();
  const auto after = attention(q, k, v);
  for (Index i = 0; i < 33; ++i) {
    if (i != 8) {
      EXPECT_EQ(before.row(i), after.row(i)) << i;
    }
  }
  EXPECT_TRUE(after.row(8).array().isNaN().all());
}

TEST(Extremes, WhatHasNoWeightKeepsNoneThroughModifiers) {
  // Of four keys on a line two are beyond the radius of the query at 0.
  Matrix<float> q(2, 1), k(4, 1), v(4, 1);
  q << 0, 0;
  k << .5F, 3, -.75F, -4;
  v << 1, 100, 2, 100;
  const auto check = [&](const auto& score) {
    const auto weighted = attention_with_weights(q, k, v, score);
    EXPECT_EQ(weighted.weights(0, 1), 0);
    EXPECT_EQ(weighted.weights(0, 3), 0);
    expect_agreement(q, k, v, score);
    const auto pass = attention_forward(q, k, v, score);
    const auto gradients = attention_backward(q, k, v, pass, pass.output, score);
    EXPECT_EQ(gradients.value(1, 0), 0);
    EXPECT_EQ(gradients.key(3, 0), 0);
    return weighted.output(0, 0);
  };
  // The two that count are alike: (1 + 2) / 2.
  EXPECT_NEAR(check(boxcar(1) | softcap(2)), 1.5, 1e-6);
  EXPECT_NEAR(check(boxcar(1) | score_mod([](auto s, auto, auto, auto, auto) {
                      using std::exp;
                      return exp(s);  // 0 of -infinity
                    })),
              1.5, 1e-6);
  EXPECT_NEAR(check(boxcar(1) | score_mod([](auto s, auto, auto, auto, auto) {
                      return s - s;  // NaN of -infinity
                    })),
              1.5, 1e-6);
  check(triangular(1) | softcap(2));
}

TEST(Extremes, AParameterThatTheNumbersCannotCarryIsRefused) {
  const Matrix<float> x = Matrix<float>::Ones(3, 2);
  const Matrix<double> y = Matrix<double>::Ones(3, 2);
  constexpr double inf = infinity;
  EXPECT_TRUE(refuses([&] { (void)softcap(inf); }, {"heed::softcap", "inf"}));
  EXPECT_TRUE(refuses([&] { (void)softcap(nan); }, {"heed::softcap"}));
  EXPECT_TRUE(refuses([&] { (void)softcap(-1e-9); }, {"heed::softcap", "-1e-09"}));
  EXPECT_TRUE(refuses([&] { (void)dot_product(nan); }, {"heed::dot_product"}));
  EXPECT_TRUE(refuses([&] { (void)scaled_dot_product(inf); }, {"heed::scaled_dot_product"}));
  EXPECT_TRUE(refuses([&] { (void)gaussian(nan); }, {"heed::gaussian"}));
  EXPECT_TRUE(refuses([&] { (void)boxcar(inf); }, {"heed::boxcar"}));
  EXPECT_TRUE(refuses([&] { (void)boxcar(-1); }, {"heed::boxcar", "-1"}));
  EXPECT_TRUE(refuses([&] { (void)triangular(nan); }, {"heed::triangular"}));

  const auto both = [&](const auto& score, const char* what) {
    EXPECT_TRUE(refuses([&] { attention(x, x, x, score); }, {"heed::attention", what}));
    EXPECT_TRUE(refuses([&] { attention_with_weights(x, x, x, score); }, {what}));
    EXPECT_NO_THROW(attention(y, y, y, score));
  };
  both(dot_product() | softcap(1e39), "cap");
  both(dot_product() | softcap(1e-40), "cap");
  both(dot_product(1e39), "scale");
  both(gaussian(1e30), "width");
  both(boxcar(1e30), "radius");
  both(triangular(1e39), "radius");
  both(triangular(1e-50), "radius");
  Vector<float> widths(2);
  widths << 1, std::numeric_limits<float>::infinity();
  EXPECT_TRUE(refuses([&] { attention(x, x, x, gaussian(widths)); }, {"width", "inf"}));
}

TEST(Extremes, NoQueriesGiveNothing) {
  // Rows of whole vectors, where one query has a loop of its own.
  Matrix<float> q(0, 16), k = Matrix<float>::Random(5, 16), v = Matrix<float>::Random(5, 16);
  EXPECT_EQ(attention(q, k, v).rows(), 0);
  const auto pass = attention_forward(q, k, v);
  EXPECT_EQ(pass.log_sum_exp.size(), 0);
  const auto gradients = attention_backward(q, k, v, pass, pass.output);
  EXPECT_EQ(gradients.query.rows(), 0);
  EXPECT_TRUE((gradients.key.array() == 0).all() && gradients.key.rows() == 5);
  EXPECT_TRUE((gradients.value.array() == 0).all() && gradients.value.rows() == 5);
  Matrix<float> out(0, 16);
  attention_into(out, q, k, v);
  EXPECT_EQ(attention_with_weights(q, k, v).weights.cols(), 5);

  const Tensor<float, 4> q4(2, 3, 0, 16), k4(2, 3, 5, 16), v4(2, 3, 5, 16);
  const auto out4 = attention(q4, k4, v4);
  EXPECT_EQ(out4.dimension(1), 3);
  EXPECT_EQ(out4.size(), 0);
}

}  // namespace
}  // namespace heed::test
