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

// What lies behind a length is read by no vector that starts before it.
TEST(MaskedSoftmax, ScoresOutsideOfARangeReachNothing) {
  for (const Index keys : awkward) {
    const Reference scores = random({2, 1, 5, keys}, 1, 3);
    const auto expect_clean = [&](const auto& mask, const auto& allowed) {
      const auto run = [&](double poison) {
        return reference(masked_softmax(
            make<float, 3>(generate({2, 1, 5, keys},
                                    [&](Index b, Index h, Index i, Index j) {
                                      return allowed(b, h, i, j) ? scores(b, h, i, j) : poison;
                                    })),
            mask));
      };
      const Reference clean = run(0);
      EXPECT_TRUE(near(clean, Reference(witness<double>(scores, allowed)), bound<float>(scores)));
      for (const double poison : {nan, infinity, 1e38}) EXPECT_TRUE(same(run(poison), clean));
    };
    expect_clean(valid_lens({keys / 2, keys - 1}), [&](Index b, Index, Index, Index j) {
      return j < (b == 0 ? keys / 2 : keys - 1);
    });
    expect_clean(sliding_window(3, 2, Align::top_left),
                 [](Index, Index, Index i, Index j) { return i - 3 <= j && j <= i + 2; });
    expect_clean(prefix(2) || sliding_window(0, 9, Align::top_left),
                 [](Index, Index, Index i, Index j) { return j < 2 || (i <= j && j <= i + 9); });
  }
}

TEST(Softmax, NaNStays) {
  for (const Index keys : {1, 3, 8, 21, 32, 70}) {
    for (Index at = 0; at < keys; ++at) {
      auto scores = make<float, 2>(random({1, 1, 2, keys}, 1));
      scores(1, at) = static_cast<float>(nan);
      const auto weights = softmax(scores);
      EXPECT_NEAR(weights.row(0).sum(), 1, 1e-6);
      EXPECT_TRUE(weights.row(1).array().isNaN().all()) << keys << " keys, NaN at " << at;
    }
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
  EXPECT_TRUE(
      refuses([&] { masked_softmax(scores, {3, 2, 1}); }, {"heed::masked_softmax", "3", "2"}));
  EXPECT_TRUE(refuses([&] { masked_softmax(scores, {3, -4}); }, {"heed::masked_softmax", "-4"}));
  EXPECT_TRUE(refuses([&] { masked_softmax(scores, {{3, 2}, {1, 1}}); },
                      {"heed::masked_softmax", "2", "13"}));
}

// Weights 1/4 and 3/4, gradients 1 and 2, whose mean is 7/4: 1/4 (1 - 7/4) and 3/4 (2 - 7/4).
TEST(SoftmaxBackward, ByHand) {
  Matrix<double> weights(1, 3), grad(1, 3), expected(1, 3);
  weights << .25, 0, .75;
  grad << 1, nan, 2;
  expected << -3 / 16., 0, 3 / 16.;
  const auto result = softmax_backward(weights, grad);
  static_assert(std::is_same_v<decltype(result), const Matrix<double>>);
  EXPECT_TRUE(same(reference(result), reference(expected)));
}

/// P (dP - sum P dP).
Reference backward_witness(const Reference& weights, const Reference& grad) {
  return generate(weights.dimensions(), [&](Index b, Index h, Index i, Index j) {
    double mean = 0;
    for (Index k = 0; k < weights.dimension(3); ++k) mean += weights(b, h, i, k) * grad(b, h, i, k);
    return weights(b, h, i, j) * (grad(b, h, i, j) - mean);
  });
}

template <class Scalar, int Rank, int Order>
void expect_backward(const Shape& shape) {
  SCOPED_TRACE(text(shape));
  const auto weights = softmax(make<Scalar, Rank, Order>(random(shape, 1, 3)));
  const auto grad = make<Scalar, Rank, Order>(random(shape, 2));
  const auto result = softmax_backward(weights, grad);
  static_assert(std::is_same_v<decltype(result), decltype(weights)>);
  const Reference p = reference(weights);
  // Weights sum to 1 and gradients are below 1.
  EXPECT_TRUE(near(reference(result), backward_witness(p, reference(grad)), 4 * epsilon<Scalar>()));
}

TEST(SoftmaxBackward, OfEveryLengthRankOrderAndNumber) {
  for (const Index keys : awkward) {
    expect_backward<float, 2, Eigen::RowMajor>({1, 1, 5, keys});
    expect_backward<float, 4, Eigen::ColMajor>({2, 3, 5, keys});
    expect_backward<double, 3, Eigen::RowMajor>({2, 1, 5, keys});
    expect_backward<double, 2, Eigen::ColMajor>({1, 1, 5, keys});
  }
  expect_backward<Eigen::half, 3, Eigen::RowMajor>({2, 1, 5, 49});
  expect_backward<Eigen::bfloat16, 4, Eigen::RowMajor>({2, 2, 5, 25});
}

TEST(SoftmaxBackward, OfViewsOfAnyStride) {
  const Reference weights = reference(softmax(make<float, 4>(random({2, 3, 5, 49}, 1, 3)))),
                  grad = random({2, 3, 5, 49}, 2);
  for (const auto& backwards : directions) {
    Scattered<float> p(weights, backwards), g(grad, backwards);
    EXPECT_TRUE(near(reference(softmax_backward(p.view(), g.view())),
                     backward_witness(weights, grad), 4 * epsilon<float>()));
  }
}

// Of the sum over entries of c P(s), by central differences, under a mask that leaves row 2 empty.
TEST(SoftmaxBackward, IsTheSlopeOfMaskedSoftmax) {
  const Reference c = random({1, 1, 6, 21}, 2);
  auto scores = make<double, 2>(random({1, 1, 6, 21}, 1, 3));
  const auto mask =
      mask_if([](Index, Index, Index i, Index j) { return i != 2 && (i + j) % 3 != 0; });
  const auto grad = softmax_backward(masked_softmax(scores, mask), make<double, 2>(c));
  const auto loss = [&] {
    return masked_softmax(scores, mask).cwiseProduct(make<double, 2>(c)).sum();
  };
  for (Index i = 0; i < 6; ++i) {
    for (Index j = 0; j < 21; ++j) {
      const double at = scores(i, j), step = 1e-5;
      scores(i, j) = at + step;
      const double above = loss();
      scores(i, j) = at - step;
      const double below = loss();
      scores(i, j) = at;
      EXPECT_NEAR(grad(i, j), (above - below) / (2 * step), 1e-9) << i << ", " << j;
    }
  }
}

TEST(SoftmaxBackward, GradientsOfHiddenWeightsReachNothing) {
  const auto allowed = [](Index, Index, Index i, Index j) { return (i + 2 * j) % 3 != 0; };
  const auto weights = masked_softmax(make<float, 3>(random({2, 1, 5, 49}, 1)), mask_if(allowed));
  const Reference grad = random({2, 1, 5, 49}, 2);
  const auto run = [&](double poison) {
    return reference(softmax_backward(
        weights, make<float, 3>(generate({2, 1, 5, 49}, [&](Index b, Index h, Index i, Index j) {
          return allowed(b, h, i, j) ? grad(b, h, i, j) : poison;
        }))));
  };
  const Reference clean = run(0);
  EXPECT_TRUE(near(clean, backward_witness(reference(weights), grad), 4 * epsilon<float>()));
  for (const double poison : {nan, infinity, -infinity}) EXPECT_TRUE(same(run(poison), clean));
}

TEST(SoftmaxBackward, OfNumbersWithoutLanes) {
  const Reference scores = random({2, 1, 5, 9}, 1, 3), grad = random({2, 1, 5, 9}, 2);
  const auto weights = softmax(make<long double, 3>(scores));
  const Reference p = witness<double>(scores, everything());
  EXPECT_TRUE(near(reference(weights), p, bound<double>(scores)));
  EXPECT_TRUE(near(reference(softmax_backward(weights, make<long double, 3>(grad))),
                   backward_witness(p, grad), bound<double>(scores)));
}

TEST(SoftmaxBackward, OfNothing) {
  EXPECT_EQ(softmax_backward(Matrix<float>(0, 5), Matrix<float>(0, 5)).rows(), 0);
  EXPECT_EQ(softmax_backward(Matrix<float>(5, 0), Matrix<float>(5, 0)).rows(), 5);
}

TEST(SoftmaxBackward, RefusesAnotherShape) {
  EXPECT_TRUE(
      refuses([] { softmax_backward(Tensor<float, 3>(2, 13, 5), Tensor<float, 3>(2, 17, 5)); },
              {"heed::softmax_backward", "axis 1", "(2, 13, 5)", "(2, 17, 5)"}));
}

}  // namespace
}  // namespace heed::test
