#pragma once

// The feed-forward network of a transformer.
#include "heed/module.hpp"
#include "heed/module/mlp.hpp"
