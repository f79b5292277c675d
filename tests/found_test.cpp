#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/mask.hpp"
#include "heed/modifier.hpp"
#include "heed/ragged.hpp"
#include "heed/score.hpp"
#include "support.hpp"

// What the fuzz targets of tests/fuzz found, each as small as it can be.

namespace heed::test {
namespace {

/// Where the gradients of key and value are NaN, on the engine of a number type.
template <class Scalar>
std::vector<bool> nan_gradients() {
  Matrix<Scalar> q(2, 1), k(3, 1), v(3, 1), grad = Matrix<Scalar>::Constant(2, 1, Scalar(1));
  q << Scalar(nan), Scalar(1);
  k << Scalar(1), Scalar(2), Scalar(3);
  v << Scalar(1), Scalar(2), Scalar(3);
  const AttentionOptions options{.dropout = .9, .seed = 3};
  const auto pass = attention_forward(q, k, v, dot_product(), no_mask(), options);
  const auto g = attention_backward(q, k, v, pass, grad, dot_product(), no_mask(), options);
  std::vector<bool> result;
  for (Index j = 0; j < 3; ++j) {
    result.push_back(std::isnan(g.key(j, 0)));
    result.push_back(std::isnan(g.value(j, 0)));
  }
  return result;
}

// Every weight of the first query is NaN, and so is 0 times that: dropout hides none of them.
TEST(Found, DropoutHidesNoNanBackwards) {
  const std::vector<bool> all(6, true);
  EXPECT_EQ(nan_gradients<float>(), all);        // the fused engine
  EXPECT_EQ(nan_gradients<long double>(), all);  // the reference
}

// One sequence has 3 tokens and the other 1. Keys 0 and 2 belong to document 7, as the query does:
// weights 1/2 each, of values 1 and 3. The second sequence has key 0 alone, of value 5.
TEST(Found, TensorsOverPositionsOfCachesGoByTheLongest) {
  KeyValueCache<float> cache({.batch = 2, .key_dim = 1, .value_dim = 1, .capacity = 3});
  Tensor<float, 3> k(1, 3, 1), v(1, 3, 1);
  k.setConstant(1);
  v.setValues({{{1}, {2}, {3}}});
  cache.append(0, k, v);
  Tensor<float, 3> one(1, 1, 1);
  one.setConstant(5);
  cache.append(1, one, one);
  Tensor<float, 4> q(2, 1, 1, 1);
  q.setConstant(1);
  const auto expect = [&](const auto& mask) {
    const auto out = attention(q, cache, dot_product(), mask);
    EXPECT_EQ(out(0, 0, 0, 0), 2);
    EXPECT_EQ(out(1, 0, 0, 0), 5);
  };
  expect(segments({7}, {7, 1, 7}));
  Tensor<bool, 2> pairs(1, 3);
  pairs.setValues({{true, false, true}});
  expect(allow(pairs));
  // Neither the length of the shorter one nor more than that of the longest will do.
  for (const Index keys : {1, 2, 4}) {
    const std::vector<Index> ids(static_cast<std::size_t>(keys), 7);
    EXPECT_TRUE(
        refuses([&] { attention(q, cache, dot_product(), segments(std::vector<Index>{7}, ids)); },
                {"segments has key ids"}));
  }
}

// A window of 4 tokens and 1 sink over 12 tokens of values 1, 2, 4, ... keeps positions 0 and 8 to
// 11. Half of the weights are dropped, the same ones as where no token was evicted but the mask
// hides positions 1 to 7: a kept weight is 2/5.
TEST(Found, DropoutOverAWindowGoesByPosition) {
  const CacheConfig config{.key_dim = 1, .value_dim = 1, .capacity = 12};
  CacheConfig windowed = config;
  windowed.window = 4;
  windowed.sinks = 1;
  KeyValueCache<float> all(config), some(windowed);
  for (int j = 0; j < 12; ++j) {
    Tensor<float, 4> k(1, 1, 1, 1), v(1, 1, 1, 1);
    k.setZero();
    v.setConstant(std::ldexp(1.0F, j));
    all.append(k, v);
    some.append(k, v);
  }
  const auto held = mask_if([](Index, Index, Index, Index j) { return j < 1 || j >= 8; });
  std::vector<float> found;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    for (const Index queries : {1, 40}) {
      Tensor<float, 4> q(1, 1, queries, 1);
      q.setZero();
      const AttentionOptions options{.dropout = .5, .seed = seed};
      const auto expected = attention(q, all, dot_product(), held, options);
      const auto actual = attention(q, some, dot_product(), no_mask(), options);
      for (Index i = 0; i < queries; ++i) {
        const float error = std::abs(actual(0, 0, i, 0) - expected(0, 0, i, 0));
        EXPECT_LE(error, 1e-3F) << "seed " << seed << ", query " << i;
        found.push_back(actual(0, 0, i, 0));
      }
    }
  }
  EXPECT_NE(*std::min_element(found.begin(), found.end()),
            *std::max_element(found.begin(), found.end()));
}

// Values of width 0 have no data, nor have their gradients, but where columns come first they have
// strides; sanitizers see pointers that are formed from null.
TEST(Found, NoPointerIsFormedFromNull) {
  using Tokens = Eigen::Tensor<float, 3, Eigen::ColMajor, Index>;  // (total, heads, dim)
  Tokens q(5, 2, 3), v(5, 2, 0);
  q.setConstant(1);
  const std::vector<Index> offsets{0, 2, 5};
  const auto queries = ragged(q, offsets), values = ragged(v, offsets);
  const auto pass = attention_forward(queries, queries, values, dot_product() | alibi({1., 2.}));
  const auto gradients =
      attention_backward(queries, queries, values, pass, values, dot_product() | alibi({1., 2.}));
  for (Index n = 0; n < gradients.query.size(); ++n) EXPECT_EQ(gradients.query.data()[n], 0);
  EXPECT_EQ(gradients.value.dimension(2), 0);
}

// A query of width 0 meets a key as q M = (0, 0), and a NaN in it reaches the query all the same,
// on the fused engines and on the reference: 0 NaN + 0 1 is no number.
TEST(Found, NanOfAKeyReachesAQueryWithoutFeatures) {
  const Matrix<double> m(0, 2);
  Matrix<float> k(2, 2), v(2, 1);
  k << static_cast<float>(nan), 1, 1, 1;
  v << 1, 2;
  for (const Index queries : {1, 40}) {
    const Matrix<float> q(queries, 0);
    EXPECT_TRUE(std::isnan(attention(q, k, v, bilinear(m))(0, 0)));
    EXPECT_TRUE(std::isnan(attention_with_weights(q, k, v, bilinear(m)).output(0, 0)));
  }
}

}  // namespace
}  // namespace heed::test
