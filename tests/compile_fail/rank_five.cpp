// expect: heed: .*rank
#include <heed/heed.hpp>

void call(const heed::Tensor<float, 5>& x) { heed::attention(x, x, x); }
