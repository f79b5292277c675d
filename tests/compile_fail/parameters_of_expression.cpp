// expect: call .eval
#include <heed/attention.hpp>

auto score_of(const heed::Matrix<float>& q) {
  return attention(q, q, q, heed::additive(heed::Vector<float>::Ones(8)));
}
