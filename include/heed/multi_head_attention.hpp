#pragma once

// Heads of attention side by side, with their projections.
#include "heed/module.hpp"
#include "heed/module/multi_head_attention.hpp"
