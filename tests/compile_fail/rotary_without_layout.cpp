// expect: GivenRotaryLayout
#include <heed/heed.hpp>

void call(const heed::Tensor<float, 4>& q) { heed::rotary(q, 0, heed::RotaryConfig{.dim = 4}); }
