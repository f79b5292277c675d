// expect: heed: .*bool
#include <heed/heed.hpp>

auto call(const heed::Matrix<bool>& x) { return heed::batched_matmul(x, x); }
