// expect: heed: .*integers
#include <heed/heed.hpp>

auto call(const heed::Tensor<int, 4>& x) { return heed::attention(x, x, x); }
