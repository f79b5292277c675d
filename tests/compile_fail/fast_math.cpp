// expect: compile without -ffast-math
#undef __FINITE_MATH_ONLY__
#define __FINITE_MATH_ONLY__ 1
#include <heed/tensor.hpp>
