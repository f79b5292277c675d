// expect: heed: .*allow
#include <heed/heed.hpp>

void call(const heed::Tensor<float, 4>& q, const heed::Tensor<float, 4>& k,
          const heed::Tensor<float, 4>& v, const heed::Tensor<float, 2>& numbers) {
  heed::attention(q, k, v, heed::scaled_dot_product(), heed::allow(numbers));
}
