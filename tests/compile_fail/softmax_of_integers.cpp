// expect: heed: .*integers
#include <heed/heed.hpp>

auto call(const heed::Matrix<int>& scores) { return heed::softmax(scores); }
