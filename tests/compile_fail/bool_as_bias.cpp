// expect: heed: .*bool
#include <heed/heed.hpp>

void call(const heed::Tensor<float, 4>& q, const heed::Tensor<float, 4>& k,
          const heed::Tensor<float, 4>& v, const heed::Tensor<bool, 2>& booleans) {
  heed::attention(q, k, v, heed::scaled_dot_product() | heed::bias(booleans));
}
