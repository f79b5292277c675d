#pragma once

// Weights in safetensors files; needs nlohmann_json.
#include "heed/io/load_torch.hpp"
#include "heed/io/safetensors.hpp"
