#include "backward_support.hpp"

namespace heed::test {
namespace {

template <class Mask>
void check(const Mask& mask) {
  expect_central_differences(Inputs(few), [] { return scaled_dot_product(); }, mask);
}

TEST(MaskGradients, CentralDifferencesUnderEveryMask) {
  check(no_mask());
  check(valid_lens({0, 4}));
  check(causal());
  check(causal(Align::top_left));
  check(sliding_window(1, 1));
  check(prefix(2) || causal());
  check(segments({0, 0, 1, 1, 2}, {0, 0, 0, 1, 1, 2}));
  const auto allowed = [](auto, auto, Index i, Index j) { return (3 * i + j) % 4 < 2 && i != 3; };
  check(mask_if(allowed));
  Tensor<bool, 2> pairs(5, 6);
  for_each_index({1, 1, 5, 6},
                 [&](Index b, Index h, Index i, Index j) { pairs(i, j) = allowed(b, h, i, j); });
  check(allow(pairs) && !prefix(1));
}

}  // namespace
}  // namespace heed::test
