#include "heed/mlp.hpp"

#include <unsupported/Eigen/CXX11/ThreadPool>

#include "allocation_support.hpp"
#include "module_support.hpp"

namespace heed::test {
namespace {

// relu(up x + b) with up = (1 1; 1 -1), b = (0, 1), x = (2, 5): (7, -2) -> (7, 0); down = (1 10; 2
// 20), with a bias of (1, -1): (8, 13).
TEST(Mlp, ByHand) {
  Mlp<double> mlp({.dim = 2, .hidden_dim = 2, .activation = Activation::relu});
  mlp.up_projection.weight << 1, 1, 1, -1;
  mlp.up_projection.bias << 0, 1;
  mlp.down_projection.weight << 1, 10, 2, 20;
  mlp.down_projection.bias << 1, -1;
  Matrix<double> x(1, 2), y(1, 2);
  x << 2, 5;
  y << 8, 13;
  EXPECT_TRUE(same(reference(mlp(x)), reference(y)));
}

// gate x = (7, -3), up x = (2, 5): relu(gate x) up x = (14, 0); down = (1 10; 2 20): (14, 28).
TEST(Mlp, GatedByHand) {
  Mlp<double> mlp(
      {.dim = 2, .hidden_dim = 2, .activation = Activation::relu, .gated = true, .bias = false});
  EXPECT_EQ(mlp.up_projection.bias.size(), 0);
  mlp.gate_projection.weight << 1, 1, 1, -1;
  mlp.up_projection.weight.setIdentity();
  mlp.down_projection.weight << 1, 10, 2, 20;
  Matrix<double> x(1, 2), y(1, 2);
  x << 2, 5;
  y << 14, 28;
  EXPECT_TRUE(same(reference(mlp(x)), reference(y)));
}

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::relu:
      return std::max(x, 0.);
    case Activation::gelu:
      return x * std::erfc(-x / std::sqrt(2)) / 2;
    case Activation::gelu_tanh:
      return x * (1 + std::tanh(std::sqrt(2 / std::acos(-1)) * (x + 0.044715 * x * x * x))) / 2;
    case Activation::silu:
      return x / (1 + std::exp(-x));
  }
  return nan;
}

template <class Scalar>
Reference answer(const Mlp<Scalar>& mlp, const Reference& x) {
  Reference hidden = projected(mlp.up_projection, x);
  const Reference gate = mlp.config().gated ? projected(mlp.gate_projection, x) : hidden;
  for (Index n = 0; n < hidden.size(); ++n) {
    const double by = activated(mlp.config().activation, gate.data()[n]);
    hidden.data()[n] = mlp.config().gated ? by * hidden.data()[n] : by;
  }
  return projected(mlp.down_projection, hidden);
}

template <class Module>
void shift_biases(Module& module) {
  for_each_parameter(module, [](std::string_view name, auto& value) {
    if (name.ends_with("bias")) {
      for (Index i = 0; i < value.size(); ++i) {
        value.data()[i] = rounded<typename std::remove_cvref_t<decltype(value)>::Scalar>(
            .1 * static_cast<double>(i % 7) - .2);
      }
    }
  });
}

template <class Scalar, class Weight, int Rank, int Order>
void expect_mlp(const Shape& shape, const MlpConfig& config, double bound) {
  SCOPED_TRACE(text(shape) + " through " + std::to_string(config.hidden_dim));
  Mlp<Weight> mlp(config, 5);
  shift_biases(mlp);
  const Reference x = rounded<Scalar>(random(shape, 1, 2));
  const auto given = make<Scalar, Rank, Order>(x);
  const auto result = mlp(given);
  static_assert(std::is_same_v<detail::ScalarOf<decltype(result)>, Scalar>);
  EXPECT_TRUE(near(reference(result), answer(mlp, x), bound));
  EXPECT_TRUE(same(reference(mlp.forward(given).output), reference(result)));
}

TEST(Mlp, OfEveryRankOrderTypeAndActivation) {
  for (const auto activation :
       {Activation::relu, Activation::gelu, Activation::gelu_tanh, Activation::silu}) {
    for (const bool gated : {false, true}) {
      const auto config = [&](Index dim, Index hidden, bool bias) {
        return MlpConfig{dim, hidden, activation, gated, bias};
      };
      expect_mlp<float, float, 3, Eigen::RowMajor>({2, 1, 7, 9}, config(9, 31, true), 2e-5);
      expect_mlp<double, double, 2, Eigen::ColMajor>({1, 1, 5, 1}, config(1, 17, false), 1e-13);
      expect_mlp<double, double, 4, Eigen::ColMajor>({2, 3, 4, 6}, config(6, 3, true), 1e-13);
      expect_mlp<float, Eigen::bfloat16, 3, Eigen::RowMajor>({1, 1, 3, 20}, config(20, 40, true),
                                                             2e-5);
      // The hidden layer is of half as well.
      expect_mlp<Eigen::half, Eigen::half, 2, Eigen::RowMajor>({1, 1, 6, 8}, config(8, 16, true),
                                                               2e-2);
    }
  }
  // More rows than a block, with a part of one left; slabs that are apart.
  expect_mlp<float, float, 3, Eigen::RowMajor>({3, 1, 67, 16}, {.dim = 16, .hidden_dim = 24}, 2e-5);
  expect_mlp<float, float, 3, Eigen::ColMajor>({2, 1, 100, 16}, {.dim = 16, .hidden_dim = 24},
                                               2e-5);
}

TEST(Mlp, OfAView) {
  const Reference x = random({2, 3, 9, 20}, 1);
  Scattered<float> from(x, {1, 3}), to(constant({2, 3, 9, 20}, 0));
  const Mlp<float> mlp({.dim = 20, .gated = true}, 1);
  EXPECT_EQ(mlp.up_projection.weight.rows(), 80);
  const auto out = to.view();
  const Index written = to.written();
  mlp.into(out, from.view());
  EXPECT_EQ(to.written(), written);
  EXPECT_TRUE(near(reference(out), reference(mlp(make<float, 4>(x))), 1e-5));
}

TEST(Mlp, GivesTheSameForAnyNumberOfThreads) {
  Eigen::ThreadPool pool(3);
  for (const Index rows : {5, 96, 200, 700}) {
    const auto x = make<float, 3>(random({2, 1, rows, 32}, 1)),
               grad = make<float, 3>(random({2, 1, rows, 32}, 2));
    const Mlp<float> mlp(
        {.dim = 32, .hidden_dim = 80, .activation = Activation::silu, .gated = true}, 3);
    EXPECT_TRUE(same(reference(mlp(x, &pool)), reference(mlp(x)))) << rows;
    const auto alone = mlp.backward(mlp.forward(x), grad),
               shared = mlp.backward(mlp.forward(x, &pool), grad);
    EXPECT_TRUE(same(reference(alone.input), reference(shared.input))) << rows;
    EXPECT_EQ(alone.parameters.up_projection.weight, shared.parameters.up_projection.weight);
  }
}

TEST(Mlp, OfNothing) {
  const Mlp<float> mlp({.dim = 7, .hidden_dim = 9});
  EXPECT_EQ(mlp(Matrix<float>(0, 7)).cols(), 7);
  EXPECT_EQ(mlp(Tensor<float, 3>(2, 0, 7)).size(), 0);
  const Mlp<float> none({.dim = 0});
  EXPECT_EQ(none(Matrix<float>(3, 0)).rows(), 3);
  const Matrix<float> no_rows(0, 7);
  EXPECT_EQ(mlp.backward(mlp.forward(no_rows), no_rows).parameters.up_projection.weight,
            Matrix<float>::Zero(9, 7));
}

TEST(Mlp, RefusesWhatDoesNotFit) {
  Mlp<float> mlp({.dim = 13, .hidden_dim = 9, .gated = true});
  Matrix<float> x = Matrix<float>::Ones(5, 13), out = Matrix<float>::Zero(4, 13);
  EXPECT_TRUE(refuses([&] { mlp(Matrix<float>(5, 17)); }, {"heed::Mlp", "17", "13"}));
  EXPECT_TRUE(refuses([&] { mlp.into(out, x); }, {"heed::Mlp", "(4, 13)", "(5, 13)"}));
  EXPECT_TRUE(refuses([&] { mlp.into(x, x); }, {"heed::Mlp", "shares"}));
  const auto pass = mlp.forward(x);
  EXPECT_TRUE(refuses([&] { mlp.backward(pass, out); }, {"heed::Mlp", "4", "5"}));
  const Mlp<float> other({.dim = 13, .hidden_dim = 10, .gated = true}),
      plain({.dim = 13, .hidden_dim = 9});
  EXPECT_TRUE(refuses([&] { other.backward(pass, x); }, {"heed::Mlp", "9", "10"}));
  EXPECT_TRUE(refuses([&] { plain.backward(pass, x); }, {"heed::Mlp", "gate"}));
  mlp.gate_projection.weight.resize(8, 13);
  EXPECT_TRUE(refuses([&] { mlp(x); }, {"heed::Mlp", "gate_projection", "(8, 13)", "(9, 13)"}));
  mlp.gate_projection.weight.setZero(9, 13);
  mlp.down_projection.bias.resize(4);
  EXPECT_TRUE(refuses([&] { mlp(x); }, {"heed::Mlp", "down_projection", "4", "13"}));
  EXPECT_TRUE(refuses([&] { Mlp<float>({.dim = -3}); }, {"heed::Mlp", "-3"}));
  EXPECT_TRUE(refuses([&] { Mlp<float>({.dim = 3, .activation = static_cast<Activation>(7)}); },
                      {"heed::Mlp", "7"}));
  EXPECT_TRUE(refuses([&] { Mlp<float>()(x); }, {"heed::Mlp", "13", "0"}));
}

TEST(Mlp, StartsFromXavierAndNamesItsParameters) {
  const Mlp<float> mlp({.dim = 40, .hidden_dim = 60, .gated = true}, 7);
  expect_xavier(mlp.gate_projection.weight);
  expect_xavier(mlp.down_projection.weight);
  std::string names;
  for_each_parameter(mlp,
                     [&](std::string_view name, const auto&) { names += std::string(name) + " "; });
  EXPECT_EQ(names,
            "gate_projection.weight gate_projection.bias up_projection.weight up_projection.bias "
            "down_projection.weight down_projection.bias ");
  EXPECT_EQ(mlp.up_projection.weight,
            Mlp<float>({.dim = 40, .hidden_dim = 60, .gated = true}, 7).up_projection.weight);
}

TEST(MlpBackward, AgreesWithCentralDifferences) {
  for (const auto activation : {Activation::gelu, Activation::gelu_tanh, Activation::silu}) {
    for (const bool gated : {false, true}) {
      Mlp<double> mlp({.dim = 5, .hidden_dim = 7, .activation = activation, .gated = gated}, 2);
      shift_biases(mlp);
      auto x = make<double, 3>(random({2, 1, 3, 5}, 1, 2));
      const Reference weights = random({2, 1, 3, 5}, 3);
      const auto gradients = mlp.backward(mlp.forward(x), make<double, 3>(weights));
      static_assert(
          std::is_same_v<std::remove_cvref_t<decltype(gradients.parameters)>, Mlp<double>>);
      const auto loss = [&] { return weighted(mlp(x), weights); };
      expect_slopes(x, gradients.input, loss, "input");
      int count = 0;
      for_each_parameter(mlp, gradients.parameters, [&](auto& value, const auto& gradient) {
        expect_slopes(value, gradient, loss, "parameter " + std::to_string(count++));
      });
      EXPECT_EQ(count, gated ? 6 : 4);
    }
  }
}

// relu has a corner, which central differences must not straddle: here no sum comes near 0.
TEST(MlpBackward, ThroughRelu) {
  Mlp<double> mlp({.dim = 2, .hidden_dim = 2, .activation = Activation::relu});
  mlp.up_projection.weight << 1, 1, 1, -1;
  mlp.down_projection.weight << 1, 10, 2, 20;
  Matrix<double> x(1, 2), grad(1, 2), dx(1, 2);
  x << 2, 5;
  grad << 1, 1;
  dx << 3, 3;  // by the first hidden number alone: (1 + 2) (1, 1)
  EXPECT_TRUE(same(reference(mlp.backward(mlp.forward(x), grad).input), reference(dx)));
}

// Halves give what floats give, to their rounding; so do weights of half, whose gradients are half.
TEST(MlpBackward, OfHalf) {
  const Mlp<Eigen::half> narrow({.dim = 8, .hidden_dim = 20, .gated = true}, 1);
  Mlp<float> wide({.dim = 8, .hidden_dim = 20, .gated = true}, 1);
  for_each_parameter(wide, [](std::string_view, auto& value) {
    value = value.template cast<Eigen::half>().template cast<float>();
  });
  const Reference numbers = rounded<Eigen::half>(random({1, 1, 5, 8}, 1)),
                  by = rounded<Eigen::half>(random({1, 1, 5, 8}, 2));
  const auto x = make<float, 2>(numbers), grad = make<float, 2>(by);
  const auto xh = make<Eigen::half, 2>(numbers), grad_h = make<Eigen::half, 2>(by);
  const auto expected = wide.backward(wide.forward(x), grad);
  const auto half = narrow.backward(narrow.forward(xh), grad_h);
  const auto mixed = narrow.backward(narrow.forward(x), grad);
  static_assert(std::is_same_v<std::remove_cvref_t<decltype(half.input)>, Matrix<Eigen::half>>);
  static_assert(std::is_same_v<std::remove_cvref_t<decltype(mixed.input)>, Matrix<float>>);
  EXPECT_TRUE(near(reference(half.input), reference(expected.input), 1e-2));
  EXPECT_TRUE(near(reference(mixed.input), reference(expected.input), 1e-5));
  EXPECT_TRUE(near(reference(mixed.parameters.up_projection.weight),
                   reference(expected.parameters.up_projection.weight), 4e-3));
}

TEST(MlpBackward, OfARowThatNothingDependsOn) {
  Matrix<float> x = Matrix<float>::Random(3, 20), grad = Matrix<float>::Random(3, 20);
  x.row(1).setConstant(static_cast<float>(nan));
  grad.row(1).setZero();
  const Mlp<float> mlp({.dim = 20, .gated = true}, 1);
  const auto result = mlp.backward(mlp.forward(x), grad);
  EXPECT_EQ(result.input.row(1).cwiseAbs().maxCoeff(), 0);
  for_each_parameter(result.parameters, [](std::string_view name, const auto& value) {
    EXPECT_TRUE(value.allFinite()) << name;
  });
}

#ifdef HEED_TEST_COUNTS_ALLOCATIONS
TEST(Mlp, ASecondCallAllocatesNothing) {
  const auto x = make<float, 3>(random({2, 1, 67, 20}, 1)),
             few = make<float, 3>(random({1, 1, 2, 20}, 1));
  const auto strided = make<float, 3, Eigen::ColMajor>(random({2, 1, 67, 20}, 1));
  Tensor<float, 3> out(2, 67, 20), little(1, 2, 20);
  const Mlp<float> mlp({.dim = 20}, 1);
  const Mlp<Eigen::bfloat16> narrow({.dim = 20, .gated = true}, 1);
  const auto call = [&] {
    mlp.into(out, x);
    mlp.into(out, strided);
    narrow.into(out, x);
    narrow.into(little, few);
  };
  call();
  EXPECT_EQ(allocations_of(call), 0);
}
#endif

}  // namespace
}  // namespace heed::test
