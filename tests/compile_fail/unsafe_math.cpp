// expect: compile without -funsafe-math-optimizations
#undef __ASSOCIATIVE_MATH__
#define __ASSOCIATIVE_MATH__ 1
#include <heed/tensor.hpp>
