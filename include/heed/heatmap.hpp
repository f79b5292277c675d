#pragma once

// Weights as an SVG picture.
#include "heed/io/heatmap.hpp"
