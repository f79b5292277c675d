// One query over two keys, checked by hand: the weights are those of softmax(1.1 * 1.6, 1.1 * 0.7).
#include <cmath>
#include <cstdio>

#include <heed/heed.hpp>

int main() {
  heed::Matrix<double> query(1, 1);
  heed::Matrix<double> key(2, 1);
  query << 1.1;
  key << 1.6, 0.7;
  const heed::Matrix<double> output =
      heed::attention(query, key, key, heed::dot_product(), heed::causal());
  const double error = std::abs(output(0, 0) - 1.3561791301);
  std::printf("%.10f\n", output(0, 0));
  return output.size() == 1 && error <= 1e-10 ? 0 : 1;
}
