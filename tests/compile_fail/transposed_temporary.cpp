// expect: a View would outlive the elements of this temporary
#include <heed/tensor.hpp>

auto call() { return heed::transposed(heed::Tensor<float, 3>(2, 3, 4)); }
