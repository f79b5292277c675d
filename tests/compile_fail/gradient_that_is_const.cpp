// expect: heed: the gradient of a parameter cannot be written to
#include <heed/heed.hpp>

void call(const heed::Vector<float>& w, const heed::Vector<float>& dw) { heed::additive(w, dw); }
