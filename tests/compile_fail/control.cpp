// expect: success
// The calls that the other files of this directory get wrong, each made right.
#include <heed/heed.hpp>

void calls(const heed::Tensor<float, 4>& q, const heed::Tensor<float, 4>& k,
           const heed::Tensor<float, 4>& v, const heed::Tensor<float, 2>& numbers,
           const heed::Tensor<bool, 2>& booleans) {
  heed::attention(q, k, v, heed::scaled_dot_product(), heed::causal());
  heed::attention(q, k, v, heed::scaled_dot_product() | heed::bias(numbers));
  heed::attention(q, k, v, heed::scaled_dot_product(), heed::allow(booleans));
  heed::scaled_dot_product_attention(q, k, v, heed::causal());

  const auto score = heed::pairwise([](auto x, auto y) { return x * y; }) |
                     heed::score_mod([](auto s, heed::Index, heed::Index, heed::Index,
                                        heed::Index) { return 2 * s; });
  const auto pass = heed::attention_forward(q, k, v, score);
  heed::attention_backward(q, k, v, pass, pass.output, score);
  heed::Vector<float> w, dw;
  heed::additive(w, dw);

  // What refers to something that stays may itself be a temporary.
  heed::Matrix<float> matrix(4, 6);
  std::vector<float> memory(24);
  heed::view(matrix.block(0, 0, 2, 3));
  heed::transposed(Eigen::Map<heed::Matrix<float>>(memory.data(), 4, 6));
  heed::view(Eigen::TensorMap<heed::Tensor<float, 2>>(memory.data(), 4, 6));
  heed::transposed(heed::view(matrix));
  const heed::Matrix<int> integers(2, 2);
  heed::batched_matmul(integers, integers);
}
