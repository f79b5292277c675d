#pragma once

// Batches of sequences of different lengths, without padding, and attention over them.
#include "heed/attention.hpp"
#include "heed/core/ragged.hpp"
