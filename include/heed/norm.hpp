#pragma once

// Rows brought to mean 0 and variance 1, or to mean square 1.
#include "heed/module.hpp"
#include "heed/module/norm.hpp"
