#pragma once

// Attention and a feed-forward network, each added to what it reads and normalised.
#include "heed/mlp.hpp"
#include "heed/module/block.hpp"
#include "heed/multi_head_attention.hpp"
#include "heed/norm.hpp"
