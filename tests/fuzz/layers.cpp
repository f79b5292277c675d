#include "fuzz/layers.hpp"

#include "fuzz/attention.hpp"
#include "heed/cache.hpp"
#include "heed/transformer_block.hpp"

namespace heed::fuzz {
namespace {

double inner(const Tensor<double, 3>& a, const Tensor<double, 3>& b) {
  double sum = 0;
  for (Index n = 0; n < a.size(); ++n) sum += a.data()[n] * b.data()[n];
  return sum;
}

}  // namespace

/// A layer's gradient along a direction of its input and all of its parameters is the difference
/// of its outputs there, and over a cache, in any parts, it gives what it gives at once.
void run_layers(Draw& draw) {
  const BlockConfig config = draw_block(draw).config;
  TransformerBlock<double> block(config, 1);
  shake(draw, block);
  const Index batch = draw.integer(0, 2), tokens = draw.integer(0, 12);
  const Index dim = config.attention.embed_dim;
  const auto x = draw_tensor<double>(draw, batch, tokens, dim);
  const auto grad = draw_tensor<double>(draw, batch, tokens, dim);
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
  const auto x_direction = draw_tensor<double>(draw, batch, tokens, dim);
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
