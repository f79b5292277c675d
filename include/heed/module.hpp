#pragma once

// What modules share: passes, gradients, parameters.
#include "heed/attention.hpp"
#include "heed/linear.hpp"
#include "heed/module/pass.hpp"
