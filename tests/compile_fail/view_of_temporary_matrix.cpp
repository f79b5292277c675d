// expect: heed: a view of a temporary would outlive its elements
#include <heed/heed.hpp>

auto call() { return heed::view(heed::Matrix<float>(3, 4)); }
