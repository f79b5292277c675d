// expect: heed: a view of a temporary would outlive its elements
#include <heed/heed.hpp>

auto call(const heed::Tensor<float, 3>& x) {
  return heed::transposed(heed::Tensor<float, 3>(x * 2.F));
}
