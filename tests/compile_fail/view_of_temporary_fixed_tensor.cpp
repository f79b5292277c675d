// expect: heed: a view of a temporary would outlive its elements
#include <heed/heed.hpp>

auto call() { return heed::view(Eigen::TensorFixedSize<float, Eigen::Sizes<3, 4>>()); }
