#pragma once

// Views of Eigen's types, and what a result is.
#include "heed/core/view.hpp"
