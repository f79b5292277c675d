// expect: heed: ragged takes
#include <heed/heed.hpp>

template <class X>
auto call(const X& x) {
  return heed::ragged(x, {0, 2});
}
template auto call(const heed::Tensor<float, 4>&);
