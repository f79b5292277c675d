// expect: heed: the inputs must outlive the pass
#include <heed/heed.hpp>

auto call(const heed::MultiHeadAttention<float>& module, const heed::Tensor<float, 3>& x) {
  return module.forward(x, heed::Tensor<float, 3>(2, 3, 4), x);
}
