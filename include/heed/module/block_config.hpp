#pragma once

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/module/mlp.hpp"
#include "heed/module/multi_head_config.hpp"
#include "heed/operator/norm.hpp"

namespace heed {

/// The parts of a TransformerBlock and how they are joined.
struct BlockConfig {
  MultiHeadConfig attention{};  ///< of x to itself: key_dim and value_dim are embed_dim
  MlpConfig mlp{};              ///< dim 0: embed_dim
  Norm norm = Norm::layer;
  /// Whether a branch reads its input normalised (Xiong et al., "On layer normalization in the
  /// transformer architecture", 2020), or the sum of the input and the branch is normalised
  /// (Vaswani et al., 2017).
  bool pre_norm = true;
  /// Whether a branch is multiplied by a learned factor for each feature (Touvron et al., "Going
  /// deeper with image transformers", 2021).
  bool layer_scale = false;
  bool cross = false;   ///< whether there is attention to a memory, after that of x to itself
  double norm_eps = 0;  ///< 0: the default of the norm
  /// Attention to the memory, whose width is key_dim and value_dim; embed_dim 0: heads and widths
  /// of `attention`, without a rotation.
  MultiHeadConfig cross_attention{};
  double initial_scale = 1e-5;  ///< what the factors of layer_scale start at
};

namespace detail {

/// With the widths filled in. std::invalid_argument where the parts do not fit one another.
inline BlockConfig completed(const char* function, BlockConfig c) {
  const Index dim = c.attention.embed_dim;
  if (c.mlp.dim == 0) c.mlp.dim = dim;
  if (c.mlp.dim != dim) {
    fail(function, "the mlp has a dim of ", c.mlp.dim, ", the attention an embed_dim of ", dim);
  }
  for (const Index width : {c.attention.key_dim, c.attention.value_dim}) {
    if (width != 0 && width != dim) {
      fail(function, "attention of x to itself has keys or values of ", width,
           " features for an embed_dim of ", dim);
    }
  }
  if (c.cross_attention.embed_dim == 0) {
    c.cross_attention = c.attention;
    c.cross_attention.rotary.reset();
  }
  if (c.cross && c.cross_attention.embed_dim != dim) {
    fail(function, "cross_attention has an embed_dim of ", c.cross_attention.embed_dim,
         ", attention of ", dim);
  }
  return c;
}

}  // namespace detail
}  // namespace heed
