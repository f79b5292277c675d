// expect: heed: .*integers
#include <heed/heed.hpp>

template <class X>
auto call(const X& x, const heed::AttentionPass<heed::Tensor<int, 3>, heed::Matrix<int>>& pass) {
  return heed::attention_backward(x, x, x, pass, x);
}
template auto call(const heed::Tensor<int, 3>&,
                   const heed::AttentionPass<heed::Tensor<int, 3>, heed::Matrix<int>>&);
