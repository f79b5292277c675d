#include "backward_support.hpp"
#include "score_support.hpp"

namespace heed::test {
namespace {

/// Distances up to `far` either way have a bucket each; what is farther shares the outermost.
auto clipped(Index far) {
  return [far](Index distance) { return std::clamp(distance, -far, far) + far; };
}

/// What is added by the definition, on top of a formula.
template <class Formula, class Table, class Bucket>
auto with_relative(const Formula& formula, const Table& table, const Bucket& bucket) {
  return [=, &table](const auto& p) {
    using Real = RealOf<decltype(p)>;
    return formula(p) + static_cast<Real>(number(table(p.h, bucket(p.j - p.i))));
  };
}

// Two heads, two queries, three keys, scores 0: distances j - i of 0, 1, 2 and -1, 0, 1 clipped to
// -1 .. 1 are buckets 1, 2, 2 and 0, 1, 2.
TEST(RelativeBias, ByHand) {
  Matrix<double> table(2, 3);
  table << 1, 2, 3, 10, 20, 30;
  const auto q = make<double, 4>(constant({1, 2, 2, 1}, 0)),
             k = make<double, 4>(constant({1, 2, 3, 1}, 0));
  Reference expected(Shape{1, 2, 2, 3});
  expected.setValues({{{{2, 3, 3}, {1, 2, 3}}, {{20, 30, 30}, {10, 20, 30}}}});
  EXPECT_TRUE(
      same(reference(attention_scores(q, k, dot_product() | relative_bias(table, clipped(1)))),
           expected));
  // The first query of head 0: e^2, e^3, e^3 over their sum.
  const auto weights = reference(
      attention_with_weights(q, k, k, dot_product() | relative_bias(table, clipped(1))).weights);
  const double sum = std::exp(2.) + 2 * std::exp(3.);
  EXPECT_NEAR(weights(0, 0, 0, 0), std::exp(2.) / sum, 1e-15);
  EXPECT_NEAR(weights(0, 0, 0, 2), std::exp(3.) / sum, 1e-15);
}

template <class Scalar>
void over_sizes() {
  const Matrix<Scalar> table = make<Scalar, 2>(random({1, 1, 2, 41}, 9, 2));
  for (const Sizes& sizes : sweep()) {
    expect_score<Scalar>(Inputs(sizes), scaled_dot_product() | relative_bias(table, clipped(20)),
                         with_relative(scaled_dot(), table, clipped(20)), 4);
  }
}
TEST(RelativeBias, OfFloat) { over_sizes<float>(); }
TEST(RelativeBias, OfDouble) { over_sizes<double>(); }
TEST(RelativeBias, OfHalf) { over_sizes<Eigen::half>(); }

// One and two queries have a loop of their own.
TEST(RelativeBias, OfFewQueries) {
  const auto bucket = t5_buckets(16, 50, true);
  const Matrix<float> table = make<float, 2>(random({1, 1, 4, 16}, 9, 2));
  for (const Index queries : {1, 2, 3}) {
    for (const Index keys : {1, 17, 300}) {
      expect_score<float>(Inputs({.batch = 2,
                                  .heads = 4,
                                  .key_heads = 2,
                                  .queries = queries,
                                  .keys = keys,
                                  .dim = 9,
                                  .width = 11}),
                          scaled_dot_product() | relative_bias(table, bucket),
                          with_relative(scaled_dot(), table, bucket), 4);
    }
  }
}

TEST(RelativeBias, InAChainUnderAMask) {
  const auto bucket = t5_buckets(8, 30, false);
  const Inputs in(
      {.batch = 2, .heads = 4, .key_heads = 2, .queries = 70, .keys = 230, .dim = 8, .width = 5});
  const Matrix<float> table = make<float, 2>(random({1, 1, 4, 8}, 9, 2));
  expect_score<float>(
      in, gaussian(.5) | softcap(2) | relative_bias(table, bucket) | softcap(3), causal(),
      [&](const auto& p) {
        using Real = RealOf<decltype(p)>;
        const Real s = 2 * std::tanh(-squared_distance(p) / 16);
        return 3 * std::tanh((s + static_cast<Real>(table(p.h, bucket(p.j - p.i)))) / 3);
      },
      [](Index, Index, Index i, Index j) { return j <= i + 160; }, 6);
}

// The table may be of any storage order, a tensor, a view with strides, or a temporary; and of
// another number type than the inputs.
TEST(RelativeBias, TakesEveryTable) {
  const Reference values = random({1, 1, 2, 5}, 9, 2);
  const auto q = make<float, 4>(random({1, 2, 6, 4}, 1)),
             k = make<float, 4>(random({1, 2, 8, 4}, 2));
  const Matrix<float> table = make<float, 2>(values);
  const auto expected =
      reference(attention(q, k, k, scaled_dot_product() | relative_bias(table, clipped(2))));
  const auto expect_same = [&](const auto& modifier) {
    EXPECT_TRUE(same(reference(attention(q, k, k, scaled_dot_product() | modifier)), expected));
  };
  const Eigen::MatrixXf columns = table;
  const Eigen::MatrixXd wide = table.cast<double>();
  Tensor<float, 2> tensor(2, 5);
  for (Index h = 0; h < 2; ++h) {
    for (Index n = 0; n < 5; ++n) tensor(h, n) = table(h, n);
  }
  expect_same(relative_bias(columns, clipped(2)));
  expect_same(relative_bias(wide, clipped(2)));
  expect_same(relative_bias(tensor, clipped(2)));
  expect_same(relative_bias(View<const float, 2>{columns.data(), {2, 5}, {1, 2}}, clipped(2)));
  expect_same(relative_bias(Matrix<float>(table), clipped(2)));
  expect_same(relative_bias(
      table, [](auto d) { return static_cast<int>(std::clamp<Index>(d, -2, 2)) + 2; }));
}

TEST(RelativeBias, WhatAMaskHidesDoesNotMatter) {
  Matrix<float> table = make<float, 2>(random({1, 1, 1, 101}, 9));
  const auto q = make<float, 2>(random({1, 1, 40, 8}, 1)),
             k = make<float, 2>(random({1, 1, 40, 8}, 2));
  const auto run = [&] {
    return reference(
        attention(q, k, k, scaled_dot_product() | relative_bias(table, clipped(50)), causal()));
  };
  const auto expected = run();
  table.rightCols(50).setConstant(std::numeric_limits<float>::quiet_NaN());  // distances above 0
  EXPECT_TRUE(same(run(), expected));
}

// ---------------------------------------------------------------- gradients

TEST(RelativeBias, GradientsAreCentralDifferences) {
  Matrix<double> table = make<double, 2>(random({1, 1, 4, 7}, 8)), dtable = table;
  const auto parameters = trainable(table, dtable);
  check(scaled_dot_product() | relative_bias(table, clipped(3), dtable), no_mask(), {parameters});
  check(scaled_dot_product() | softcap(2) | relative_bias(table, clipped(3), dtable) | softcap(1.5),
        causal(), {parameters});
  check(gaussian(.7) | relative_bias(table, t5_buckets(6, 4, true), dtable), causal({0, 2}),
        {parameters});
  // One query.
  expect_central_differences(
      Inputs(
          {.batch = 2, .heads = 4, .key_heads = 2, .queries = 1, .keys = 6, .dim = 3, .width = 2}),
      [&] { return scaled_dot_product() | relative_bias(table, clipped(3), dtable); }, no_mask(),
      {parameters});
}

// Over several panels and tiles: with every bucket a distance of its own the gradient of the table
// is that of the bias it spreads to, summed along diagonals; so for buckets that are shared.
template <class Scalar>
void expect_diagonal_sums(double bound) {
  const Index queries = 130, keys = 210, heads = 2, far = 60;
  const Inputs in(
      {.batch = 2, .heads = heads, .queries = queries, .keys = keys, .dim = 8, .width = 6});
  const auto grad = grad_output_for(in);
  Matrix<Scalar> table = make<Scalar, 2>(random({1, 1, heads, 2 * far + 1}, 8)),
                 dtable = Matrix<Scalar>::Constant(heads, 2 * far + 1, Scalar(3));
  Tensor<Scalar, 4> spread(1, heads, queries, keys), dspread(1, heads, queries, keys);
  for_each_index({1, heads, queries, keys}, [&](Index, Index h, Index i, Index j) {
    spread(0, h, i, j) = table(h, clipped(far)(j - i));
  });
  dspread.setZero();
  const auto expected =
      gradients_of<Scalar>(in, grad, scaled_dot_product() | bias(spread, dspread), causal());
  const auto actual = gradients_of<Scalar>(
      in, grad, scaled_dot_product() | relative_bias(table, clipped(far), dtable), causal());
  expect_near(actual, expected, bound);
  Reference sums = constant({1, 1, heads, 2 * far + 1}, 3);
  for_each_index({1, heads, queries, keys}, [&](Index, Index h, Index i, Index j) {
    sums(0, 0, h, clipped(far)(j - i)) += static_cast<double>(dspread(0, h, i, j));
  });
  EXPECT_TRUE(near_relative(reference(dtable), sums, 4 * bound));
}
TEST(RelativeBias, GradientsOverTilesAreSumsAlongDiagonals) {
  expect_diagonal_sums<float>(gradient_bound<float>());
  expect_diagonal_sums<double>(gradient_bound<double>());
}

/// A score that runs on numbers alone, so that the reference engines take it.
struct PlainDot : ScorePolicy {
  template <class Number>
  struct Bound {
    template <class T>
    T step(const T& sum, const T& q, const T& k, Index) const {
      return sum + q * k;
    }
    template <class T>
    T finish(const T& sum) const {
      return sum;
    }
  };
  template <class Number>
  auto bind(const Problem&) const {
    return Bound<Number>{};
  }
};

TEST(RelativeBias, GradientsOfTheReferenceEngine) {
  Matrix<double> table = make<double, 2>(random({1, 1, 4, 7}, 8)), dtable = table;
  check(PlainDot() | relative_bias(table, clipped(3), dtable), causal(),
        {trainable(table, dtable)});
}

TEST(RelativeBias, GradientsAreTheSameForAnyNumberOfThreads) {
  Eigen::ThreadPool pool(3);
  const Inputs in({.batch = 2, .heads = 4, .key_heads = 2, .queries = 150, .keys = 150, .dim = 8});
  const Matrix<float> table = make<float, 2>(random({1, 1, 4, 9}, 8));
  const auto run = [&](const AttentionOptions& options) {
    Matrix<float> dtable = Matrix<float>::Zero(4, 9);
    gradients_of<float>(in, grad_output_for(in),
                        scaled_dot_product() | relative_bias(table, clipped(4), dtable), causal(),
                        options);
    return reference(dtable);
  };
  EXPECT_TRUE(same(run({.pool = &pool}), run({})));
}

// ---------------------------------------------------------------- errors

TEST(RelativeBias, RefusesWhatDoesNotFit) {
  const auto q = make<float, 4>(random({1, 2, 3, 4}, 1)),
             k = make<float, 4>(random({1, 2, 5, 4}, 2));
  const auto refused = [&](const auto& modifier, std::initializer_list<std::string> parts) {
    EXPECT_TRUE(refuses([&] { attention(q, k, k, dot_product() | modifier); }, parts));
    EXPECT_TRUE(refuses([&] { attention_with_weights(q, k, k, dot_product() | modifier); }, parts));
  };
  const Matrix<float> table = Matrix<float>::Ones(2, 7), three = Matrix<float>::Ones(3, 7);
  refused(relative_bias(three, clipped(3)),
          {"heed::attention", "relative_bias", "3 rows", "2 query heads"});
  // Distances are -2 .. 4, of which each is tried: bucket 7 is that of 4, bucket -1 that of -2.
  refused(relative_bias(table, [](Index d) { return d + 3; }),
          {"distance 4", "bucket 7", "7 buckets"});
  refused(relative_bias(table, [](Index d) { return d + 1; }), {"distance -2", "bucket -1"});
  EXPECT_NO_THROW(
      attention(q, k, k, dot_product() | relative_bias(table, [](Index d) { return d + 2; })));
  // No pair, no distance.
  EXPECT_NO_THROW(attention(q, Tensor<float, 4>(1, 2, 0, 4), Tensor<float, 4>(1, 2, 0, 4),
                            dot_product() | relative_bias(table, [](Index) { return -1; })));
  Matrix<float> wrong = Matrix<float>::Zero(2, 6), shared = table;
  const auto backward = [&](const Matrix<float>& t, Matrix<float>& dt) {
    const auto score = dot_product() | relative_bias(t, clipped(3), dt);
    const auto pass = attention_forward(q, k, k, score);
    attention_backward(q, k, k, pass, pass.output, score);
  };
  EXPECT_TRUE(
      refuses([&] { backward(table, wrong); },
              {"heed::attention_backward", "the table of relative_bias", "(2, 6)", "(2, 7)"}));
  EXPECT_TRUE(refuses([&] { backward(shared, shared); }, {"shares elements", "relative_bias"}));
}

// ---------------------------------------------------------------- the buckets of T5

// 32 buckets up to a distance of 128, both ways: 16 a side, 8 of them exact. Bucket 8 + n begins at
// 8 * 16^(n / 8): 8, 11.3, 16, 22.6, 32, 45.3, 64, 90.5.
TEST(T5Buckets, BothWays) {
  const auto bucket = t5_buckets(32, 128, true);
  const std::array<Index, 17> first = {0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91, 300};
  for (std::size_t n = 0; n < 16; ++n) {
    for (Index apart = first[n]; apart < first[n + 1]; ++apart) {
      EXPECT_EQ(bucket(-apart), static_cast<Index>(n)) << apart;
      EXPECT_EQ(bucket(apart), static_cast<Index>(n) + (apart > 0 ? 16 : 0)) << apart;
    }
  }
  EXPECT_EQ(bucket(std::numeric_limits<Index>::max()), 31);
  EXPECT_EQ(bucket(std::numeric_limits<Index>::min()), 15);
}

// Backwards only: 16 exact ones, then 16 + n from 16 * 8^(n / 16) on: 16, 18.2, 20.7, 23.6, 26.9,
// 30.6, 34.9, 39.7, 45.3, 51.5, 58.7, 66.8, 76.1, 86.7, 98.7, 112.4.
TEST(T5Buckets, Backwards) {
  const auto bucket = t5_buckets(32, 128, false);
  const std::array<Index, 17> first = {16, 19, 21, 24, 27, 31, 35,  40, 46,
                                       52, 59, 67, 77, 87, 99, 113, 300};
  for (Index apart = 0; apart < 16; ++apart) EXPECT_EQ(bucket(-apart), apart);
  for (std::size_t n = 0; n < 16; ++n) {
    for (Index apart = first[n]; apart < first[n + 1]; ++apart) {
      EXPECT_EQ(bucket(-apart), 16 + static_cast<Index>(n)) << apart;
    }
  }
  for (const Index ahead : {Index(1), Index(500), std::numeric_limits<Index>::max()}) {
    EXPECT_EQ(bucket(ahead), 0);
  }
}

// Where the formula gives a whole number, 4^n * 4 with a bucket for each n, rounding must not leave
// the distance in the bucket before.
TEST(T5Buckets, PowersBeginABucket) {
  for (const Index base : {2, 3, 5, 7, 10}) {
    Index most = 4;
    for (int n = 0; n < 4; ++n) most *= base;
    const auto bucket = t5_buckets(8, most, false);
    Index power = 4;
    for (Index n = 0; n < 4; ++n, power *= base) {
      EXPECT_EQ(bucket(-power), 4 + n) << base;
      EXPECT_EQ(bucket(1 - power), 3 + n) << base;
    }
    EXPECT_EQ(bucket(-most), 7);
  }
}

TEST(T5Buckets, SmallestAndOddCounts) {
  const auto two = t5_buckets(2, 2, false);
  EXPECT_EQ(two(0), 0);
  EXPECT_EQ(two(-1), 1);
  EXPECT_EQ(two(-9), 1);
  // Of five, two a side; the fifth is not used.
  const auto five = t5_buckets(5, 2, true);
  EXPECT_EQ(five(-9), 1);
  EXPECT_EQ(five(9), 3);
}

TEST(T5Buckets, RefuseWhatLeavesNoBuckets) {
  EXPECT_TRUE(refuses([] { t5_buckets(1, 128, false); }, {"heed::t5_buckets", "1"}));
  EXPECT_TRUE(refuses([] { t5_buckets(3, 128, true); }, {"heed::t5_buckets", "3"}));
  EXPECT_TRUE(refuses([] { t5_buckets(-4, 128, true); }, {"heed::t5_buckets", "-4"}));
  EXPECT_TRUE(refuses([] { t5_buckets(32, 8, true); }, {"heed::t5_buckets", "8"}));
}

}  // namespace
}  // namespace heed::test
