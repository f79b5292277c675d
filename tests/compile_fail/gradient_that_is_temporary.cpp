// expect: heed: the gradient of a parameter .*outlives
#include <heed/heed.hpp>

void call(const heed::Vector<float>& w) { heed::additive(w, heed::Vector<float>(w)); }
