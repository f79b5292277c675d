#pragma once

// What is done to a score, in order: score | modifier | modifier.
#include "heed/policy/modifier/alibi.hpp"
#include "heed/policy/modifier/bias.hpp"
#include "heed/policy/modifier/chain.hpp"
#include "heed/policy/modifier/relative_bias.hpp"
#include "heed/policy/modifier/score_mod.hpp"
#include "heed/policy/modifier/sink.hpp"
#include "heed/policy/modifier/softcap.hpp"
