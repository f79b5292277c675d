#include "heed/additive_attention.hpp"
#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/linear.hpp"
#include "heed/matmul.hpp"
#include "heed/mlp.hpp"
#include "heed/multi_head_attention.hpp"
#include "heed/norm.hpp"
#include "heed/softmax.hpp"
#include "heed/transformer_block.hpp"
#include "support.hpp"

/// Shapes that no memory holds, of Views that repeat one number.
namespace heed::test {
namespace {

constexpr Index large = Index(1) << 31;
float number_of_all = 1;

template <int Rank>
View<float, Rank> repeated(const std::array<Index, static_cast<std::size_t>(Rank)>& shape) {
  return {&number_of_all, shape, {}};
}

template <class F>
void expect_refused(const std::string& function, const std::string& what, const F& f) {
  EXPECT_TRUE(refuses(f, {"heed::" + function + ":", what}));
}

/// Fewer than 2^63 / 64 = 2^57 elements, however they are spread over the axes.
TEST(Extents, TheMostElements) {
  const Index some = Index(1) << 14, most = (Index(1) << 57) - 1;
  const auto check = [](const auto& shape) { detail::check_extents("f", "x", shape); };
  check(std::array{some, some, some, some});  // 2^56
  check(std::array{some, some, some, 2 * some - 1});
  check(std::array<Index, 4>{0, most, 1, 0});
  check(std::array{most});
  for (std::size_t axis = 0; axis < 4; ++axis) {
    std::array<Index, 4> shape{some, some, some, some};
    shape[axis] *= 2;
    expect_refused("f", text(shape) + " has too many", [&] { check(shape); });
    shape = {1, 0, 1, 0};
    shape[axis] = most + 1;
    expect_refused("f", text(shape) + " has too many", [&] { check(shape); });
    shape[axis] = -1;
    expect_refused("f", "extent of -1 in axis " + std::to_string(axis), [&] { check(shape); });
  }
}

TEST(Extents, TooManyElements) {
  // 2^65 in all, which is 2 modulo 2^64; and 2^62 without the axis of none.
  for (const auto& x : {repeated<4>({large, large, 1, 8}), repeated<4>({large, large, 0, 8}),
                        repeated<4>({1, 1, Index(1) << 62, 1})}) {
    expect_refused("softmax", text(x.shape), [&] { softmax(x); });
    expect_refused("masked_softmax", text(x.shape), [&] { masked_softmax(x, causal()); });
    expect_refused("softmax_backward", text(x.shape), [&] { softmax_backward(x, x); });
    expect_refused("batched_matmul", text(x.shape), [&] { batched_matmul(x, transposed(x)); });
    expect_refused("batched_matmul_into", text(x.shape),
                   [&] { batched_matmul_into(x, x, transposed(x)); });
    expect_refused("batched_matmul_backward", text(x.shape),
                   [&] { batched_matmul_backward(x, transposed(x), x); });
    const auto rows = repeated<3>({x.shape[0], x.shape[1], x.shape[2]});
    const AttentionPass<View<float, 4>, View<float, 3>> pass{x, rows};
    expect_refused("merge", text(x.shape), [&] { merge(pass, pass); });
    Linear<float> layer{Matrix<float>::Ones(2, x.shape[3]), {}}, parameters;
    expect_refused("Linear", text(x.shape), [&] { layer(x); });
    expect_refused("Linear", text(x.shape), [&] { layer.into(x, x); });
    expect_refused("Linear::backward", text(x.shape), [&] { layer.backward(x, x); });
    expect_refused("Linear::backward", text(x.shape),
                   [&] { layer.backward_into(x, parameters, x, x); });
  }
  const auto x = repeated<3>({large, large, 8});
  const MultiHeadAttention<float> heads({.embed_dim = 8, .num_heads = 2});
  const AdditiveAttention<float> additive(8, 8, 3);
  expect_refused("MultiHeadAttention", "query", [&] { heads(x, x, x); });
  expect_refused("MultiHeadAttention", "query", [&] { heads.forward(x, x, x); });
  expect_refused("MultiHeadAttention", "query", [&] { heads.forward_with_weights(x, x, x); });
  expect_refused("Linear", "x", [&] { additive(x, x, x); });
  // Not so many that their number would be small modulo 2^64.
  const auto most = repeated<3>({1, Index(1) << 59, 8});
  const std::string shape = "(1, 576460752303423488, 8)";
  expect_refused("LayerNorm", shape, [&] { LayerNorm<float>(8)(most); });
  expect_refused("Mlp", shape, [&] { Mlp<float>({.dim = 8})(most); });
  const TransformerBlock<float> block({.attention = {.embed_dim = 8, .num_heads = 2}});
  expect_refused("TransformerBlock", shape, [&] { block(most); });
  KeyValueCache<float> cache({.kv_heads = 2, .key_dim = 4, .value_dim = 4, .capacity = 1});
  expect_refused("MultiHeadAttention", shape, [&] { heads(most, cache); });
  expect_refused("MultiHeadAttention::cross", shape, [&] { heads.cross(most, cache); });
}

TEST(Extents, NegativeOnes) {
  const std::string axis = "axis 2";
  const auto x = repeated<4>({2, 1, -3, 8});
  expect_refused("softmax", axis, [&] { softmax(x); });
  expect_refused("softmax_backward", axis, [&] { softmax_backward(x, x); });
  expect_refused("batched_matmul", axis, [&] { batched_matmul(x, transposed(x)); });
  expect_refused("batched_matmul_into", axis, [&] { batched_matmul_into(x, x, transposed(x)); });
  expect_refused("merge", axis, [&] {
    const auto rows = repeated<3>({2, 1, -3});
    const AttentionPass<View<float, 4>, View<float, 3>> pass{x, rows};
    merge(pass, pass);
  });
  const Linear<float> layer{Matrix<float>::Ones(2, 8), {}};
  expect_refused("Linear", axis, [&] { layer(x); });
  expect_refused("Linear::backward", axis, [&] { layer.backward(x, x); });
  const auto y = repeated<3>({2, -3, 8});
  const MultiHeadAttention<float> heads({.embed_dim = 8, .num_heads = 2});
  expect_refused("MultiHeadAttention", "axis 1", [&] { heads(y, y, y); });
  expect_refused("MultiHeadAttention", "axis 1", [&] { heads.forward(y, y, y); });
  expect_refused("Linear", "axis 1", [&] { AdditiveAttention<float>(8, 8, 3)(y, y, y); });
}

// Inputs that fit and results that do not.
TEST(Extents, OfResults) {
  const auto q = repeated<4>({1, 1, large, 1}), v = repeated<4>({1, 1, 3, large}),
             k = repeated<4>({1, 1, 3, 1}), wide = repeated<4>({1, 1, 1, large});
  const std::string product = "(1, 1, 2147483648, 2147483648)";
  expect_refused("batched_matmul", product, [&] { batched_matmul(q, wide); });
  expect_refused("attention", product, [&] { attention(q, k, v); });
  expect_refused("scaled_dot_product_attention", product,
                 [&] { scaled_dot_product_attention(q, k, v); });
  expect_refused("attention_into", product,
                 [&] { attention_into(repeated<4>({1, 1, large, large}), q, k, v); });
  expect_refused("attention_forward", product, [&] { attention_forward(q, k, v); });
  expect_refused("attention_with_weights", product, [&] { attention_with_weights(q, q, q); });
  const MultiHeadAttention<float> heads({.embed_dim = 1, .num_heads = 1});
  const auto x = repeated<2>({large, 1});
  expect_refused("MultiHeadAttention", "(1, 1, 2147483648, 2147483648)",
                 [&] { heads.forward_with_weights(x, x, x); });
  const Linear<float> layer{Matrix<float>::Ones(3, 1), {}};
  const auto most = repeated<2>({Index(1) << 56, 1});
  expect_refused("Linear", "(72057594037927936, 3)", [&] { layer(most); });
  EXPECT_TRUE(refuses(
      [] {
        MultiHeadAttention<float>({.embed_dim = large, .num_heads = large, .head_dim = large});
      },
      {"heed::MultiHeadAttention", "(2147483648, 2147483648, 2147483648)"}));
}

}  // namespace
}  // namespace heed::test
