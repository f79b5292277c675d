#include "fuzz/attention.hpp"
#include "heed/cache.hpp"
#include "heed/transformer_block.hpp"

namespace heed::fuzz {
namespace {

template <class M>
void shake(Draw& draw, M& module) {
  for_each_parameter(module, [&](std::string_view, auto& value) {
    for (Index n = 0; n < value.size(); ++n) value.data()[n] += .3 * draw.fine_number();
  });
}

BlockConfig draw_config(Draw& draw) {
  BlockConfig c;
  auto& a = c.attention;
  a.num_kv_heads = draw.integer(1, 3);
  a.num_heads = a.num_kv_heads * draw.integer(1, 2);
  const Index head_dim = draw.integer(1, 9);
  a.head_dim = head_dim;
  a.embed_dim = draw.chance(50) ? a.num_heads * head_dim : draw.integer(1, 20);
  a.bias = draw.chance(50);
  a.qk_norm = draw.chance(40);
  if (head_dim % 2 == 0 && draw.chance(60)) {
    a.rotary =
        RotaryConfig{.dim = draw.chance(50) ? 0 : 2,
                     .base = 100,
                     .layout = draw.one_of({RotaryLayout::half, RotaryLayout::interleaved}),
                     .scaling = draw.chance(70) ? RotaryScaling::none() : RotaryScaling::linear(2)};
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
  return c;
}

double inner(const Tensor<double, 3>& a, const Tensor<double, 3>& b) {
  double sum = 0;
  for (Index n = 0; n < a.size(); ++n) sum += a.data()[n] * b.data()[n];
  return sum;
}

Tensor<double, 3> draw_tensor(Draw& draw, Index x, Index y, Index z) {
  Tensor<double, 3> result(x, y, z);
  for (Index n = 0; n < result.size(); ++n) result.data()[n] = draw.fine_number();
  return result;
}

}  // namespace

/// A layer's gradient along a direction of its input and all of its parameters is the difference
/// of its outputs there, and over a cache, in any parts, it gives what it gives at once.
void run_layers(Draw& draw) {
  const BlockConfig config = draw_config(draw);
  TransformerBlock<double> block(config, 1);
  shake(draw, block);
  const Index batch = draw.integer(0, 2), tokens = draw.integer(0, 12);
  const Index dim = config.attention.embed_dim;
  const auto x = draw_tensor(draw, batch, tokens, dim);
  const auto grad = draw_tensor(draw, batch, tokens, dim);
  AttentionOptions options;
  options.pool = draw_pool(draw);
  std::ostringstream text;
  text << "batch " << batch << ", tokens " << tokens << ", embed_dim " << dim << ", heads "
       << config.attention.num_heads << ", key heads " << config.attention.num_kv_heads
       << ", head_dim " << config.attention.head_dim << ", qk_norm " << config.attention.qk_norm
       << ", rotary " << config.attention.rotary.has_value() << ", gated " << config.mlp.gated
       << ", activation " << static_cast<int>(config.mlp.activation) << ", layer norm "
       << (config.norm == Norm::layer) << ", pre_norm " << config.pre_norm;
  about() = text.str();

  const auto whole = block(x, causal(), options);
  const auto pass = block.forward(x, causal(), options);
  for (Index n = 0; n < whole.size(); ++n) {
    if (!(whole.data()[n] == pass.output.data()[n])) found("operator() and forward differ");
  }

  // Over a cache, in parts.
  KeyValueCache<double> cache({.batch = batch,
                               .kv_heads = config.attention.num_kv_heads,
                               .key_dim = config.attention.head_dim,
                               .value_dim = config.attention.head_dim,
                               .capacity = tokens});
  for (Index first = 0; first < tokens;) {
    const Index n = std::min(tokens - first, draw.integer(0, 5));
    Tensor<double, 3> part(batch, n, dim);
    for (Index b = 0; b < batch; ++b) {
      for (Index t = 0; t < n; ++t) {
        for (Index c = 0; c < dim; ++c) part(b, t, c) = x(b, first + t, c);
      }
    }
    const Tensor<double, 3> y = block(part, cache, options);
    for (Index b = 0; b < batch; ++b) {
      for (Index t = 0; t < n; ++t) {
        for (Index c = 0; c < dim; ++c) {
          const double one = y(b, t, c), other = whole(b, first + t, c);
          if (!(std::abs(one - other) <= 1e-10 * (1 + std::abs(other)))) {
            found("over a cache: ", one, " and not ", other, " at token ", first + t);
          }
        }
      }
    }
    first += n;
    if (n == 0 && draw.chance(50)) break;
  }

  const auto gradients = block.backward(pass, grad);
  auto direction = block;  // of the parameters
  for_each_parameter(direction, [&](std::string_view, auto& value) {
    for (Index n = 0; n < value.size(); ++n) value.data()[n] = draw.fine_number();
  });
  const auto x_direction = draw_tensor(draw, batch, tokens, dim);
  double expected = inner(gradients.input, x_direction);
  for_each_parameter(direction, gradients.parameters, [&](auto& along, const auto& gradient) {
    expected += (along.array() * gradient.array()).sum();
  });
  const double step = 1e-5;
  const auto moved = [&](double by) {
    auto there = block;
    for_each_parameter(there, direction,
                       [&](auto& value, const auto& along) { value += by * along; });
    const Tensor<double, 3> y = x + x_direction * by;
    return inner(there(y, causal(), options), grad);
  };
  const double ahead = moved(step), behind = moved(-step);
  const double twice = (moved(2 * step) - moved(-2 * step)) / (4 * step);
  const double once = (ahead - behind) / (2 * step);
  const double slope = (4 * once - twice) / 3;
  // Rounding, and what two differences of different steps do not agree on.
  const double bound = 1e-7 * (1 + std::abs(expected)) + 10 * std::abs(once - twice);
  if (!(std::abs(slope - expected) <= bound)) {
    found("the gradient along a direction: ", expected, " and not ", slope, ", bound ", bound);
  }
}

}  // namespace heed::fuzz
