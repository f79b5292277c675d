// expect: heed: attention_backward differentiates a score_mod.*auto
#include <heed/heed.hpp>

void call(const heed::Tensor<float, 4>& q, const heed::Tensor<float, 4>& k) {
  const auto score =
      heed::scaled_dot_product() | heed::score_mod([](float s, heed::Index, heed::Index,
                                                      heed::Index, heed::Index) { return 2 * s; });
  const auto pass = heed::attention_forward(q, k, k, score);
  heed::attention_backward(q, k, k, pass, pass.output, score);
}
