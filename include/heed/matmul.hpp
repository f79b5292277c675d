#pragma once

// Products of matrices, pair by pair.
#include "heed/operator/matmul.hpp"
