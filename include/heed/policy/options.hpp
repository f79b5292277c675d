#pragma once

#include <cstdint>
#include <unsupported/Eigen/CXX11/ThreadPool>

namespace heed {

/// How a call of attention runs, whatever its score and mask.
struct AttentionOptions {
  double dropout = 0;      ///< probability that a weight is dropped, in [0, 1)
  std::uint64_t seed = 0;  ///< of the dropout; the same seed drops the same weights
  Eigen::ThreadPoolInterface* pool = nullptr;  ///< null: the calling thread alone
};

}  // namespace heed
