// expect: deleted
#include <heed/transformer_block.hpp>

heed::Tensor<float, 3> input();

int main() {
  const heed::TransformerBlock<float> block(
      {.attention = {.embed_dim = 8, .num_heads = 2}, .mlp = {.dim = 8}});
  const auto pass = block.forward(input(), heed::causal());
}
