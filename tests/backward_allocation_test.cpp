#include "allocation_support.hpp"
#include "backward_support.hpp"

#ifdef HEED_TEST_COUNTS_ALLOCATIONS
namespace heed::test {
namespace {

template <class Scalar, class Score, class Mask>
void expect_none(const Sizes& sizes, const Score& score, const Mask& mask,
                 const AttentionOptions& options = {}) {
  const Inputs in(sizes);
  const auto q = make<Scalar, 4>(in.query), k = make<Scalar, 4>(in.key),
             v = make<Scalar, 4>(in.value), grad_output = make<Scalar, 4>(grad_output_for(in));
  const auto pass = attention_forward(q, k, v, score, mask, options);
  AttentionGradients gradients{q, k, v};
  const auto call = [&] {
    attention_backward_into(gradients, q, k, v, pass, grad_output, score, mask, options);
  };
  call();
  EXPECT_EQ(allocations_of(call), 0) << text(sizes);
}

constexpr Sizes heads = {.batch = 2,
                         .heads = 4,
                         .key_heads = 2,
                         .queries = 49,
                         .keys = 193,
                         .dim = 9,
                         .width = 7},
                long_rows = {.queries = 800, .keys = 100, .dim = 8, .width = 16};

TEST(BackwardAllocations, ASecondCallOfTheSameShapeMakesNone) {
  for (const Sizes& sizes : {heads, long_rows}) {
    expect_none<float>(sizes, scaled_dot_product(), no_mask());
    expect_none<Eigen::half>(sizes, scaled_dot_product(), causal());
    expect_none<double>(sizes, gaussian(.5) | softcap(3),
                        mask_if([](Index, Index, Index i, Index j) { return (i + j) % 3 != 0; }));
  }
}

TEST(BackwardAllocations, NorWithParametersAndDropout) {
  Vector<float> w = vector_of<float>(9, 4), dw = w, slopes = vector_of<float>(4, 5),
                dslopes = slopes;
  Matrix<float> m = make<float, 2>(random({1, 1, 9, 9}, 6)), dm = m;
  Matrix<float> pairs = make<float, 2>(random({1, 1, 49, 193}, 7)), dpairs = pairs;
  const AttentionOptions options{.dropout = .2, .seed = 1};
  expect_none<float>(heads, additive(w, dw), causal(), options);
  expect_none<float>(heads, bilinear(m, dm) | bias(pairs, dpairs) | alibi(slopes, dslopes),
                     causal(), options);
}

}  // namespace
}  // namespace heed::test
#endif
