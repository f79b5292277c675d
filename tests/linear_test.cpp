#include "heed/linear.hpp"

#include <unsupported/Eigen/CXX11/ThreadPool>

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

// With W = (1 2 3; -1 0 1) and b = (10 20), and with V = (2 0 1), the rows (1 1 1) and (2 0 -1)
// give (6 + 10, 0 + 20), (-1 + 10, -3 + 20) and 3, 3.
TEST(LinearIntoEach, ByHand) {
  Linear<double> first, second;
  first.weight.resize(2, 3);
  first.weight << 1, 2, 3, -1, 0, 1;
  first.bias = Eigen::Vector2d(10, 20);
  second.weight.resize(1, 3);
  second.weight << 2, 0, 1;
  Matrix<double> x(2, 3), y(2, 2), z(2, 1), expected(2, 2);
  x << 1, 1, 1, 2, 0, -1;
  expected << 16, 20, 9, 17;
  using To = Linear<double>::Target<double, 2>;
  Linear<double>::into_each(std::array{To{first, view(y)}, To{second, view(z)}}, x);
  EXPECT_EQ(y, expected);
  EXPECT_EQ(z, Matrix<double>(Matrix<double>::Constant(2, 1, 3)));
}

/// Outputs of several widths, of one width and of none, with and without biases.
template <class Scalar>
std::array<Linear<Scalar>, 4> several(Index in, Index out) {
  std::array<Linear<Scalar>, 4> layers;
  const std::array<Index, 4> widths = {out, 0, 1, out / 2 + 3};
  for (std::size_t n = 0; n < 4; ++n) {
    const auto seed = static_cast<unsigned>(n);
    layers[n].weight = make<Scalar, 2>(random({1, 1, widths[n], in}, seed));
    if (n != 2) layers[n].bias = make<Scalar, 2>(random({1, 1, widths[n], 1}, 7 + seed)).col(0);
  }
  return layers;
}

template <class Scalar, std::size_t N, class X>
std::array<Tensor<float, 3>, N> each(const std::array<Linear<Scalar>, N>& layers, const X& x,
                                     Eigen::ThreadPoolInterface* pool) {
  using To = typename Linear<Scalar>::template Target<float, 3>;
  std::array<Tensor<float, 3>, N> y;
  const auto target = [&](std::size_t n) {
    y[n].resize(x.dimension(0), x.dimension(1), layers[n].out_features());
    y[n].setConstant(static_cast<float>(nan));
    return To{layers[n], view(y[n])};
  };
  Linear<Scalar>::into_each(std::array{target(0), target(1), target(2), target(3)}, x, pool);
  return y;
}

template <class Scalar>
void expect_each(const Shape& shape, Index out) {
  const auto layers = several<Scalar>(shape[3], out);
  const auto x = make<float, 3>(random(shape, 5));
  std::array<Tensor<float, 3>, 4> alone;
  for (std::size_t n = 0; n < 4; ++n) alone[n] = layers[n](x);
  for (const int threads : {0, 1, 2, 3}) {
    SCOPED_TRACE(text(shape) + " to " + std::to_string(out) + " on " + std::to_string(threads));
    Eigen::ThreadPool pool(std::max(threads, 1));
    const auto y = each(layers, x, threads == 0 ? nullptr : &pool);
    for (std::size_t n = 0; n < 4; ++n) {
      EXPECT_TRUE(same(reference(y[n]), reference(alone[n]))) << "output " << n;
    }
  }
}

// Few rows, rows in lanes, packed weights, and products of which some go one way and some another.
TEST(LinearIntoEach, GivesTheBitsOfEachAlone) {
  for (const auto& [rows, in, out] : {std::array<Index, 3>{1, 40, 70},
                                      {5, 160, 131},
                                      {23, 37, 100},
                                      {70, 61, 260},
                                      {90, 20, 50},
                                      {300, 65, 90},
                                      {2, 0, 5},
                                      {0, 3, 5}}) {
    expect_each<float>({1, 1, rows, in}, out);
    expect_each<Eigen::bfloat16>({1, 1, rows, in}, out);
  }
  expect_each<float>({3, 1, 17, 45}, 70);
}

// The caches decide how much is packed at a time.
TEST(LinearIntoEach, InBlocksOfRowsForSmallCaches) {
  const auto layers = several<float>(100, 300);
  const auto x = make<float, 3>(random({1, 1, 95, 100}, 5));
  const auto expected = each(layers, x, nullptr);
  const auto l1 = Eigen::l1CacheSize(), l2 = Eigen::l2CacheSize(), l3 = Eigen::l3CacheSize();
  Eigen::setCpuCacheSizes(8 << 10, 40 << 10, 80 << 10);
  Eigen::ThreadPool pool(3);
  const auto alone = each(layers, x, nullptr), shared = each(layers, x, &pool);
  Eigen::setCpuCacheSizes(l1, l2, l3);
  for (std::size_t n = 0; n < 4; ++n) {
    EXPECT_TRUE(near(reference(alone[n]), reference(expected[n]), 1e-4));
    EXPECT_TRUE(same(reference(shared[n]), reference(alone[n])));
  }
}

TEST(LinearIntoEach, OfScatteredInputAndOutputs) {
  const auto layers = several<float>(9, 20);
  const Reference x = random({2, 3, 7, 9}, 1);
  for (const auto& backwards : directions) {
    Scattered<float> from(x, backwards), y(constant({2, 3, 7, 20}, nan), backwards);
    Tensor<float, 4> z(2, 3, 7, 13);
    using To = Linear<float>::Target<float, 4>;
    Linear<float>::into_each(std::array{To{layers[0], y.view()}, To{layers[3], view(z)}},
                             from.view());
    const auto input = make<float, 4>(x);
    EXPECT_TRUE(near(reference(y.view()), reference(layers[0](input)), 1e-5));
    EXPECT_TRUE(near(reference(z), reference(layers[3](input)), 1e-5));
  }
}

TEST(LinearIntoEach, RefusesBeforeAnythingIsWritten) {
  auto layers = several<float>(6, 6);
  Matrix<float> x = Matrix<float>::Ones(6, 6), y = Matrix<float>::Constant(6, 6, 8), wide(6, 7);
  using To = Linear<float>::Target<float, 2>;
  const auto refused = [&](const To& second, std::initializer_list<std::string> words) {
    EXPECT_TRUE(refuses(
        [&] { Linear<float>::into_each(std::array{To{layers[0], view(y)}, second}, x); }, words));
    EXPECT_TRUE((y.array() == 8).all());
  };
  refused({layers[3], view(x)}, {"heed::Linear", "shares elements with x"});
  refused({layers[0], view(y)}, {"heed::Linear", "shares elements with another output"});
  refused({layers[3], view(layers[0].weight)}, {"heed::Linear", "shares elements with the weight"});
  refused({layers[3], view(wide)}, {"heed::Linear", "(6, 7)", "(6, 6)"});
  layers[3].bias.resize(2);
  refused({layers[3], view(x)}, {"heed::Linear", "the bias has 2 entries for 6 outputs"});
  layers[3].weight.resize(6, 5);
  refused({layers[3], view(x)}, {"heed::Linear", "6 features", "5 inputs"});
}

// y = x W^T + b with W = (1 2; 3 4; 5 6), of rows (1, 10) and (2, 20); dy = (1 0 2) and (0 1 0).
// dx = dy W = (11 14) and (3 4); dW = dy^T x = (1 10; 2 20; 2 20); db = (1 1 2).
TEST(LinearBackward, ByHand) {
  Linear<double> layer;
  layer.weight.resize(3, 2);
  layer.weight << 1, 2, 3, 4, 5, 6;
  layer.bias.setZero(3);
  Matrix<double> x(2, 2), grad(2, 3), dx(2, 2), dw(3, 2);
  x << 1, 10, 2, 20;
  grad << 1, 0, 2, 0, 1, 0;
  dx << 11, 14, 3, 4;
  dw << 1, 10, 2, 20, 2, 20;
  const auto result = layer.backward(x, grad);
  EXPECT_TRUE(same(reference(result.input), reference(dx)));
  EXPECT_TRUE(same(reference(result.parameters.weight), reference(dw)));
  EXPECT_EQ(result.parameters.bias, Vector<double>(Eigen::Vector3d(1, 1, 2)));
  layer.bias.resize(0);
  EXPECT_EQ(layer.backward(x, grad).parameters.bias.size(), 0);
}

template <class Scalar, int Rank, int Order>
void expect_backward(const Shape& shape, Index out) {
  SCOPED_TRACE(text(shape) + " to " + std::to_string(out));
  const Reference x = random(shape, 1), w = random({1, 1, out, shape[3]}, 2),
                  g = random({shape[0], shape[1], shape[2], out}, 3);
  Linear<Scalar> layer{make<Scalar, 2>(w), Vector<Scalar>::Zero(out)};
  const auto result = layer.backward(make<Scalar, Rank, Order>(x), make<Scalar, Rank, Order>(g));
  if constexpr (Rank > 2) {
    static_assert(static_cast<int>(std::remove_cvref_t<decltype(result.input)>::Layout) == Order);
  }
  const double eps = static_cast<double>(std::numeric_limits<Scalar>::epsilon());
  const Reference dx = generate(shape, [&](Index b, Index h, Index i, Index d) {
    double sum = 0;
    for (Index o = 0; o < out; ++o) sum += g(b, h, i, o) * w(0, 0, o, d);
    return sum;
  });
  // Sums of products of numbers below 1, as long as the outputs and as the rows.
  EXPECT_TRUE(near(reference(result.input), dx, 4 * eps * static_cast<double>(out)));
  const Reference dw = generate({1, 1, out, shape[3]}, [&](Index, Index, Index o, Index d) {
    double sum = 0;
    for_each_index({shape[0], shape[1], shape[2], 1},
                   [&](Index b, Index h, Index i, Index) { sum += g(b, h, i, o) * x(b, h, i, d); });
    return sum;
  });
  const double rows = static_cast<double>(shape[0] * shape[1] * shape[2]);
  EXPECT_TRUE(near(reference(result.parameters.weight), dw, 4 * eps * rows));
  for (Index o = 0; o < out; ++o) {
    double sum = 0;
    for_each_index({shape[0], shape[1], shape[2], 1},
                   [&](Index b, Index h, Index i, Index) { sum += g(b, h, i, o); });
    EXPECT_NEAR(static_cast<double>(result.parameters.bias(o)), sum, 4 * eps * rows);
  }
}

TEST(LinearBackward, OfEveryRankAndOrder) {
  for (const Index n : {1, 3, 8, 25, 100}) {
    expect_backward<float, 2, Eigen::RowMajor>({1, 1, n, 9}, 7);
    expect_backward<double, 2, Eigen::ColMajor>({1, 1, n, 1}, 24);
    expect_backward<float, 3, Eigen::RowMajor>({3, 1, n, 48}, 25);
    expect_backward<float, 3, Eigen::ColMajor>({3, 1, n, 9}, 1);
    expect_backward<double, 4, Eigen::RowMajor>({2, 3, n, 8}, 5);
    expect_backward<double, 4, Eigen::ColMajor>({2, 3, n, 13}, 8);
  }
}

// Rows of heads side by side do not lie evenly, and neither do scattered ones.
TEST(LinearBackward, OfViews) {
  const Reference x = random({2, 3, 9, 5}, 1), g = random({2, 3, 9, 4}, 2);
  const Linear<float> layer{make<float, 2>(random({1, 1, 4, 5}, 3)), {}};
  const auto expected = layer.backward(make<float, 4>(x), make<float, 4>(g));
  for (const auto& backwards : directions) {
    Scattered<float> a(x, backwards), b(g, backwards), dx(constant({2, 3, 9, 5}, nan), backwards);
    Linear<float> parameters;
    layer.backward_into(dx.view(), parameters, a.view(), b.view());
    EXPECT_TRUE(near(reference(dx.view()), reference(expected.input), 1e-6));
    EXPECT_EQ(dx.written(), x.size());
    EXPECT_TRUE(near(reference(parameters.weight), reference(expected.parameters.weight), 1e-5));
  }
}

TEST(LinearBackward, ARowWithoutGradientReachesNoWeight) {
  const Reference g = generate({2, 1, 9, 4}, [&](Index b, Index, Index i, Index o) {
    return b == 1 && i % 2 == 1 ? 0.0 : .25 * static_cast<double>(b + i - o);
  });
  const Linear<float> layer{make<float, 2>(random({1, 1, 4, 5}, 3)), {}};
  const Reference x = random({2, 1, 9, 5}, 1);
  const auto run = [&](double poison) {
    const auto given = generate({2, 1, 9, 5}, [&](Index b, Index, Index i, Index d) {
      return b == 1 && i % 2 == 1 ? poison : x(b, 0, i, d);
    });
    return reference(layer.backward(make<float, 3>(given), make<float, 3>(g)).parameters.weight);
  };
  const Reference clean = run(0);
  for (const double poison : {nan, infinity}) EXPECT_TRUE(same(run(poison), clean)) << poison;
  // Any other row's NaN is a NaN of the weight.
  auto visible = make<float, 3>(x);
  visible(0, 2, 3) = static_cast<float>(nan);
  const auto spoilt = layer.backward(visible, make<float, 3>(g)).parameters.weight;
  EXPECT_TRUE(spoilt.col(3).array().isNaN().all());
  EXPECT_FALSE(spoilt.col(2).array().isNaN().any());
}

TEST(LinearBackward, AccumulatesNarrowNumbersInFloat) {
  // 4096 rows of .001 and one of 2048: half keeps no single .001 beside 2048.
  Matrix<Eigen::half> x(4096, 1), grad(4096, 1);
  x.setConstant(Eigen::half(.001F));
  x(0, 0) = Eigen::half(2048.F);
  grad.setConstant(Eigen::half(1.F));
  Linear<Eigen::half> layer{Matrix<Eigen::half>(1, 1), Vector<Eigen::half>(1)};
  layer.weight(0, 0) = Eigen::half(2.F);
  const auto result = layer.backward(x, grad);
  EXPECT_EQ(number(result.parameters.weight(0, 0)), 2052);
  EXPECT_EQ(number(result.parameters.bias(0)), 4096);
  EXPECT_EQ(number(result.input(7, 0)), 2);
}

TEST(LinearBackward, OfNumbersWithoutLanes) {
  const Reference x = random({2, 1, 5, 3}, 1), g = random({2, 1, 5, 4}, 2),
                  w = random({1, 1, 4, 3}, 3);
  const Linear<double> layer{make<double, 2>(w), Vector<double>::Zero(4)};
  const Linear<long double> wide{make<long double, 2>(w), Vector<long double>::Zero(4)};
  const auto expected = layer.backward(make<double, 3>(x), make<double, 3>(g));
  const auto result = wide.backward(make<long double, 3>(x), make<long double, 3>(g));
  EXPECT_TRUE(near(reference(result.input), reference(expected.input), 1e-14));
  EXPECT_TRUE(
      near(reference(result.parameters.weight), reference(expected.parameters.weight), 1e-14));
}

TEST(LinearBackward, ThreadsChangeNoBit) {
  const Linear<float> layer{make<float, 2>(random({1, 1, 150, 130}, 3)), Vector<float>::Zero(150)};
  const auto x = make<float, 3>(random({2, 1, 200, 130}, 1)),
             g = make<float, 3>(random({2, 1, 200, 150}, 2));
  const auto alone = layer.backward(x, g);
  for (const int threads : {1, 2, 3}) {
    Eigen::ThreadPool pool(threads);
    const auto shared = layer.backward(x, g, &pool);
    EXPECT_TRUE(same(reference(shared.input), reference(alone.input)));
    EXPECT_TRUE(same(reference(shared.parameters.weight), reference(alone.parameters.weight)));
    EXPECT_EQ(shared.parameters.bias, alone.parameters.bias);
  }
}

TEST(LinearBackward, OfNothing) {
  const Linear<float> layer{Matrix<float>::Ones(4, 3), Vector<float>::Ones(4)};
  const auto result = layer.backward(Tensor<float, 3>(2, 0, 3), Tensor<float, 3>(2, 0, 4));
  EXPECT_EQ(result.input.size(), 0);
  EXPECT_TRUE(same(reference(result.parameters.weight), constant({1, 1, 4, 3}, 0)));
  EXPECT_EQ(result.parameters.bias, Vector<float>(Vector<float>::Zero(4)));
}

TEST(LinearBackward, RefusesWhatDoesNotFit) {
  const Linear<float> layer{Matrix<float>::Ones(4, 13), {}};
  const Matrix<float> x = Matrix<float>::Ones(5, 13), grad = Matrix<float>::Ones(5, 4);
  EXPECT_TRUE(refuses([&] { layer.backward(Matrix<float>(5, 17), grad); },
                      {"heed::Linear::backward", "17", "13"}));
  EXPECT_TRUE(refuses([&] { layer.backward(x, Matrix<float>(5, 13)); },
                      {"heed::Linear::backward", "axis 1", "(5, 13)", "(5, 4)"}));
  Linear<float> parameters;
  EXPECT_TRUE(refuses([&] { layer.backward_into(Matrix<float>(4, 13), parameters, x, grad); },
                      {"heed::Linear::backward", "axis 0", "(4, 13)", "(5, 13)"}));
  Matrix<float> same_memory = x;
  EXPECT_TRUE(refuses([&] { layer.backward_into(same_memory, parameters, same_memory, grad); },
                      {"heed::Linear::backward", "shares elements with x"}));
  EXPECT_EQ(same_memory, x);
  EXPECT_EQ(parameters.weight.size(), 0) << "written before the check";
}

TEST(ForEachParameter, GoesThroughWeightAndBias) {
  Linear<double> layer{Matrix<double>::Constant(2, 3, 1), Vector<double>::Constant(2, 1)};
  const Linear<double> gradients{Matrix<double>::Constant(2, 3, 4), Vector<double>::Constant(2, 8)};
  for_each_parameter(layer, gradients,
                     [](auto& value, const auto& gradient) { value -= .25 * gradient; });
  EXPECT_EQ(layer.weight, Matrix<double>(Matrix<double>::Zero(2, 3)));
  EXPECT_EQ(layer.bias, Vector<double>(Vector<double>::Constant(2, -1)));
  std::vector<Index> sizes;
  for_each_parameter(std::as_const(layer), gradients, [&](const auto& value, const auto& gradient) {
    EXPECT_EQ(value.size(), gradient.size());
    sizes.push_back(value.size());
  });
  EXPECT_EQ(sizes, (std::vector<Index>{6, 2}));
  layer.bias.resize(0);
  EXPECT_TRUE(refuses([&] { for_each_parameter(layer, gradients, [](auto&, const auto&) {}); },
                      {"heed::for_each_parameter", "(2, 1)", "(0, 1)"}));
  int calls = 0;
  for_each_parameter(layer, Linear<double>{gradients.weight, {}},
                     [&](auto&, const auto&) { ++calls; });
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace heed::test
