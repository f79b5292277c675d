#pragma once

// How well a key matches a query.
#include "heed/policy/score/additive.hpp"
#include "heed/policy/score/bilinear.hpp"
#include "heed/policy/score/distance.hpp"
#include "heed/policy/score/dot_product.hpp"
#include "heed/policy/score/pairwise.hpp"
#include "heed/simd/select.hpp"
