#pragma once

// Rotary positions: queries and keys turned by angles that grow with their positions.
#include "heed/operator/rotary.hpp"
