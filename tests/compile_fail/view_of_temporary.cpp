// expect: a View would outlive the elements of this temporary
#include <heed/tensor.hpp>

auto call() { return heed::view(heed::Matrix<float>(2, 3)); }
