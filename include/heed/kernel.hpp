#pragma once

// Scores of the distance between query and key, with which attention is kernel regression.
#include "heed/policy/score/distance.hpp"
