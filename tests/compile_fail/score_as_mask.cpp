// expect: heed: .*mask
#include <heed/heed.hpp>

void call(const heed::Tensor<float, 4>& q, const heed::Tensor<float, 4>& k,
          const heed::Tensor<float, 4>& v) {
  heed::scaled_dot_product_attention(q, k, v, heed::dot_product());
}
