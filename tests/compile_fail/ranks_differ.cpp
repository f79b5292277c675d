// expect: heed: .*rank
#include <heed/heed.hpp>

void call(const heed::Tensor<float, 4>& q, const heed::Tensor<float, 3>& k) {
  heed::attention(q, k, k);
}
