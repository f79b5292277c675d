// Compiled by tests/matrix.sh with every compiler, standard, processor and Eigen: every header but
// MPI's, and calls that make most of the library's templates. What comes out of engines of which
// each is compiled into other instructions agrees.
#include <cmath>
#include <cstdio>
#include <heed/heatmap.hpp>
#include <heed/heed.hpp>
#include <heed/safetensors.hpp>

namespace {

using namespace heed;

int differences = 0;

template <class A, class B>
void expect_near(const char* what, const A& a, const B& b, double bound) {
  double largest = a.size() == b.size() ? 0 : 1;
  for (Index n = 0; n < a.size() && largest < bound; ++n) {
    const double apart = std::abs(static_cast<double>(a.data()[n]) -
                                  static_cast<double>(static_cast<float>(b.data()[n])));
    if (!(apart <= bound)) largest = apart > bound ? apart : 1;
  }
  if (largest < bound) return;
  std::printf("%s: off by %g\n", what, largest);
  ++differences;
}

/// Numbers in [-1, 1] without any order.
template <class Number>
Tensor<Number, 4> filled(Index heads, Index tokens, double seed) {
  Tensor<Number, 4> result(1, heads, tokens, 8);
  for (Index n = 0; n < result.size(); ++n) {
    const double x = std::sin(seed + 7.1 * static_cast<double>(n * n % 101));
    result.data()[n] = static_cast<Number>(static_cast<float>(x));
  }
  return result;
}

/// The engine that suits a score, and the reference engine.
template <class Number>
void compare(const char* what, const auto& score, double bound) {
  const auto q = filled<Number>(2, 37, 1), k = filled<Number>(2, 67, 2),
             v = filled<Number>(2, 67, 3);
  const auto mask = causal() && !prefix(3);
  expect_near(what, attention(q, k, v, score, mask),
              attention_with_weights(q, k, v, score, mask).output, bound);
}

template <class Number>
void call_operators(double bound) {
  compare<Number>("scaled_dot_product", scaled_dot_product(), bound);
  const auto q = filled<Number>(2, 37, 1), k = filled<Number>(2, 67, 2),
             v = filled<Number>(2, 67, 3);
  const auto pass = attention_forward(q, k, v);
  const auto gradients = attention_backward(q, k, v, pass, q);
  const auto weights = attention_with_weights(q, k, v).weights;
  expect_near("gradients", gradients.value, batched_matmul(transposed(weights), q), 8 * bound);
  KeyValueCache<Number> cache(
      {.batch = 1, .kv_heads = 2, .key_dim = 8, .value_dim = 8, .capacity = 67});
  cache.append(k, v);
  expect_near("a cache", attention(q, cache), pass.output, bound);
}

void call_layers() {
  const Tensor<float, 4> numbers = filled<float>(1, 5, 4);
  Tensor<float, 3> x(1, 5, 8);
  for (Index n = 0; n < x.size(); ++n) x.data()[n] = numbers.data()[n];
  TransformerBlock<float> block({.attention = {.embed_dim = 8, .num_heads = 2}, .mlp = {.dim = 8}});
  const auto pass = block.forward(x, causal());
  KeyValueCache<float> cache(
      {.batch = 1, .kv_heads = 2, .key_dim = 4, .value_dim = 4, .capacity = 5});
  expect_near("a block", block(x, cache), pass.output, 1e-5);
  const auto gradients = block.backward(pass, pass.output);
  for_each_parameter(block, gradients.parameters, [](auto& value, const auto& g) { value -= g; });
  save(block, "heed_matrix.safetensors");
  auto other = block;
  load(other, SafeTensors("heed_matrix.safetensors"));
  std::remove("heed_matrix.safetensors");
  expect_near("what was saved", other(x, causal()), block(x, causal()), 1e-30);
  if (heatmap_svg(Matrix<float>{{1, 0}, {0, 1}}).empty()) ++differences;
}

}  // namespace

int main() {
  call_operators<float>(1e-5);
  call_operators<double>(1e-7);  // compared as floats
  const Vector<float> ones = Vector<float>::Ones(8);
  compare<float>("softcap and alibi", scaled_dot_product() | softcap(5) | alibi({.1, .2}), 1e-5);
  compare<float>("gaussian", gaussian(.5), 1e-5);
  compare<float>("additive", additive(ones), 1e-5);
  compare<Eigen::bfloat16>("bfloat16", scaled_dot_product(), .05);
  call_layers();
  return differences;
}
