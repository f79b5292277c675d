// expect: heed: .*score
#include <heed/heed.hpp>

void call(const heed::Tensor<float, 4>& q, const heed::Tensor<float, 4>& k,
          const heed::Tensor<float, 4>& v) {
  heed::attention(q, k, v, heed::causal());
}
