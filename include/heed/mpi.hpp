#pragma once

// Sequences longer than one machine holds, split over the ranks of an MPI communicator. Needs
// <mpi.h>; CMake: heed::mpi.
#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/mpi/layout.hpp"
#include "heed/mpi/ring_attention.hpp"
#include "heed/mpi/ring_attention_backward.hpp"
#include "heed/mpi/shard.hpp"
#include "heed/mpi/tree_decode.hpp"
