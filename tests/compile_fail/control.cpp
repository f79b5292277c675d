// expect: success
// The calls that the other files of this directory get wrong, each made right.
#include <heed/heed.hpp>

void calls(const heed::Tensor<float, 4>& q, const heed::Tensor<float, 4>& k,
           const heed::Tensor<float, 4>& v, const heed::Tensor<float, 2>& numbers,
           const heed::Tensor<bool, 2>& booleans) {
  heed::attention(q, k, v, heed::scaled_dot_product(), heed::causal());
  heed::attention(q, k, v, heed::scaled_dot_product() | heed::bias(numbers));
  heed::attention(q, k, v, heed::scaled_dot_product(), heed::allow(booleans));
  heed::scaled_dot_product_attention(q, k, v, heed::causal());
}
