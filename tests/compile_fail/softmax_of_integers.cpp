// expect: take no integers
#include <heed/softmax.hpp>

auto call(const heed::Matrix<int>& x) { return heed::softmax(x); }
