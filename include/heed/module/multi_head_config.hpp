#pragma once

#include <algorithm>
#include <array>
#include <optional>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/operator/rotary.hpp"
#include "heed/operator/rotary_config.hpp"
#include "heed/simd/lanes.hpp"

namespace heed {

/// The widths and heads of a MultiHeadAttention, and what is done to its queries and keys.
struct MultiHeadConfig {
  Index embed_dim = 0;     ///< width of queries and outputs
  Index num_heads = 1;     ///< divides embed_dim, unless head_dim is given
  Index num_kv_heads = 0;  ///< divides num_heads; 0: num_heads
  Index key_dim = 0;       ///< width of the keys given; 0: embed_dim
  Index value_dim = 0;     ///< width of the values given; 0: embed_dim
  bool bias = false;       ///< whether all four projections begin with a bias
  Index head_dim = 0;      ///< width of a head; 0: embed_dim / num_heads
  /// How queries and keys are rotated by their positions; none: they are not.
  std::optional<RotaryConfig> rotary{};
  /// Whether each head of queries and keys is divided by its root mean square (epsilon 1e-6) and
  /// multiplied by a learned weight, before the rotation, as in Qwen3 and Gemma 3.
  bool qk_norm = false;
};

namespace detail {

/// With the defaults filled in. std::invalid_argument where heads do not divide, or the rotation
/// does not fit them.
template <class Scalar>
MultiHeadConfig completed(const char* function, MultiHeadConfig c) {
  if (c.num_kv_heads == 0) c.num_kv_heads = c.num_heads;
  if (c.key_dim == 0) c.key_dim = c.embed_dim;
  if (c.value_dim == 0) c.value_dim = c.embed_dim;
  if (c.embed_dim < 1 || c.num_heads < 1 || c.num_kv_heads < 1 || c.key_dim < 1 ||
      c.value_dim < 1) {
    fail(function, "embed_dim ", c.embed_dim, ", num_heads ", c.num_heads, ", num_kv_heads ",
         c.num_kv_heads, ", key_dim ", c.key_dim, " and value_dim ", c.value_dim,
         " must be positive");
  }
  if (c.head_dim < 0) fail(function, "head_dim is ", c.head_dim);
  if (c.head_dim == 0) {
    if (c.embed_dim % c.num_heads != 0) {
      fail(function, "num_heads ", c.num_heads, " does not divide embed_dim ", c.embed_dim,
           "; head_dim may be given in place of it");
    }
    c.head_dim = c.embed_dim / c.num_heads;
  }
  if (c.num_heads % c.num_kv_heads != 0) {
    fail(function, "num_kv_heads ", c.num_kv_heads, " does not divide num_heads ", c.num_heads);
  }
  const Index widest = std::max({c.embed_dim, c.key_dim, c.value_dim});
  check_extents(function, "a weight of (num_heads, head_dim, width of inputs)",
                std::array{c.num_heads, c.head_dim, widest});
  if (c.rotary) {
    if (!Laned<Accumulator<Scalar>>) {
      fail(function, "rotary positions are for float, double, half and bfloat16");
    }
    if (c.rotary->axes != 1) {
      fail(function, "tokens have one position each, but the rotation has ", c.rotary->axes,
           " axes");
    }
    rotated_width(function, *c.rotary, c.head_dim);
  }
  return c;
}

}  // namespace detail
}  // namespace heed
