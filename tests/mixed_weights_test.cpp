#include <map>
#include <string>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "heed/additive_attention.hpp"
#include "heed/cache.hpp"
#include "heed/multi_head_attention.hpp"
#include "module_support.hpp"

namespace heed::test {
namespace {

using Eigen::bfloat16;
using Eigen::half;

/// The same weights in a wider type, which holds them exactly.
template <class Wide, class Scalar>
Linear<Wide> widened(const Linear<Scalar>& layer) {
  return {make<Wide, 2>(reference(layer.weight)),
          layer.bias.size() > 0 ? Vector<Wide>(make<Wide, 2>(reference(layer.bias)).col(0))
                                : Vector<Wide>()};
}

template <class Scalar>
Linear<Scalar> layer_of(Index in, Index out) {
  return {make<Scalar, 2>(random({1, 1, out, in}, 2)), vector_of<Scalar>(out, 3)};
}

template <class Scalar, class X>
void expect_linear(Index rows, Index in, Index out) {
  SCOPED_TRACE(text(Shape{1, 1, rows, in}) + " to " + std::to_string(out));
  const Linear<Scalar> layer = layer_of<Scalar>(in, out);
  const auto x = make<X, 2>(random({1, 1, rows, in}, 1));
  const auto y = layer(x);
  static_assert(std::is_same_v<std::remove_cvref_t<decltype(y)>, Matrix<X>>);
  // Sums of `in` products of numbers below 1, and the rounding of a result and of its bias.
  const double size = static_cast<double>(in + 1);
  EXPECT_TRUE(near(reference(y), projected(layer, reference(x)),
                   size * (epsilon<float>() + (std::is_same_v<X, float> ? 0 : epsilon<X>()))));
  EXPECT_TRUE(same(reference(y), reference(widened<float>(layer)(x))));
}

// From one row of x to beyond those that read the weights in place, of widths around a vector, and
// of outputs around a register tile.
TEST(MixedWeights, LinearIsThatOfTheWidenedWeights) {
  for (const Index rows : {1, 2, 3, 4, 7, 16, 17, 40}) {
    for (const Index in : {5, 64, 131, 520}) {
      for (const Index out : {1, 16, 67}) expect_linear<bfloat16, float>(rows, in, out);
    }
    expect_linear<half, float>(rows, 520, 67);
    expect_linear<float, bfloat16>(rows, 520, 67);
    expect_linear<bfloat16, bfloat16>(rows, 131, 67);
    expect_linear<half, bfloat16>(rows, 64, 16);
  }
}

TEST(MixedWeights, EveryStrideAndNumberOfThreadsGivesTheSameBits) {
  const Linear<bfloat16> layer = layer_of<bfloat16>(259, 150);
  for (const Index n : {1, 3, 16, 110}) {
    const Reference x = random({2, 1, n, 259}, 1);
    const Reference expected = reference(layer(make<float, 4>(x)));
    for (const int threads : {2, 3}) {
      Eigen::ThreadPool pool(threads);
      EXPECT_TRUE(same(reference(layer(make<float, 4>(x), &pool)), expected)) << n;
    }
    Scattered<float> from(x), to(constant({2, 1, n, 150}, nan));
    layer.into(to.view(), from.view());
    EXPECT_TRUE(near(reference(to.view()), expected, 1e-4)) << n;
    EXPECT_EQ(to.written(), 2 * n * 150) << n;
    EXPECT_TRUE(near(reference(layer(make<float, 4, Eigen::ColMajor>(x))), expected, 1e-4)) << n;
  }
}

// One row more or less beside it changes no bit of a row that is read in place.
TEST(MixedWeights, ARowIsItsOwn) {
  const Linear<bfloat16> layer = layer_of<bfloat16>(600, 70);
  const Reference x = random({1, 1, 12, 600}, 1);
  const auto all = layer(make<float, 2>(x));
  for (Index i = 0; i < 12; ++i) {
    EXPECT_EQ(layer(make<float, 2>(rows(x, i, i + 1))), Matrix<float>(all.row(i))) << i;
  }
}

TEST(MixedWeights, GradientsOfLinear) {
  const Linear<bfloat16> layer = layer_of<bfloat16>(9, 5);
  const Linear<double> wide = widened<double>(layer);
  const Reference x = random({2, 1, 30, 9}, 1), g = random({2, 1, 30, 5}, 2);
  const auto result = layer.backward(make<float, 3>(x), make<float, 3>(g));
  static_assert(std::is_same_v<decltype(result.parameters), Linear<bfloat16>>);
  static_assert(std::is_same_v<std::remove_cvref_t<decltype(result.input)>, Tensor<float, 3>>);
  const auto expected = wide.backward(make<double, 3>(x), make<double, 3>(g));
  EXPECT_TRUE(near(reference(result.input), reference(expected.input), 1e-6));
  // The gradients of the parameters, sums of 60 products, are rounded once.
  const auto of_weight = reference(expected.parameters.weight);
  EXPECT_TRUE(near(reference(result.parameters.weight), of_weight, 60 * epsilon<bfloat16>() / 2));
  EXPECT_TRUE(same(reference(result.parameters.weight),
                   rounded<bfloat16>(reference(widened<float>(layer)
                                                   .backward(make<float, 3>(x), make<float, 3>(g))
                                                   .parameters.weight))));
}

/// The parameters of one module, each rounded to the other's type, found by their names.
template <class From, class To>
void copy_parameters(const From& from, To& to) {
  std::map<std::string, Reference, std::less<>> values;
  for_each_parameter(from, [&](std::string_view name, const auto& value) {
    values.emplace(name, reference(value));
  });
  for_each_parameter(to, [&](std::string_view name, auto& value) {
    using Parameter = std::remove_reference_t<decltype(value)>;
    value = make<typename Parameter::Scalar, 2>(values.at(std::string(name)));
  });
}

MultiHeadConfig everything_on() {
  return {.embed_dim = 24,
          .num_heads = 4,
          .num_kv_heads = 2,
          .bias = true,
          .head_dim = 10,
          .rotary = RotaryConfig{.layout = RotaryLayout::half},
          .qk_norm = true};
}

TEST(MixedWeights, MultiHeadAttentionIsThatOfTheWidenedWeights) {
  const MultiHeadAttention<bfloat16> narrow(everything_on(), 3);
  MultiHeadAttention<float> wide(everything_on());
  copy_parameters(narrow, wide);
  const auto x = make<float, 3>(random({2, 1, 30, 24}, 1));
  const auto y = narrow(x, x, x, causal());
  static_assert(std::is_same_v<std::remove_cvref_t<decltype(y)>, Tensor<float, 3>>);
  const Reference expected = reference(wide(x, x, x, causal()));
  EXPECT_TRUE(same(reference(y), expected));
  const auto weighted_output = narrow.forward_with_weights(x, x, x, causal());
  static_assert(
      std::is_same_v<std::remove_cvref_t<decltype(weighted_output.weights)>, Tensor<float, 4>>);
  EXPECT_TRUE(near(reference(weighted_output.output), expected, 1e-5));

  const CacheConfig sizes{
      .batch = 2, .kv_heads = 2, .key_dim = 10, .value_dim = 10, .capacity = 30};
  KeyValueCache<float> cache(sizes);
  EXPECT_TRUE(near(reference(narrow(x, cache)), expected, 1e-5));
  KeyValueCache<bfloat16> halved(sizes);
  EXPECT_TRUE(near(reference(narrow(x, halved)), expected, .05));

  const auto grad = make<float, 3>(random({2, 1, 30, 24}, 2));
  const auto pass = narrow.forward(x, x, x, causal());
  static_assert(std::is_same_v<std::remove_cvref_t<decltype(pass.context)>, Tensor<float, 3>>);
  const auto result = narrow.backward(pass, grad);
  static_assert(std::is_same_v<std::remove_cvref_t<decltype(result.parameters)>,
                               MultiHeadAttention<bfloat16>>);
  const auto of_wide = wide.backward(wide.forward(x, x, x, causal()), grad);
  EXPECT_TRUE(same(reference(result.key), reference(of_wide.key)));
  MultiHeadAttention<bfloat16> rounded_parameters = narrow;
  copy_parameters(of_wide.parameters, rounded_parameters);
  for_each_parameter(result.parameters, rounded_parameters,
                     [](const auto& given, const auto& expected_value) {
                       EXPECT_TRUE(same(reference(given), reference(expected_value)));
                     });
}

TEST(MixedWeights, AdditiveAttentionIsThatOfTheWidenedWeights) {
  const AdditiveAttention<half> narrow(7, 5, 12, 3);
  AdditiveAttention<float> wide(7, 5, 12);
  copy_parameters(narrow, wide);
  const auto q = make<float, 3>(random({2, 1, 9, 7}, 1)),
             k = make<float, 3>(random({2, 1, 30, 5}, 2)),
             v = make<float, 3>(random({2, 1, 30, 4}, 3)),
             g = make<float, 3>(random({2, 1, 9, 4}, 4));
  const Reference expected = reference(wide(q, k, v));
  const auto y = narrow(q, k, v);
  static_assert(std::is_same_v<std::remove_cvref_t<decltype(y)>, Tensor<float, 3>>);
  EXPECT_TRUE(same(reference(y), expected));
  Tensor<float, 3> out(2, 9, 4);
  narrow.into(out, q, k, v);
  EXPECT_TRUE(same(reference(out), expected));
  const auto result = narrow.backward(narrow.forward(q, k, v), g);
  const auto of_wide = wide.backward(wide.forward(q, k, v), g);
  static_assert(
      std::is_same_v<std::remove_cvref_t<decltype(result.parameters)>, AdditiveAttention<half>>);
  EXPECT_TRUE(same(reference(result.query), reference(of_wide.query)));
  EXPECT_TRUE(same(reference(result.parameters.score_weight),
                   rounded<half>(reference(of_wide.parameters.score_weight))));
}

}  // namespace
}  // namespace heed::test
