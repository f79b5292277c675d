// expect: heed: attention_backward differentiates a pairwise score.*auto
#include <heed/heed.hpp>

void call(const heed::Tensor<float, 4>& q, const heed::Tensor<float, 4>& k) {
  const auto score = heed::pairwise([](float x, float y) { return x * y; });
  const auto pass = heed::attention_forward(q, k, k, score);
  heed::attention_backward(q, k, k, pass, pass.output, score);
}
