#include "heed/additive_attention.hpp"
#include "heed/attention.hpp"
#include "heed/linear.hpp"
#include "heed/matmul.hpp"
#include "heed/multi_head_attention.hpp"
#include "heed/softmax.hpp"
#include "module_support.hpp"

/// Axes of no elements: zeros, or results that are empty themselves.
namespace heed::test {
namespace {

/// The product of an empty sum, and the gradients of it.
TEST(Empty, Matmul) {
  for (std::size_t axis = 0; axis < 4; ++axis) {
    for (const bool of_a : {false, true}) {
      Shape a{2, 3, 4, 5}, b{2, 3, 5, 6};
      if (axis < 2 || (of_a && axis == 3)) a[axis] = b[axis == 3 ? 2 : axis] = 0;
      if (axis == 2) (of_a ? a[2] : b[3]) = 0;
      SCOPED_TRACE(text(a) + " by " + text(b));
      const auto x = make<float, 4>(random(a, 1)), y = make<float, 4>(random(b, 2));
      const Shape c{a[0], a[1], a[2], b[3]};
      const auto product = batched_matmul(x, y);
      if (x.size() == 0) {
        EXPECT_TRUE(same(reference(product), constant(c, 0)));
      }
      Tensor<float, 4> out(c);
      out.setConstant(3);
      batched_matmul_into(out, x, y);
      EXPECT_TRUE(same(reference(out), reference(product)));
      const auto gradients = batched_matmul_backward(x, y, product);
      EXPECT_EQ(view(gradients.a).shape, a);
      EXPECT_EQ(view(gradients.b).shape, b);
      if (product.size() == 0) {
        EXPECT_TRUE(same(reference(gradients.a), constant(a, 0)));
        EXPECT_TRUE(same(reference(gradients.b), constant(b, 0)));
      }
    }
  }
}

TEST(Empty, Softmax) {
  for (std::size_t axis = 0; axis < 4; ++axis) {
    Shape shape{2, 3, 4, 5};
    shape[axis] = 0;
    const Tensor<float, 4> x(shape);
    const std::vector<int> lens(static_cast<std::size_t>(shape[0]), 2);
    for (const auto& result : {softmax(x), masked_softmax(x, causal()), masked_softmax(x, lens),
                               softmax_backward(x, x)}) {
      EXPECT_EQ(view(result).shape, shape);
    }
  }
}

TEST(Empty, Attention) {
  // Batch, key heads, queries, keys, features, features of values; query heads are twice the key's.
  for (std::size_t which = 0; which < 6; ++which) {
    if (which == 2) continue;
    std::array<Index, 6> n{2, 2, 3, 4, 5, 6};
    n[which] = 0;
    const Shape query{n[0], 2 * n[1], n[2], n[4]}, key{n[0], n[1], n[3], n[4]},
        value{n[0], n[1], n[3], n[5]}, output{n[0], 2 * n[1], n[2], n[5]},
        pairs{n[0], 2 * n[1], n[2], n[3]};
    SCOPED_TRACE(text(query) + text(key) + text(value));
    const auto q = make<float, 4>(random(query, 1)), k = make<float, 4>(random(key, 2)),
               v = make<float, 4>(random(value, 3));
    const auto pass = attention_forward(q, k, v);
    ASSERT_EQ(view(pass.output).shape, output);
    Tensor<float, 4> out(output);
    out.setConstant(3);
    attention_into(out, q, k, v);
    EXPECT_TRUE(same(reference(out), reference(pass.output)));
    if (n[3] == 0) {
      EXPECT_TRUE(same(reference(pass.output), constant(output, 0)));
      EXPECT_TRUE(same(reference_rows(pass.log_sum_exp), constant({2, 4, 3, 1}, -infinity)));
    }
    const auto [again, weights] = attention_with_weights(q, k, v);
    EXPECT_TRUE(near(reference(again), reference(pass.output), 1e-6));
    EXPECT_EQ(view(weights).shape, pairs);
    // Of no features, all scores are 0.
    if (n[4] == 0) {
      EXPECT_TRUE(near(reference(weights), constant(pairs, .25), 1e-7));
    }
    const auto merged = merge(pass, pass);
    EXPECT_TRUE(near(reference(merged.output), reference(pass.output), 1e-6));
    const auto gradients = attention_backward(q, k, v, pass, pass.output);
    EXPECT_EQ(view(gradients.query).shape, query);
    EXPECT_EQ(view(gradients.key).shape, key);
    EXPECT_EQ(view(gradients.value).shape, value);
    if (n[3] == 0 || n[5] == 0) {
      EXPECT_TRUE(same(reference(gradients.query), constant(query, 0)));
      EXPECT_TRUE(same(reference(gradients.key), constant(key, 0)));
      EXPECT_TRUE(same(reference(gradients.value), constant(value, 0)));
    }
  }
}

TEST(Empty, Linear) {
  for (const bool with_bias : {false, true}) {
    for (std::size_t which = 0; which < 5; ++which) {
      std::array<Index, 5> n{2, 3, 4, 5, 6};  // batch, heads, rows, inputs, outputs
      n[which] = 0;
      SCOPED_TRACE(which);
      const Shape in{n[0], n[1], n[2], n[3]}, out{n[0], n[1], n[2], n[4]};
      Linear<float> layer{Matrix<float>::Ones(n[4], n[3]), {}};
      if (with_bias) layer.bias = vector_of<float>(n[4], 4);
      const auto x = make<float, 4>(random(in, 1)), dy = make<float, 4>(random(out, 2));
      const auto y = layer(x);
      ASSERT_EQ(view(y).shape, out);
      if (n[3] == 0) {
        EXPECT_TRUE(same(reference(y), generate(out, [&](Index, Index, Index, Index o) {
                           return with_bias ? number(layer.bias(o)) : 0.0;
                         })));
      }
      const auto gradients = layer.backward(x, dy);
      EXPECT_EQ(view(gradients.input).shape, in);
      EXPECT_EQ(gradients.parameters.weight.rows(), n[4]);
      EXPECT_EQ(gradients.parameters.weight.cols(), n[3]);
      EXPECT_EQ(gradients.parameters.bias.size(), layer.bias.size());
      if (which < 3) {
        EXPECT_TRUE(gradients.parameters.weight.isZero(0));
        EXPECT_TRUE(gradients.parameters.bias.isZero(0));
      }
      if (which == 4) {
        EXPECT_TRUE(same(reference(gradients.input), constant(in, 0)));
      }
    }
  }
}

// No batch, no queries, no keys.
template <class Module>
void expect_module(const Module& module) {
  for (std::size_t which = 0; which < 3; ++which) {
    std::array<Index, 3> n{2, 3, 4};
    n[which] = 0;
    SCOPED_TRACE(which);
    const auto q = make<float, 3>(random({n[0], 1, n[1], 6}, 1)),
               k = make<float, 3>(random({n[0], 1, n[2], 6}, 2));
    const auto pass = module.forward(q, k, k);
    EXPECT_EQ(view(pass.output).shape, (std::array<Index, 3>{n[0], n[1], 6}));
    EXPECT_TRUE(same(reference(module(q, k, k)), reference(pass.output)));
    EXPECT_TRUE(same(reference(pass.output), constant({n[0], 1, n[1], 6}, 0)));
    const auto weighted = module.forward_with_weights(q, k, k);
    EXPECT_TRUE(same(reference(weighted.output), reference(pass.output)));
    EXPECT_EQ(weighted.weights.size(), 0);
    const auto gradients = module.backward(pass, pass.output);
    EXPECT_EQ(view(gradients.query).shape, view(q).shape);
    EXPECT_EQ(view(gradients.key).shape, view(k).shape);
    for (const double x : numbers(gradients)) EXPECT_EQ(x, 0);
  }
}

TEST(Empty, MultiHeadAttention) {
  expect_module(MultiHeadAttention<float>({.embed_dim = 6, .num_heads = 2}));
}

TEST(Empty, AdditiveAttention) { expect_module(AdditiveAttention<float>(6, 6, 5)); }

}  // namespace
}  // namespace heed::test
