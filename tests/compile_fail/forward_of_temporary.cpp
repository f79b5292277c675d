// expect: deleted
#include <heed/multi_head_attention.hpp>

heed::Tensor<float, 3> input();

int main() {
  const heed::MultiHeadAttention<float> module({.embed_dim = 8, .num_heads = 2});
  const heed::Tensor<float, 3> x = input();
  const auto pass = module.forward(x, input(), x);
}
