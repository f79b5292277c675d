#pragma once

// The projection of every module, and the walk over parameters.
#include "heed/module/linear.hpp"
#include "heed/module/parameters.hpp"
