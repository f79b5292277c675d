#pragma once

// Additive attention with its projections.
#include "heed/module.hpp"
#include "heed/module/additive_attention.hpp"
