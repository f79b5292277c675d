#pragma once

// Caches of keys and values, and attention over them.
#include "heed/attention.hpp"
#include "heed/cache/attention.hpp"
#include "heed/cache/key_value_cache.hpp"
#include "heed/cache/paged.hpp"
