#pragma once

#include "heed/core/integers.hpp"
