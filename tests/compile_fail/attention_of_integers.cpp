// expect: take no integers
#include <heed/attention.hpp>

auto call(const heed::Matrix<int>& x) { return heed::attention(x, x, x); }
