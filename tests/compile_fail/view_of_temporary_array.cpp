// expect: heed: a view of a temporary would outlive its elements
#include <heed/heed.hpp>

auto call(Eigen::ArrayXXf x) { return heed::view(std::move(x)); }
