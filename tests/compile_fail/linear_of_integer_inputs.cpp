// expect: heed: .*integers
#include <heed/heed.hpp>

auto call(const heed::Linear<float>& layer, const heed::Matrix<int>& x) { return layer(x); }
