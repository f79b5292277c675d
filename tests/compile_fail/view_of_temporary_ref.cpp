// expect: heed: a view of a temporary would outlive its elements
#include <heed/heed.hpp>

auto call(const Eigen::MatrixXf& x) { return heed::view(Eigen::Ref<const Eigen::MatrixXf>(2 * x)); }
