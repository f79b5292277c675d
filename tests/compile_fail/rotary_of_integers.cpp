// expect: heed: .*real numbers
#include <heed/heed.hpp>

void call(const heed::Tensor<int, 4>& q) {
  heed::rotary(q, 0, {.layout = heed::RotaryLayout::half});
}
