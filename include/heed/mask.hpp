#pragma once

// Which keys a query may see; combined with &&, || and !.
#include "heed/policy/mask/allow.hpp"
#include "heed/policy/mask/lengths.hpp"
#include "heed/policy/mask/logic.hpp"
#include "heed/policy/mask/mask_if.hpp"
#include "heed/policy/mask/offsets.hpp"
#include "heed/policy/mask/range.hpp"
#include "heed/policy/mask/segments.hpp"
