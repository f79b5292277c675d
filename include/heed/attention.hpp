#pragma once

// Attention, its gradients, and passes over parts of the keys; with the scores and masks to call it
// with.
#include "heed/kernel.hpp"
#include "heed/mask.hpp"
#include "heed/modifier.hpp"
#include "heed/operator/attention.hpp"
#include "heed/operator/attention_backward.hpp"
#include "heed/operator/merge.hpp"
#include "heed/policy/options.hpp"
#include "heed/score.hpp"
