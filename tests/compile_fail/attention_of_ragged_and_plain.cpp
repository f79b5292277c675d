// expect: heed: .*all ragged
#include <heed/heed.hpp>

template <class X>
auto call(const X& x) {
  return heed::attention(heed::ragged(x, {0, 2}), x, x);
}
template auto call(const heed::Tensor<float, 3>&);
