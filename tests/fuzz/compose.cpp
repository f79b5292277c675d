#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <sstream>

#include "fuzz/attention.hpp"
#include "fuzz/layers.hpp"
#include "heed/transformer_block.hpp"

/// Layers composed in long double from loops that share nothing with the library but the names of
/// the weights. Beside each number stands by how much a computation in floats may be off: errors
/// of what comes in, to first order, and roundings of its own.
namespace heed::fuzz {
namespace {

constexpr Real unit = 0x1p-24L;  // half the distance from 1 to the next float

struct Estimate {
  Numbers value, error;

  explicit Estimate(const std::array<Index, 4>& shape) : value(shape), error(shape) {}
  template <class Scalar>
  explicit Estimate(const Tensor<Scalar, 3>& x)
      : Estimate(std::array<Index, 4>{x.dimension(0), 1, x.dimension(1), x.dimension(2)}) {
    for (Index n = 0; n < x.size(); ++n) {
      value.data[static_cast<std::size_t>(n)] = to_double(x.data()[n]);
    }
  }
  /// body(value, error) for every number.
  void for_each(const auto& body) {
    for (std::size_t n = 0; n < value.data.size(); ++n) body(value.data[n], error.data[n], n);
  }
  /// body(b, h, i) for every row.
  void for_each_row(const auto& body) const {
    for (Index b = 0; b < value.shape[0]; ++b) {
      for (Index h = 0; h < value.shape[1]; ++h) {
        for (Index i = 0; i < value.shape[2]; ++i) body(b, h, i);
      }
    }
  }
};

template <class Scalar>
Real at(const Vector<Scalar>& x, Index n) {
  return to_double(x.data()[n]);
}

/// W x + b
template <class Scalar>
Estimate project(const Estimate& x, const Linear<Scalar>& layer) {
  auto shape = x.value.shape;
  const Index in = shape[3], out = shape[3] = layer.weight.rows();
  Estimate y(shape);
  x.for_each_row([&](Index b, Index h, Index i) {
    for (Index o = 0; o < out; ++o) {
      Real sum = layer.bias.size() > 0 ? at(layer.bias, o) : 0, size = std::abs(sum), error = 0;
      for (Index c = 0; c < in; ++c) {
        const Real w = to_double(layer.weight(o, c)), term = w * x.value(b, h, i, c);
        sum += term;
        size += std::abs(term);
        error += std::abs(w) * x.error(b, h, i, c);
      }
      y.value(b, h, i, o) = sum;
      y.error(b, h, i, o) = error + static_cast<Real>(in + 4) * unit * size;
    }
  });
  return y;
}

/// (x - mean) / sqrt(variance + eps) weight + bias, or without the mean.
template <class Scalar>
Estimate normalise(const Estimate& x, bool centred, const Vector<Scalar>& weight,
                   const Vector<Scalar>& bias, Real eps) {
  Estimate y(x.value.shape);
  const Index n = x.value.shape[3];
  const Real own = static_cast<Real>(n + 8) * unit;
  x.for_each_row([&](Index b, Index h, Index i) {
    const Real* const from = x.value.row(b, h, i);
    const Real* const error = x.error.row(b, h, i);
    Real mean = 0, mean_error = 0, squares = 0, relative = own;
    for (Index c = 0; centred && c < n; ++c) {
      mean += from[c] / static_cast<Real>(n);
      mean_error += (error[c] + own * std::abs(from[c])) / static_cast<Real>(n);
    }
    for (Index c = 0; c < n; ++c) squares += (from[c] - mean) * (from[c] - mean);
    const Real variance = squares / static_cast<Real>(n) + eps, deviation = std::sqrt(variance);
    for (Index c = 0; c < n; ++c) {
      const Real off = error[c] + mean_error;
      relative += (std::abs(from[c] - mean) + off) * off / (static_cast<Real>(n) * variance);
    }
    for (Index c = 0; c < n; ++c) {
      const Real w = at(weight, c) / deviation, d = from[c] - mean;
      y.value(b, h, i, c) = d * w + (bias.size() > 0 ? at(bias, c) : 0);
      y.error(b, h, i, c) = std::abs(w) * (error[c] + mean_error + std::abs(d) * relative) +
                            4 * unit * (std::abs(d * w) + std::abs(y.value(b, h, i, c)));
    }
  });
  return y;
}
template <class Scalar>
Estimate normalise(const Estimate& x, const AnyNorm<Scalar>& norm) {
  return normalise(x, norm.kind == Norm::layer, norm.weight, norm.bias, norm.eps);
}

/// (batch, 1, seq, heads * dim) as (batch, heads, seq, dim), and back.
Estimate split(const Estimate& x, Index heads) {
  const auto shape = x.value.shape;
  const Index dim = shape[3] / heads;
  Estimate y({shape[0], heads, shape[2], dim});
  y.for_each_row([&](Index b, Index h, Index i) {
    std::copy_n(x.value.row(b, 0, i) + h * dim, dim, y.value.row(b, h, i));
    std::copy_n(x.error.row(b, 0, i) + h * dim, dim, y.error.row(b, h, i));
  });
  return y;
}
Estimate join(const Estimate& x) {
  const auto shape = x.value.shape;
  const Index dim = shape[3];
  Estimate y({shape[0], 1, shape[2], shape[1] * dim});
  x.for_each_row([&](Index b, Index h, Index i) {
    std::copy_n(x.value.row(b, h, i), dim, y.value.row(b, 0, i) + h * dim);
    std::copy_n(x.error.row(b, h, i), dim, y.error.row(b, 0, i) + h * dim);
  });
  return y;
}

/// Pair c of a head's features, turned by position / slower * base^(-2c / dim).
void turn(Estimate& x, const RotaryConfig& config, Real slower) {
  const Index dim = config.dim == 0 ? x.value.shape[3] : config.dim;
  x.for_each_row([&](Index b, Index h, Index i) {
    Real* const value = x.value.row(b, h, i);
    Real* const error = x.error.row(b, h, i);
    for (Index c = 0; c < dim / 2; ++c) {
      const bool halves = config.layout == RotaryLayout::half;
      const Index one = halves ? c : 2 * c, other = halves ? c + dim / 2 : 2 * c + 1;
      const Real power = -2 * static_cast<Real>(c) / static_cast<Real>(dim);
      const Real angle = static_cast<Real>(i) / slower * std::pow(Real(config.base), power);
      const Real a = value[one], d = value[other];
      const Real off = error[one] + error[other] + 4 * unit * (std::abs(a) + std::abs(d));
      value[one] = a * std::cos(angle) - d * std::sin(angle);
      value[other] = a * std::sin(angle) + d * std::cos(angle);
      error[one] = error[other] = off;
    }
  });
}

using Pairs = Tensor<bool, 4>;

/// The oracle's attention, and what errors of queries, keys and values do to it: those of scores
/// change each weight by a factor from e^-2s to e^2s.
Estimate attend(const Estimate& q, const Estimate& k, const Estimate& v, const Pairs& allowed) {
  const Index dim = q.value.shape[3], keys = k.value.shape[2], width = v.value.shape[3];
  const Real scale = 1 / std::sqrt(static_cast<Real>(dim));
  oracle::Attention a;
  a.query = q.value, a.key = k.value, a.value = v.value;
  a.similarity = oracle::dot_product(dim, scale);
  a.allowed = [&](Index b, Index h, Index i, Index j) { return allowed(b, h, i, j); };
  const auto exact = oracle::Evaluation(a).forward();
  Estimate y(exact.output.shape);
  y.value = exact.output;
  y.for_each_row([&](Index b, Index h, Index i) {
    const Index group = h / a.group();
    Real off = 0;
    for (Index j = 0; j < keys; ++j) {
      if (!allowed(b, h, i, j)) continue;
      Real score = 0;
      for (Index c = 0; c < dim; ++c) {
        const Real x = std::abs(q.value(b, h, i, c)), z = std::abs(k.value(b, group, j, c));
        score += x * k.error(b, group, j, c) + z * q.error(b, h, i, c) +
                 static_cast<Real>(dim + 8) * unit * x * z;
      }
      off = std::max(off, score * scale);
    }
    const Real change = std::expm1(2 * off) + static_cast<Real>(keys + 16) * unit;
    for (Index c = 0; c < width; ++c) {
      Real error = 0;
      for (Index j = 0; j < keys; ++j) {
        error += exact.weights(b, h, i, j) *
                 (v.error(b, group, j, c) + change * std::abs(v.value(b, group, j, c)));
      }
      y.error(b, h, i, c) = error + change * std::abs(y.value(b, h, i, c));
    }
  });
  return y;
}

template <class Scalar>
Estimate attention_of(const MultiHeadAttention<Scalar>& module, Real slower, const Estimate& x,
                      const Estimate& memory, const Pairs& allowed) {
  const MultiHeadConfig& c = module.config();
  const auto prepared = [&](const Estimate& from, const Linear<Scalar>& projection, Index heads,
                            const Vector<Scalar>& norm) {
    Estimate y = split(project(from, projection), heads);
    if (c.qk_norm) y = normalise(y, false, norm, Vector<Scalar>(), 1e-6L);
    if (c.rotary) turn(y, *c.rotary, slower);
    return y;
  };
  const auto q = prepared(x, module.query_projection, c.num_heads, module.query_norm),
             k = prepared(memory, module.key_projection, c.num_kv_heads, module.key_norm),
             v = split(project(memory, module.value_projection), c.num_kv_heads);
  return project(join(attend(q, k, v, allowed)), module.output_projection);
}

Real activated(Activation activation, Real x) {
  switch (activation) {
    case Activation::relu:
      return x > 0 ? x : 0;
    case Activation::gelu:
      return x * std::erfc(-x / std::numbers::sqrt2_v<Real>) / 2;
    case Activation::gelu_tanh:
      return x / 2 *
             (1 + std::tanh(std::sqrt(2 / std::numbers::pi_v<Real>) * (x + .044715L * x * x * x)));
    case Activation::silu:
      return x / (1 + std::exp(-x));
  }
  found("no such activation");
}

template <class Scalar>
Estimate mlp_of(const Mlp<Scalar>& module, const Estimate& x) {
  const MlpConfig& c = module.config();
  Estimate up = project(x, module.up_projection);
  const Estimate gate = c.gated ? project(x, module.gate_projection) : up;
  up.for_each([&](Real& value, Real& error, std::size_t n) {
    const Real g = gate.value.data[n], y = activated(c.activation, g);
    // No slope is above 1.13.
    const Real off = 1.13L * gate.error.data[n] + 8 * unit * std::abs(g);
    error = c.gated ? std::abs(y) * error + (std::abs(value) + error) * off +
                          2 * unit * std::abs(value * y)
                    : off;
    value = c.gated ? value * y : y;
  });
  return project(up, module.down_projection);
}

/// x + scale f(norm(x)), or norm(x + scale f(x)).
template <class Scalar>
Estimate branch(const Estimate& x, bool pre_norm, const AnyNorm<Scalar>& norm,
                const Vector<Scalar>& scale, const auto& f) {
  Estimate y = f(pre_norm ? normalise(x, norm) : x);
  const Index dim = x.value.shape[3];
  y.for_each([&](Real& value, Real& error, std::size_t n) {
    const Real s = scale.size() > 0 ? at(scale, static_cast<Index>(n) % dim) : 1,
               before = x.value.data[n];
    error =
        x.error.data[n] + std::abs(s) * error + 2 * unit * (std::abs(before) + std::abs(s * value));
    value = before + s * value;
  });
  return pre_norm ? y : normalise(y, norm);
}

void compare(const char* what, const Tensor<float, 3>& is, const Estimate& should) {
  for (Index n = 0; n < is.size(); ++n) {
    const auto at = static_cast<std::size_t>(n);
    const Real x = should.value.data[at], bound = 2 * should.error.data[at] + 1e-35L;
    if (!(std::abs(is.data()[n] - x) <= bound)) {
      found(what, " gives ", is.data()[n], " and not ", static_cast<double>(x), " at ", n,
            ", bound ", static_cast<double>(bound));
    }
  }
}

Pairs draw_pairs(Draw& draw, Index batch, Index heads, Index queries, Index keys) {
  Pairs pairs(batch, heads, queries, keys);
  const int most = draw.one_of({100, 90, 50, 10});
  const std::uint64_t below = static_cast<std::uint64_t>(most);
  for (Index n = 0; n < pairs.size(); ++n) pairs.data()[n] = draw.word() % 100 < below;
  return pairs;
}

/// Weights of `Scalar`, numbers of float.
template <class Scalar>
void compose(Draw& draw) {
  DrawnBlock drawn = draw_block(draw);
  BlockConfig& config = drawn.config;
  if (draw.chance(20)) config.mlp.activation = Activation::relu;
  config.cross = draw.chance(40);
  TransformerBlock<Scalar> block(config, 1);
  shake(draw, block);
  config = block.config();
  const MultiHeadConfig& c = config.attention;
  const Index batch = draw.integer(1, 2), tokens = draw.length(20), keys = draw.length(20);
  const auto x = draw_tensor<float>(draw, batch, tokens, c.embed_dim),
             memory = draw_tensor<float>(draw, batch, keys, c.embed_dim);
  const Pairs own = draw_pairs(draw, batch, c.num_heads, tokens, tokens),
              others = draw_pairs(draw, batch, c.num_heads, tokens, keys);
  AttentionOptions options;
  options.pool = draw_pool(draw);
  std::ostringstream text;
  text << "weights of " << sizeof(Scalar) << " bytes, batch " << batch << ", tokens " << tokens
       << ", keys " << keys << ", embed_dim " << c.embed_dim << ", heads " << c.num_heads
       << ", key heads " << c.num_kv_heads << ", head_dim " << c.head_dim << ", bias " << c.bias
       << ", qk_norm " << c.qk_norm << ", rotary " << c.rotary.has_value() << ", hidden_dim "
       << config.mlp.hidden_dim << ", gated " << config.mlp.gated << ", activation "
       << static_cast<int>(config.mlp.activation) << ", layer norm " << (config.norm == Norm::layer)
       << ", pre_norm " << config.pre_norm << ", layer_scale " << config.layer_scale << ", cross "
       << config.cross;
  about() = text.str();

  const Estimate from(x), read(memory);
  compare("Linear", block.mlp.up_projection(x, options.pool),
          project(from, block.mlp.up_projection));
  compare("a norm", block.mlp_norm(x, options.pool), normalise(from, block.mlp_norm));
  compare("Mlp", block.mlp(x, options.pool), mlp_of(block.mlp, from));
  compare("MultiHeadAttention", block.attention(x, memory, memory, allow(others), options),
          attention_of(block.attention, drawn.slower, from, read, others));

  const auto attended = branch(
      from, config.pre_norm, block.attention_norm, block.attention_scale,
      [&](const Estimate& in) { return attention_of(block.attention, drawn.slower, in, in, own); });
  const auto crossed =
      !config.cross ? attended
                    : branch(attended, config.pre_norm, block.cross_norm, block.cross_scale,
                             [&](const Estimate& in) {
                               return attention_of(block.cross_attention, 1, in, read, others);
                             });
  const auto expected = branch(crossed, config.pre_norm, block.mlp_norm, block.mlp_scale,
                               [&](const Estimate& in) { return mlp_of(block.mlp, in); });
  if (config.cross) {
    compare("a block with a memory", block(x, memory, allow(own), allow(others), options),
            expected);
  } else {
    compare("a block", block(x, allow(own), options), expected);
  }
}

}  // namespace

/// Linear, norms, Mlp, MultiHeadAttention and TransformerBlock are what they are defined to be.
void compose_layers(Draw& draw) {
  draw.chance(50) ? compose<float>(draw) : compose<Eigen::bfloat16>(draw);
}

}  // namespace heed::fuzz
