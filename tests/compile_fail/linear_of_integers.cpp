// expect: heed: .*integers
#include <heed/heed.hpp>

heed::Linear<int> layer;
