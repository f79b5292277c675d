// Compiled without exceptions: what fits is computed, and what does not is refused with the message
// that the exception would have, and ends the program.
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include <heed/heed.hpp>

int main() {
  const heed::Matrix<float> q = heed::Matrix<float>::Ones(2, 4),
                            k = heed::Matrix<float>::Ones(3, 4);
  // Three equal keys: the mean of the values 1, 2 and 3.
  heed::Matrix<float> v(3, 1);
  v << 1, 2, 3;
  const float mean = heed::attention(q, k, v)(1, 0);
  if (!(mean > 1.999F && mean < 2.001F)) {
    std::printf("wrong: %g\n", static_cast<double>(mean));
    return 1;
  }
  std::signal(SIGABRT, [](int) { std::_Exit(0); });
  const heed::Matrix<float> five = heed::Matrix<float>::Ones(5, 1);
  heed::attention(q, k, five);
  std::puts("wrong: not refused");
  return 1;
}
