#include "heed/attention.hpp"
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

}  // namespace
}  // namespace heed::test
