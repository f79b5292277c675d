#include "heed/softmax.hpp"

#include "heed/mask.hpp"
#include "support.hpp"

namespace heed::test {
namespace {

TEST(Softmax, ByHand) {
  Matrix<double> scores(2, 3);
  scores << 0, std::log(2), std::log(5), 7, 7, 7;
  const auto weights = softmax(scores);
  static_assert(std::is_same_v<decltype(weights), const Matrix<double>>);
  EXPECT_NEAR(weights(0, 0), 1 / 8., 1e-15);
  EXPECT_NEAR(weights(0, 1), 2 / 8., 1e-15);
  EXPECT_NEAR(weights(0, 2), 5 / 8., 1e-15);
  for (Index j = 0; j < 3; ++j) EXPECT_NEAR(weights(1, j), 1 / 3., 1e-15);
}

// Scores 1 and 0: e / (e + 1) = .73105857863, of the value 1.6, and the rest of .7.
TEST(MaskedSoftmax, ByHand) {
  Matrix<double> scores(1, 3);
  scores << 1, 0, 1;
  const auto weights = masked_softmax(scores, {2});
  EXPECT_NEAR(weights(0, 0), .73105857863, 1e-11);
  EXPECT_NEAR(weights(0, 1), .26894142137, 1e-11);
  EXPECT_EQ(weights(0, 2), 0);
  EXPECT_NEAR(weights(0, 0) * 1.6 + weights(0, 1) * .7 + weights(0, 2) * -.8, 1.35795272077, 1e-11);
}

template <class Real, class Allowed>
Values<Real> witness(const Reference& scores, const Allowed& allowed) {
  Values<Real> result(scores.dimensions());
  result.setZero();
  const Index keys = scores.dimension(3);
  for_each_index({scores.dimension(0), scores.dimension(1), scores.dimension(2), 1},
                 [&](Index b, Index h, Index i, Index) {
                   Real maximum = -std::numeric_limits<Real>::infinity(), sum = 0;
                   for (Index j = 0; j < keys; ++j) {
                     if (allowed(b, h, i, j))
                       maximum = std::max(maximum, static_cast<Real>(scores(b, h, i, j)));
                   }
                   for (Index j = 0; j < keys; ++j) {
                     if (!allowed(b, h, i, j)) continue;
                     result(b, h, i, j) = std::exp(static_cast<Real>(scores(b, h, i, j)) - maximum);
                     sum += result(b, h, i, j);
                   }
                   for (Index j = 0; j < keys && sum > 0; ++j) result(b, h, i, j) /= sum;
                 });
  return result;
}

/// Weights are at most 1, and their relative error is that of an exponential, a sum and a quotient.
template <class Scalar>
double bound(const Reference& scores) {
  double largest = 0;
  for (Index n = 0; n < scores.size(); ++n) largest = std::max(largest, std::abs(scores.data()[n]));
  using Real = std::conditional_t<std::is_same_v<Scalar, double>, double, float>;
  const double sum = 4 * (1 + largest) * epsilon<Real>();
  return sum + (std::is_same_v<Scalar, Real> ? 0 : epsilon<Scalar>() / 2);
}

template <class Scalar, int Rank, int Order>
void expect_softmax(const Shape& shape) {
  SCOPED_TRACE(text(shape));
  const Reference scores = rounded<Scalar>(random(shape, 1, 3));
  const auto x = make<Scalar, Rank, Order>(scores);
  const auto weights = softmax(x);
  EXPECT_TRUE(near(reference(weights), Reference(witness<double>(scores, everything())),
                   bound<Scalar>(scores)));
  if constexpr (Rank > 2) {
    static_assert(static_cast<int>(std::remove_cvref_t<decltype(weights)>::Layout) == Order);
  }
  const auto allowed = [&](Index, Index, Index i, Index j) { return j <= i + shape[3] - shape[2]; };
  EXPECT_TRUE(near(reference(masked_softmax(x, causal())),
                   Reference(witness<double>(scores, allowed)), bound<Scalar>(scores)));
}

TEST(Softmax, OfEveryLengthRankOrderAndNumber) {
  for (const Index keys : awkward) {
    for (const Index queries : {Index(1), Index(5), Index(26)}) {
      expect_softmax<float, 2, Eigen::RowMajor>({1, 1, queries, keys});
      expect_softmax<float, 4, Eigen::ColMajor>({2, 3, queries, keys});
      expect_softmax<double, 3, Eigen::RowMajor>({2, 1, queries, keys});
      expect_softmax<double, 2, Eigen::ColMajor>({1, 1, queries, keys});
    }
  }
  expect_softmax<Eigen::half, 3, Eigen::RowMajor>({2, 1, 5, 200});
  expect_softmax<Eigen::bfloat16, 4, Eigen::RowMajor>({2, 2, 5, 49});
}

TEST(Softmax, OfViewsOfAnyStride) {
  const Reference scores = random({2, 3, 26, 49}, 1, 3);
  for (const auto& backwards : directions) {
    Scattered<float> x(scores, backwards);
    EXPECT_TRUE(near(reference(softmax(x.view())), Reference(witness<double>(scores, everything())),
                     bound<float>(scores)));
  }
}

TEST(Softmax, OfScoresOfAnySize) {
  Matrix<float> scores(6, 3);
  scores << 1e30F, -1e30F, 0, -1e30F, -1e30F, -1e30F, 1e38F, 1e38F, -1e38F, 88.8F, 89, 88, -200,
      -201, -1000, -std::numeric_limits<float>::infinity(), 3, 3;
  const auto weights = reference(softmax(scores));
  EXPECT_TRUE(near(weights, Reference(witness<double>(reference(scores), everything())), 1e-6));
}

TEST(Softmax, RowsSumToOne) {
  const auto weights = softmax(make<double, 2>(random({1, 1, 50, 200}, 1, 30)));
  for (Index i = 0; i < 50; ++i) EXPECT_NEAR(weights.row(i).sum(), 1, 1e-14);
}

TEST(MaskedSoftmax, RowsWithoutAKeyAreZero) {
  const Reference scores = random({2, 1, 4, 30}, 1);
  EXPECT_TRUE(
      same(reference(masked_softmax(make<float, 3>(scores), {0, 0})), constant({2, 1, 4, 30}, 0)));
  Matrix<float> lowest(2, 3);
  lowest.setConstant(-std::numeric_limits<float>::infinity());
  EXPECT_TRUE(same(reference(softmax(lowest)), constant({1, 1, 2, 3}, 0)));
}

TEST(MaskedSoftmax, HiddenScoresReachNothing) {
  const Reference scores = random({2, 2, 26, 49}, 1, 3);
  const auto allowed = [](Index b, Index h, Index i, Index j) {
    return (b + h + i + 2 * j) % 3 != 0;
  };
  const auto fill = [&](double poison) {
    return make<float, 4>(generate({2, 2, 26, 49}, [&](Index b, Index h, Index i, Index j) {
      return allowed(b, h, i, j) ? scores(b, h, i, j) : poison;
    }));
  };
  const Reference clean = reference(masked_softmax(fill(0), mask_if(allowed)));
  EXPECT_TRUE(near(clean, Reference(witness<double>(scores, allowed)), bound<float>(scores)));
  for (const double poison : {nan, infinity, -infinity, 1e38}) {
    EXPECT_TRUE(same(reference(masked_softmax(fill(poison), mask_if(allowed))), clean)) << poison;
  }
}

TEST(Softmax, OfNothing) {
  EXPECT_EQ(softmax(Matrix<float>(0, 5)).rows(), 0);
  EXPECT_EQ(softmax(Matrix<float>(5, 0)).cols(), 0);
  EXPECT_EQ(softmax(Tensor<float, 3>(0, 2, 3)).size(), 0);
  EXPECT_EQ(masked_softmax(Tensor<float, 3>(2, 0, 3), {1, 1}).size(), 0);
}

TEST(MaskedSoftmax, RefusesWhatDoesNotFit) {
  const auto scores = make<float, 3>(random({2, 1, 13, 17}, 1));
  EXPECT_TRUE(refuses(
      [&] {
        masked_softmax(scores, {3, 2, 1});
      },
      {"heed::masked_softmax", "3", "2"}));
  EXPECT_TRUE(refuses([&] { masked_softmax(scores, {3, -4}); }, {"heed::masked_softmax", "-4"}));
  EXPECT_TRUE(refuses(
      [&] {
        masked_softmax(scores, {{3, 2}, {1, 1}});
      },
      {"heed::masked_softmax", "2", "13"}));
}

}  // namespace
}  // namespace heed::test
