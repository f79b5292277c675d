// expect: heed: .*ragged batch are no tensor
#include <heed/heed.hpp>

template <class X>
auto call(const X& x) {
  const auto tokens = heed::ragged(x, {0, 2});
  return heed::attention_with_weights(tokens, tokens, tokens);
}
template auto call(const heed::Tensor<float, 3>&);
