#pragma once

// Softmax over the last axis, with masks and gradients.
#include "heed/mask.hpp"
#include "heed/operator/softmax.hpp"
