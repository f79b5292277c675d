#pragma once

#include <string_view>

#include "fuzz/draw.hpp"
#include "heed/transformer_block.hpp"

namespace heed::fuzz {

/// Weights other than a module begins with, among them those that begin at 0 or 1.
template <class Module>
void shake(Draw& draw, Module& module) {
  for_each_parameter(module, [&](std::string_view, auto& value) {
    using Scalar = typename std::remove_cvref_t<decltype(value)>::Scalar;
    using Number = detail::Accumulator<Scalar>;
    for (Index n = 0; n < value.size(); ++n) {
      Scalar& x = value.data()[n];
      x = static_cast<Scalar>(static_cast<Number>(x) +
                              static_cast<Number>(.3 * draw.fine_number()));
    }
  });
}

/// A block, and by what its rotation divides positions.
struct DrawnBlock {
  BlockConfig config;
  double slower = 1;
};

inline DrawnBlock draw_block(Draw& draw) {
  DrawnBlock result;
  BlockConfig& c = result.config;
  auto& a = c.attention;
  a.num_kv_heads = draw.integer(1, 3);
  a.num_heads = a.num_kv_heads * draw.integer(1, 2);
  const Index head_dim = draw.integer(1, 9);
  a.head_dim = head_dim;
  a.embed_dim = draw.chance(50) ? a.num_heads * head_dim : draw.integer(1, 20);
  a.bias = draw.chance(50);
  a.qk_norm = draw.chance(40);
  if (head_dim % 2 == 0 && draw.chance(60)) {
    const RotaryLayout layout = draw.one_of({RotaryLayout::half, RotaryLayout::interleaved});
    result.slower = draw.chance(70) ? 1 : 2;
    a.rotary = RotaryConfig{.dim = draw.chance(50) ? 0 : 2,
                            .base = 100,
                            .layout = layout,
                            .scaling = result.slower == 1 ? RotaryScaling::none()
                                                          : RotaryScaling::linear(result.slower)};
  }
  c.mlp.hidden_dim = draw.integer(1, 20);
  c.mlp.activation =
      draw.one_of({Activation::gelu, Activation::gelu_tanh, Activation::silu, Activation::gelu});
  c.mlp.gated = draw.chance(50);
  c.mlp.bias = draw.chance(50);
  c.norm = draw.one_of({Norm::layer, Norm::rms});
  c.pre_norm = draw.chance(70);
  c.layer_scale = draw.chance(30);
  c.initial_scale = .5;
  c.norm_eps = .01;
  return result;
}

template <class Number>
Tensor<Number, 3> draw_tensor(Draw& draw, Index x, Index y, Index z) {
  Tensor<Number, 3> result(x, y, z);
  for (Index n = 0; n < result.size(); ++n) {
    result.data()[n] = static_cast<Number>(draw.fine_number());
  }
  return result;
}

}  // namespace heed::fuzz
