#pragma once

// Vectors for tokens, and scores of tokens for vectors.
#include "heed/module.hpp"
#include "heed/module/embedding.hpp"
