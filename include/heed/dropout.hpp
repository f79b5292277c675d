#pragma once

// Which weights dropout keeps.
#include "heed/policy/dropout.hpp"
