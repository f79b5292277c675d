// expect: heed: the inputs must outlive the pass
#include <heed/heed.hpp>

auto call(const heed::AdditiveAttention<float>& module, const heed::Matrix<float>& x) {
  return module.forward(x, x, heed::Matrix<float>(2, 3));
}
