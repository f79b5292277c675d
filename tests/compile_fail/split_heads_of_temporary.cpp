// expect: heed: a view of a temporary would outlive its elements
#include <heed/heed.hpp>

auto call(const heed::Linear<float>& layer, const heed::Tensor<float, 3>& x) {
  return heed::split_heads(layer(x), 4);
}
