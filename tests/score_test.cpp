#include "heed/score.hpp"

#include "score_support.hpp"

namespace heed::test {
namespace {

// float and double for what computes differently in them, float for the rest.
template <class Scalar>
class Score : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Score, Scalars, );

TYPED_TEST(Score, DotProduct) {
  for (const Sizes& sizes : sweep()) {
    for (const double scale : {1., .25, -1.5, 0.}) {
      expect_score<TypeParam>(Inputs(sizes), dot_product(scale), dot(scale));
    }
  }
}

TEST(ScoreInFloat, ScaledDotProduct) {
  for (const Sizes& sizes : sweep()) {
    expect_score<float>(Inputs(sizes, 3), scaled_dot_product(), scaled_dot());
    expect_score<float>(Inputs(sizes), scaled_dot_product(-.75), dot(-.75));
  }
}

TYPED_TEST(Score, Additive) {
  for (const Sizes& sizes : sweep()) {
    const auto w = vector_of<TypeParam>(sizes.dim, 4);
    const auto formula = [&](const auto& p) {
      RealOf<decltype(p)> sum = 0;
      for (std::size_t d = 0; d < p.query.size(); ++d) {
        sum += static_cast<RealOf<decltype(p)>>(w(static_cast<Index>(d))) *
               std::tanh(p.query[d] + p.key[d]);
      }
      return sum;
    };
    expect_score<TypeParam>(Inputs(sizes), additive(w), formula,
                            static_cast<double>(w.cwiseAbs().sum()));
    // Saturated: tanh is 1 to every digit, and e^2q overflows float for q = 60.
    expect_score<TypeParam>(Inputs(sizes, 60), additive(w), formula,
                            static_cast<double>(w.cwiseAbs().sum()));
  }
}

TEST(ScoreInFloat, GaussianOfOneWidth) {
  for (const Sizes& sizes : sweep()) {
    for (const double width : {1., .5, 2.}) {
      expect_score<float>(Inputs(sizes), gaussian(width), [=](const auto& p) {
        return squared_distance(p) * static_cast<RealOf<decltype(p)>>(-width * width / 2);
      });
    }
  }
}

TEST(ScoreInFloat, GaussianOfAWidthForEachFeature) {
  for (const Sizes& sizes : sweep()) {
    const auto widths = vector_of<float>(sizes.dim, 5, 1.5);
    expect_score<float>(Inputs(sizes), gaussian(widths), [&](const auto& p) {
      RealOf<decltype(p)> sum = 0;
      for (std::size_t d = 0; d < p.query.size(); ++d) {
        const auto t = (p.query[d] - p.key[d]) *
                       static_cast<RealOf<decltype(p)>>(widths(static_cast<Index>(d)));
        sum -= t * t / 2;
      }
      return sum;
    });
  }
}

TEST(ScoreInFloat, Boxcar) {
  for (const Sizes& sizes : sweep()) {
    const double radius = .8 * std::sqrt(static_cast<double>(sizes.dim));
    expect_score<float>(Inputs(sizes), boxcar(radius), [=](const auto& p) {
      using Real = RealOf<decltype(p)>;
      return std::sqrt(squared_distance(p)) <= static_cast<Real>(radius)
                 ? Real(0)
                 : -std::numeric_limits<Real>::infinity();
    });
  }
}

TEST(ScoreInFloat, Triangular) {
  for (const Sizes& sizes : sweep()) {
    const double radius = .9 * std::sqrt(static_cast<double>(sizes.dim));
    expect_score<float>(Inputs(sizes), triangular(radius), [=](const auto& p) {
      using Real = RealOf<decltype(p)>;
      const Real rest = 1 - std::sqrt(squared_distance(p)) / static_cast<Real>(radius);
      return rest > 0 ? std::log(rest) : -std::numeric_limits<Real>::infinity();
    });
  }
}

TEST(ScoreInFloat, Bilinear) {
  for (Sizes sizes : sweep()) {
    sizes.key_dim = sizes.dim % 2 == 0 ? sizes.dim + 3 : (sizes.dim + 1) / 2;
    const auto m = make<float, 2>(random({1, 1, sizes.dim, sizes.key_dim}, 6, .5));
    expect_score<float>(Inputs(sizes), bilinear(m), bilinear_form(m));
  }
}

const auto manhattan = pairwise([](auto a, auto b) {
  using std::abs;
  return -abs(a - b);
});

TEST(ScoreInFloat, PairwiseOfALambda) {
  for (const Sizes& sizes : sweep()) {
    expect_score<float>(Inputs(sizes), manhattan, [](const auto& p) {
      RealOf<decltype(p)> sum = 0;
      for (std::size_t d = 0; d < p.query.size(); ++d) sum -= std::abs(p.query[d] - p.key[d]);
      return sum;
    });
  }
}

TYPED_TEST(Score, PairwiseWithNumbersAndFunctions) {
  const auto f = [](auto a, auto b) {
    using std::exp;
    using std::tanh;
    return 0.5 * tanh(a) * b - exp(-(a * a)) / 4 + 1;
  };
  for (const Sizes& sizes : sweep()) {
    expect_score<TypeParam>(
        Inputs(sizes), pairwise(f),
        [](const auto& p) {
          using Real = RealOf<decltype(p)>;
          Real sum = 0;
          for (std::size_t d = 0; d < p.query.size(); ++d) {
            const Real a = p.query[d], b = p.key[d];
            sum += std::tanh(a) * b / 2 - std::exp(-(a * a)) / 4 + 1;
          }
          return sum;
        },
        static_cast<double>(2 * sizes.dim));
  }
}

// Keys 0, 1, 2, values 0, 1, 4, query 1: e^-1/2 = .60653, and 1 / (1 + 2 .60653) = .45186.
TEST(Gaussian, ByHand) {
  Matrix<double> query(1, 1), keys(3, 1), values(3, 1);
  query << 1;
  keys << 0, 1, 2;
  values << 0, 1, 4;
  const auto [output, weights] = attention_with_weights(query, keys, values, gaussian());
  EXPECT_NEAR(weights(0, 0), .2740686191, 5e-11);
  EXPECT_NEAR(weights(0, 1), .4518627619, 5e-11);
  EXPECT_NEAR(weights(0, 2), .2740686191, 5e-11);
  EXPECT_NEAR(output(0, 0), .4518627619 + 4 * .2740686191, 5e-10);
  EXPECT_NEAR(attention(query, keys, values, gaussian())(0, 0), output(0, 0), 1e-15);
}

// w = (2, -1), q = (0, ln 2), keys (0, 0) and (ln 3, 0): tanh(ln 2) = 3/5, tanh(ln 3) = 4/5, so the
// scores are -3/5 and 8/5 - 3/5 = 1.
TEST(Additive, ByHand) {
  Vector<double> w(2);
  w << 2, -1;
  Matrix<double> query(1, 2), keys(2, 2), values(2, 1);
  query << 0, std::log(2);
  keys << 0, 0, std::log(3), 0;
  values << 0, 1;
  const double weight = std::exp(1) / (std::exp(1) + std::exp(-.6));
  EXPECT_NEAR(attention(query, keys, values, additive(w))(0, 0), weight, 1e-15);
}

// Query 0, keys 0, .5, -2: within the radius 1 are the first two; 1 - |q - k| is 1, .5 and nothing.
TEST(Kernels, ByHand) {
  Matrix<double> query(1, 1), keys(3, 1), values(3, 1);
  query << 0;
  keys << 0, .5, -2;
  values << 1, 4, 100;
  EXPECT_NEAR(attention(query, keys, values, boxcar())(0, 0), 2.5, 1e-15);
  EXPECT_NEAR(attention(query, keys, values, triangular())(0, 0), (1 + .5 * 4) / 1.5, 1e-15);
  EXPECT_NEAR(attention(query, keys, values, boxcar(3))(0, 0), 35, 1e-13);
  // 1 - 0, 1 - .5/4, 1 - 2/4
  EXPECT_NEAR(attention(query, keys, values, triangular(4))(0, 0),
              (1 + .875 * 4 + .5 * 100) / 2.375, 1e-13);
}

// Nothing within the radius: an empty row.
TEST(Kernels, NothingWithinTheRadius) {
  Matrix<float> query(2, 1), keys(2, 1), values(2, 1);
  query << 0, 9;
  keys << .5F, -.25F;
  values << 3, 5;
  const auto boxed = attention_forward(query, keys, values, boxcar(1));
  EXPECT_FLOAT_EQ(boxed.output(0, 0), 4);
  EXPECT_EQ(boxed.output(1, 0), 0);
  EXPECT_EQ(boxed.log_sum_exp(1), -infinity);
  const auto [output, weights] = attention_with_weights(query, keys, values, triangular(1));
  EXPECT_FLOAT_EQ(output(0, 0), (.5F * 3 + .75F * 5) / 1.25F);
  EXPECT_EQ(output(1, 0), 0);
  EXPECT_EQ(weights.row(1), Matrix<float>::Zero(1, 2));
}

TEST(Bilinear, OfTheIdentityIsTheDotProduct) {
  const Inputs in({.queries = 30, .keys = 50, .dim = 12, .width = 5});
  const Matrix<double> identity = Matrix<double>::Identity(12, 12);
  const auto q = make<double, 2>(in.query), k = make<double, 2>(in.key),
             v = make<double, 2>(in.value);
  EXPECT_TRUE(near(reference(attention(q, k, v, bilinear(identity))),
                   reference(attention(q, k, v, dot_product())), 1e-14));
}

// Equal queries and keys have distance 0: with a tiny width of the kernel each sees itself alone.
TEST(Gaussian, OfVanishingWidthIsTheNearestNeighbour) {
  const Inputs in({.queries = 40, .keys = 40, .dim = 3, .width = 2});
  const auto q = make<float, 2>(in.query), v = make<float, 2>(in.value);
  EXPECT_TRUE(near(reference(attention(q, q, v, gaussian(1e4))), in.value, 1e-6));
}

TEST(Scores, KeepTheirTemporaries) {
  const auto build = [] { return additive(Vector<double>(Vector<double>::Constant(4, .5))); };
  const auto score = build();
  const std::vector<Vector<double>> overwritten(100, Vector<double>(Vector<double>::Zero(4)));
  const Inputs in({.queries = 5, .keys = 6, .dim = 4, .width = 2});
  expect_score<double>(in, score, [](const auto& p) {
    RealOf<decltype(p)> sum = 0;
    for (std::size_t d = 0; d < p.query.size(); ++d) sum += std::tanh(p.query[d] + p.key[d]) / 2;
    return sum;
  });
}

TEST(Scores, RefuseParametersThatDoNotFit) {
  const auto q = make<float, 3>(random({2, 1, 5, 13}, 1)),
             k = make<float, 3>(random({2, 1, 7, 13}, 2));
  const auto wide = make<float, 3>(random({2, 1, 7, 17}, 2));
  const auto refused = [&](const auto& key, const auto& score,
                           std::initializer_list<std::string> parts) {
    EXPECT_TRUE(refuses([&] { attention(q, key, key, score); }, parts));
    EXPECT_TRUE(refuses([&] { attention_with_weights(q, key, key, score); }, parts));
    EXPECT_TRUE(refuses([&] { attention_forward(q, key, key, score); }, parts));
  };
  refused(wide, dot_product(), {"heed::", "13", "17"});
  refused(wide, scaled_dot_product(), {"heed::", "13", "17"});
  refused(wide, gaussian(), {"heed::", "13", "17"});
  refused(wide, manhattan, {"heed::", "13", "17"});
  // Named, as above: a score that holds its parameters is another type, and compiled once more.
  const auto eleven = vector_of<float>(11, 1);
  refused(k, additive(eleven), {"heed::", "11", "13"});
  refused(k, gaussian(eleven), {"heed::", "11", "13"});
  for (const Shape& shape : {Shape{1, 1, 13, 11}, Shape{1, 1, 11, 13}}) {
    const auto m = make<float, 2>(random(shape, 1));
    refused(k, bilinear(m), {"heed::", "11", "13"});
  }
}

}  // namespace
}  // namespace heed::test
