#include "heed/linear.hpp"

#include "support.hpp"

namespace heed::test {
namespace {

TEST(Linear, ByHand) {
  Linear<double> layer;
  layer.weight.resize(2, 3);
  layer.weight << 1, 2, 3, -1, 0, 1;
  Matrix<double> x(2, 3), without(2, 2), with(2, 2);
  x << 1, 1, 1, 2, 0, -1;
  without << 6, 0, -1, -3;
  with << 16, 20, 9, 17;
  EXPECT_TRUE(same(reference(layer(x)), reference(without)));
  layer.bias = Eigen::Vector2d(10, 20);
  EXPECT_TRUE(same(reference(layer(x)), reference(with)));
}

template <class Scalar, int Rank, int Order>
void expect_linear(const Shape& shape, Index out, bool with_bias) {
  SCOPED_TRACE(text(shape) + " to " + std::to_string(out) + (with_bias ? " with bias" : ""));
  const Reference x = random(shape, 1), w = random({1, 1, out, shape[3]}, 2),
                  b = random({1, 1, out, 1}, 3);
  Linear<Scalar> layer;
  layer.weight = make<Scalar, 2>(w);
  if (with_bias) layer.bias = make<Scalar, 2>(b).col(0);
  double magnitude = 1;
  const Reference expected =
      generate({shape[0], shape[1], shape[2], out}, [&](Index n, Index h, Index i, Index o) {
        long double sum = with_bias ? b(0, 0, o, 0) : 0;
        double absolute = static_cast<double>(std::abs(sum));
        for (Index d = 0; d < shape[3]; ++d) {
          sum += static_cast<long double>(x(n, h, i, d)) * static_cast<long double>(w(0, 0, o, d));
          absolute += std::abs(x(n, h, i, d) * w(0, 0, o, d));
        }
        magnitude = std::max(magnitude, absolute);
        return static_cast<double>(sum);
      });
  const double bound = 2 * std::sqrt(static_cast<double>(shape[3] + 1)) *
                       static_cast<double>(std::numeric_limits<Scalar>::epsilon()) * magnitude;
  EXPECT_TRUE(near(reference(layer(make<Scalar, Rank, Order>(x))), expected, bound));
}

TEST(Linear, OverTheLastAxisOfEveryRankAndOrder) {
  for (const bool with_bias : {false, true}) {
    for (const Index n : {1, 3, 8, 25, 100}) {
      expect_linear<float, 2, Eigen::RowMajor>({1, 1, n, 9}, 7, with_bias);
      expect_linear<double, 2, Eigen::ColMajor>({1, 1, n, 1}, 24, with_bias);
      expect_linear<float, 3, Eigen::RowMajor>({3, 1, n, 48}, 25, with_bias);
      expect_linear<float, 3, Eigen::ColMajor>({3, 1, n, 9}, 1, with_bias);
      expect_linear<double, 4, Eigen::RowMajor>({2, 3, n, 8}, 5, with_bias);
      expect_linear<double, 4, Eigen::ColMajor>({2, 3, n, 13}, 8, with_bias);
    }
  }
}

TEST(Linear, OfAView) {
  const Reference x = random({2, 3, 9, 5}, 1);
  Linear<float> layer;
  layer.weight = make<float, 2>(random({1, 1, 4, 5}, 2));
  Scattered<float> scattered(x, {1, 3});
  EXPECT_TRUE(near(reference(layer(scattered.view())), reference(layer(make<float, 4>(x))), 1e-6));
  const auto packed = make<float, 3>(random({2, 1, 9, 10}, 1));
  const auto heads = split_heads(packed, 2);
  EXPECT_TRUE(
      near(reference(layer(heads)), reference(layer(make<float, 4>(reference(heads)))), 1e-6));
}

TEST(Linear, OfNothing) {
  Linear<float> layer;
  layer.weight.setOnes(4, 3);
  EXPECT_EQ(layer(Matrix<float>(0, 3)).cols(), 4);
  EXPECT_EQ(layer(Tensor<float, 3>(2, 0, 3)).size(), 0);
}

TEST(Linear, RefusesWhatDoesNotFit) {
  Linear<float> layer;
  layer.weight.setOnes(4, 13);
  EXPECT_TRUE(refuses([&] { layer(Matrix<float>(5, 17)); }, {"heed::", "17", "13"}));
  layer.bias.setOnes(9);
  EXPECT_TRUE(refuses([&] { layer(Matrix<float>(5, 13)); }, {"heed::", "9", "4"}));
}

}  // namespace
}  // namespace heed::test
