#pragma once

// Attention over Eigen, in reading order.

#include "heed/version.hpp"

// What a tensor is: views of anything of Eigen's.
#include "heed/tensor.hpp"

// What a user writes: which keys a query may see, how well they match, which weights are dropped.
#include "heed/dropout.hpp"
#include "heed/kernel.hpp"
#include "heed/mask.hpp"
#include "heed/modifier.hpp"
#include "heed/score.hpp"

// Operators, without weights of their own.
#include "heed/attention.hpp"
#include "heed/matmul.hpp"
#include "heed/ragged.hpp"
#include "heed/rotary.hpp"
#include "heed/softmax.hpp"

// Modules, which own weights.
#include "heed/additive_attention.hpp"
#include "heed/embedding.hpp"
#include "heed/linear.hpp"
#include "heed/mlp.hpp"
#include "heed/module.hpp"
#include "heed/multi_head_attention.hpp"
#include "heed/norm.hpp"
#include "heed/transformer_block.hpp"

// Caches of keys and values, for attention token by token.
#include "heed/cache.hpp"
