#include "heed/norm.hpp"

#include <unsupported/Eigen/CXX11/ThreadPool>

#include "allocation_support.hpp"
#include "module_support.hpp"

namespace heed::test {
namespace {

// (1, 2, 6) has mean 3 and variance (4 + 1 + 9) / 3 = 14/3. With eps = 13/3 the divisor is 3, and
// the normalised row (-2/3, -1/3, 1); weight (3, 6, 2) and bias (10, 20, 30) make it (8, 18, 32).
TEST(LayerNorm, ByHand) {
  LayerNorm<double> norm(3, 13. / 3);
  norm.weight << 3, 6, 2;
  norm.bias << 10, 20, 30;
  Matrix<double> x(1, 3), y(1, 3);
  x << 1, 2, 6;
  y << 8, 18, 32;
  EXPECT_TRUE(near(reference(norm(x)), reference(y), 1e-14));
  norm.bias.resize(0);
  y << -2, -2, 2;
  EXPECT_TRUE(near(reference(norm(x)), reference(y), 1e-15));
}

// (2, 3, 6) has mean square 49/3; with eps = 32/3 the divisor is sqrt(27) = 3 sqrt(3).
TEST(RmsNorm, ByHand) {
  RmsNorm<double> norm(3, 32. / 3);
  norm.weight << 3, 6, -1;
  Matrix<double> x(1, 3), y(1, 3);
  x << 2, 3, 6;
  y << 6, 18, -6;
  EXPECT_TRUE(near(reference(norm(x)), reference(Matrix<double>(y / std::sqrt(27))), 1e-15));
}

/// The norm of every row, in double.
Reference normalised(const Reference& x, bool centred, const Reference& weight,
                     const Reference& bias, double eps) {
  const auto width = static_cast<double>(x.dimension(3));
  return generate(x.dimensions(), [&](Index b, Index h, Index i, Index c) {
    double mean = 0, square = 0;
    for (Index d = 0; centred && d < x.dimension(3); ++d) mean += x(b, h, i, d) / width;
    for (Index d = 0; d < x.dimension(3); ++d) {
      square += (x(b, h, i, d) - mean) * (x(b, h, i, d) - mean) / width;
    }
    return (x(b, h, i, c) - mean) / std::sqrt(square + eps) * weight(0, 0, c, 0) + bias(0, 0, c, 0);
  });
}

template <class Scalar, class Weight, int Rank, int Order>
void expect_norms(const Shape& shape) {
  SCOPED_TRACE(text(shape));
  const Reference x = rounded<Scalar>(random(shape, 1, 3)),
                  w = rounded<Weight>(random({1, 1, shape[3], 1}, 2)),
                  b = rounded<Weight>(random({1, 1, shape[3], 1}, 3));
  using Sums = detail::Accumulator<Scalar>;
  // Numbers of up to 4 in size after a division by up to sqrt(width), and a rounding at the end.
  const double bound = 16 * epsilon<Sums>() * std::sqrt(static_cast<double>(shape[3]) + 1) +
                       (std::is_same_v<Sums, Scalar> ? 0 : 4 * epsilon<Scalar>());
  const auto given = make<Scalar, Rank, Order>(x);
  LayerNorm<Weight> layer(shape[3]);
  layer.weight = make<Weight, 2>(w).col(0);
  layer.bias = make<Weight, 2>(b).col(0);
  const auto result = layer(given);
  static_assert(std::is_same_v<detail::ScalarOf<decltype(result)>, Scalar>);
  static_assert(detail::storage_order<decltype(result)>() == (Rank > 2 ? Order : Eigen::RowMajor));
  EXPECT_TRUE(near(reference(result), normalised(x, true, w, b, 1e-5), bound));
  RmsNorm<Weight> rms(shape[3]);
  rms.weight = layer.weight;
  EXPECT_TRUE(near(reference(rms(given)),
                   normalised(x, false, w, constant({1, 1, shape[3], 1}, 0), 1e-6), bound));
}

TEST(Norms, OfEveryRankOrderAndType) {
  for (const Index width : {1, 3, 16, 17, 64, 127, 200}) {
    expect_norms<float, float, 3, Eigen::RowMajor>({2, 1, 5, width});
    expect_norms<double, double, 2, Eigen::ColMajor>({1, 1, 3, width});
    expect_norms<float, Eigen::bfloat16, 4, Eigen::ColMajor>({2, 3, 2, width});
    expect_norms<Eigen::half, Eigen::half, 2, Eigen::RowMajor>({1, 1, 7, width});
  }
  Eigen::ThreadPool pool(2);
  const auto x = make<float, 3>(random({4, 1, 50, 100}, 1));
  LayerNorm<float> norm(100);
  EXPECT_TRUE(same(reference(norm(x, &pool)), reference(norm(x))));
}

TEST(Norms, OfAView) {
  const Reference x = random({2, 3, 9, 20}, 1);
  Scattered<float> from(x, {1, 3}), to(constant({2, 3, 9, 20}, 0));
  RmsNorm<float> norm(20);
  const auto out = to.view();
  const Index written = to.written();
  norm.into(out, from.view());
  EXPECT_EQ(to.written(), written);
  EXPECT_TRUE(near(reference(out), reference(norm(make<float, 4>(x))), 1e-6));
}

TEST(Norms, InPlace) {
  auto x = make<float, 3>(random({2, 1, 9, 20}, 1));
  LayerNorm<float> norm(20);
  const auto expected = norm(x);
  norm.into(x, x);
  EXPECT_TRUE(same(reference(x), reference(expected)));
  EXPECT_TRUE(refuses([&] { norm.into(norm.weight, Matrix<float>::Ones(20, 1).eval()); },
                      {"heed::LayerNorm", "20"}));
  Matrix<float> wide = Matrix<float>::Ones(3, 25);
  EXPECT_TRUE(refuses([&] { norm.into(wide.leftCols(20), wide.rightCols(20)); },
                      {"heed::LayerNorm", "shares", "x"}));
}

TEST(Norms, OfNothing) {
  EXPECT_EQ(LayerNorm<float>(7)(Matrix<float>(0, 7)).cols(), 7);
  EXPECT_EQ(RmsNorm<float>(7)(Tensor<float, 3>(2, 0, 7)).size(), 0);
  EXPECT_EQ(LayerNorm<float>(0)(Matrix<float>(3, 0)).rows(), 3);
  const LayerNorm<float> none(0);
  const Matrix<float> x(3, 0);
  EXPECT_EQ(none.backward(none.forward(x), x).input.rows(), 3);
  const RmsNorm<float> some(4);
  const Matrix<float> no_rows(0, 4);
  EXPECT_EQ(some.backward(some.forward(no_rows), no_rows).parameters.weight,
            Vector<float>::Zero(4));
}

TEST(Norms, RefuseWhatDoesNotFit) {
  LayerNorm<float> norm(13);
  const Matrix<float> x = Matrix<float>::Ones(5, 13);
  EXPECT_TRUE(refuses([&] { norm(Matrix<float>(5, 17)); }, {"heed::LayerNorm", "17", "13"}));
  Matrix<float> out = Matrix<float>::Zero(4, 13);
  EXPECT_TRUE(refuses([&] { norm.into(out, x); }, {"heed::LayerNorm", "(4, 13)", "(5, 13)"}));
  const auto pass = norm.forward(x);
  EXPECT_TRUE(refuses([&] { norm.backward(pass, out); }, {"heed::LayerNorm", "4", "5"}));
  norm.bias.setOnes(9);
  EXPECT_TRUE(refuses([&] { norm(x); }, {"heed::LayerNorm", "9", "13"}));
  norm.bias.resize(0);
  norm.eps = -1;
  EXPECT_TRUE(refuses([&] { norm(x); }, {"heed::LayerNorm", "eps", "-1"}));
  EXPECT_TRUE(refuses([&] { RmsNorm<float>(-1); }, {"heed::RmsNorm", "-1"}));
  EXPECT_TRUE(refuses([&] { RmsNorm<float>()(x); }, {"heed::RmsNorm", "13", "0"}));
  EXPECT_TRUE(refuses([&] { norm.backward_into(out, norm, x, x); }, {"heed::LayerNorm"}));
}

template <class Layer>
void expect_layer_slopes(Layer layer, const Shape& shape) {
  SCOPED_TRACE(text(shape));
  auto x = make<double, 3>(random(shape, 1, 2));
  layer.weight = make<double, 2>(random({1, 1, shape[3], 1}, 2)).col(0);
  const Reference weights = random(shape, 3);
  const auto grad = make<double, 3>(weights);
  const auto gradients = layer.backward(layer.forward(x), grad);
  static_assert(std::is_same_v<std::remove_cvref_t<decltype(gradients.parameters)>, Layer>);
  const auto loss = [&] { return weighted(layer(x), weights); };
  expect_slopes(x, gradients.input, loss, "input");
  int count = 0;
  for_each_parameter(layer, gradients.parameters, [&](auto& value, const auto& gradient) {
    expect_slopes(value, gradient, loss, "parameter " + std::to_string(count++));
  });
  EXPECT_EQ(count, (std::is_same_v<Layer, RmsNorm<double>> ? 1 : 2));
}

TEST(NormBackward, AgreesWithCentralDifferences) {
  for (const Index width : {2, 9, 19}) {
    expect_layer_slopes(LayerNorm<double>(width, 1e-2), {2, 1, 3, width});
    expect_layer_slopes(RmsNorm<double>(width, 1e-2), {2, 1, 3, width});
  }
}

// 100 rows are summed in runs of 32; the gradient of one row's weight is what a call on it gives.
TEST(NormBackward, SumsOverRowsWhoeverComputesThem) {
  const Shape shape{4, 1, 100, 50};
  const auto x = make<float, 3>(random(shape, 1)), grad = make<float, 3>(random(shape, 2));
  const LayerNorm<float> norm(50);
  const auto alone = norm.backward(norm.forward(x), grad);
  Eigen::ThreadPool pool(3);
  const auto shared = norm.backward(norm.forward(x, &pool), grad);
  EXPECT_EQ(alone.parameters.weight, shared.parameters.weight);
  EXPECT_EQ(alone.parameters.bias, shared.parameters.bias);
  EXPECT_TRUE(same(reference(alone.input), reference(shared.input)));
  Vector<double> sum = Vector<double>::Zero(50);
  const Matrix<float> rows = Eigen::Map<const Matrix<float>>(x.data(), 400, 50),
                      grads = Eigen::Map<const Matrix<float>>(grad.data(), 400, 50);
  for (Index r = 0; r < 400; ++r) {
    const Matrix<float> one = rows.row(r), by = grads.row(r);
    sum += norm.backward(norm.forward(one), by).parameters.weight.cast<double>();
  }
  EXPECT_LE((alone.parameters.weight.cast<double>() - sum).cwiseAbs().maxCoeff(), 1e-4);
}

TEST(NormBackward, OfHalfWeightsAndAColumnMajorInput) {
  const Shape shape{2, 1, 6, 20};
  const Reference x = random(shape, 1), g = random(shape, 2);
  LayerNorm<Eigen::bfloat16> narrow(20);
  narrow.weight = make<Eigen::bfloat16, 2>(random({1, 1, 20, 1}, 3)).col(0);
  LayerNorm<float> wide(20);
  wide.weight = narrow.weight.cast<float>();
  const auto given = make<float, 3, Eigen::ColMajor>(x), grad = make<float, 3, Eigen::ColMajor>(g);
  const auto result = narrow.backward(narrow.forward(given), grad);
  const auto same_given = make<float, 3>(x);
  const auto plain = wide.backward(wide.forward(same_given), make<float, 3>(g));
  EXPECT_TRUE(near(reference(result.input), reference(plain.input), 1e-6));
  EXPECT_EQ(result.parameters.weight, plain.parameters.weight.cast<Eigen::bfloat16>());
}

// What a mask hides is NaN and has a gradient of 0.
TEST(NormBackward, OfARowThatNothingDependsOn) {
  Matrix<float> x = Matrix<float>::Random(3, 20), grad = Matrix<float>::Random(3, 20);
  x.row(1).setConstant(static_cast<float>(nan));
  grad.row(1).setZero();
  const RmsNorm<float> norm(20);
  const auto result = norm.backward(norm.forward(x), grad);
  EXPECT_EQ(result.input.row(1).cwiseAbs().maxCoeff(), 0);
  EXPECT_TRUE(result.parameters.weight.allFinite());
}

TEST(AnyNorm, IsEither) {
  const auto x = make<float, 3>(random({2, 1, 5, 20}, 1)),
             grad = make<float, 3>(random({2, 1, 5, 20}, 2));
  const AnyNorm<float> layer(Norm::layer, 20), rms(Norm::rms, 20, 1e-3);
  EXPECT_EQ(layer.eps, 1e-5);
  EXPECT_EQ(AnyNorm<float>(Norm::rms, 20).eps, 1e-6);
  EXPECT_TRUE(same(reference(layer(x)), reference(LayerNorm<float>(20)(x))));
  const RmsNorm<float> plain(20, 1e-3);
  EXPECT_TRUE(same(reference(rms(x)), reference(plain(x))));
  const auto gradients = rms.backward(rms.forward(x), grad);
  EXPECT_EQ(gradients.parameters.weight, plain.backward(plain.forward(x), grad).parameters.weight);
  EXPECT_EQ(gradients.parameters.bias.size(), 0);
}

#ifdef HEED_TEST_COUNTS_ALLOCATIONS
TEST(Norms, ASecondCallAllocatesNothing) {
  const auto x = make<float, 3>(random({2, 1, 9, 20}, 1));
  const auto strided = make<float, 3, Eigen::ColMajor>(random({2, 1, 9, 20}, 1));
  Tensor<float, 3> out(2, 9, 20);
  const LayerNorm<float> norm(20);
  const RmsNorm<Eigen::bfloat16> narrow(20);
  const auto call = [&] {
    norm.into(out, x);
    norm.into(out, strided);
    narrow.into(out, strided);
  };
  call();
  EXPECT_EQ(allocations_of(call), 0);
}
#endif

}  // namespace
}  // namespace heed::test
