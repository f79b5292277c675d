#include "heed/core/key_source.hpp"

#include "heed/engine/dispatch.hpp"
#include "heed/policy/mask/range.hpp"
#include "heed/policy/modifier/softcap.hpp"
#include "heed/policy/score/dot_product.hpp"
#include "support.hpp"

/// Engines ask for runs of rows: rows that lie in pages give what contiguous rows give, forwards
/// and backwards, on every engine.
namespace heed::detail {
namespace {

using test::near;
using test::reference;

/// Rows in pages of `length`, which lie in memory in reverse order with NaN between them.
template <class Scalar>
struct Pages {
  using Element = Scalar;
  Index length, count, dim;
  std::vector<Scalar> memory;

  Pages(const View<const Scalar, 4>& rows, Index page_length)
      : length(page_length),
        count((rows.shape[2] + page_length - 1) / page_length),
        dim(rows.shape[3]),
        memory(static_cast<std::size_t>(rows.shape[0] * rows.shape[1] * count * stride()),
               std::numeric_limits<Scalar>::quiet_NaN()),
        heads(rows.shape[1]) {
    test::for_each_index(rows.shape, [&](Index b, Index h, Index j, Index c) {
      memory[static_cast<std::size_t>(offset(b, h, j) + c)] = rows(b, h, j, c);
    });
  }
  Index stride() const { return length * dim + 3; }
  Index offset(Index b, Index h, Index j) const {
    return ((b * heads + h) * count + count - 1 - j / length) * stride() + j % length * dim;
  }
  Index width() const { return dim; }
  Run<Scalar> run(Index b, Index h, Index first, Index most) const {
    return {memory.data() + offset(b, h, first), dim, 1, std::min(most, length - first % length)};
  }

 private:
  Index heads;
};

struct Shape {
  Index queries, keys, page;
};

template <class Scalar, class Source>
auto run_on(const Problem& problem, const View<const Scalar, 4>& q, const Source& keys,
            const Source& values, const View<const Scalar, 4>& grad) {
  const auto score = bind_score<Scalar, BinaryUnit>(scaled_dot_product() | softcap(4), problem);
  const auto mask = bind_mask(causal(), problem);
  const Dropout dropout("test", 0, 0);
  Tensor<Scalar, 4> out(problem.batch, problem.heads, problem.queries, problem.value_dim);
  Tensor<Scalar, 3> lse(problem.batch, problem.heads, problem.queries);
  const ForwardOutput<Scalar, Scalar> output{view(out), view(lse)};
  const BoundCall<Scalar, Source, Source, decltype(score), decltype(score), decltype(mask),
                  ForwardOutput<Scalar, Scalar>>
      call{problem, q, keys, values, score, score, mask, dropout, output};
  run_first_that_suits<Decode, Forward, Reference>(call, nullptr);

  Tensor<Scalar, 4> dq(q.shape), dk(problem.batch, problem.kv_heads, problem.keys, problem.key_dim),
      dv(problem.batch, problem.kv_heads, problem.keys, problem.value_dim);
  using Gradients = BackwardOutput<Scalar, Scalar, Scalar, Scalar, Scalar, Scalar>;
  const Gradients gradients{view(out), view(lse), grad, view(dq), view(dk), view(dv)};
  const BoundCall<Scalar, Source, Source, decltype(score), decltype(score), decltype(mask),
                  Gradients>
      back{problem, q, keys, values, score, score, mask, dropout, gradients};
  run_first_that_suits<Backward, ReferenceBackward>(back, nullptr);
  return std::array{reference(out), reference(dq), reference(dk), reference(dv)};
}

TEST(KeySource, PagesGiveWhatATensorGives) {
  for (const Shape& shape : {Shape{1, 70, 16}, Shape{1, 5, 1}, Shape{2, 300, 7}, Shape{40, 65, 16},
                             Shape{33, 33, 64}, Shape{100, 230, 3}}) {
    SCOPED_TRACE(shape.keys);
    const Index dim = 16;
    const auto q = test::make<float, 4>(test::random({2, 4, shape.queries, dim}, 1));
    const auto k = test::make<float, 4>(test::random({2, 2, shape.keys, dim}, 2));
    const auto v = test::make<float, 4>(test::random({2, 2, shape.keys, dim}, 3));
    const auto g = test::make<float, 4>(test::random({2, 4, shape.queries, dim}, 4));
    const Problem problem{"test", 2, 4, 2, shape.queries, shape.keys, dim, dim, dim, 4};
    const View<const float, 4> query = view(q), grad = view(g);
    const auto whole =
        run_on<float>(problem, query, TensorRows<float>{view(k)}, TensorRows<float>{view(v)}, grad);
    const auto paged = run_on<float>(problem, query, Pages<float>(view(k), shape.page),
                                     Pages<float>(view(v), shape.page), grad);
    for (std::size_t n = 0; n < whole.size(); ++n) {
      EXPECT_TRUE(near(paged[n], whole[n], 4e-6)) << n;
    }
  }
}

TEST(KeySource, RunsCoverWhatIsAskedForOnce) {
  const auto rows = test::make<float, 4>(test::generate(
      {1, 2, 23, 3}, [](Index, Index h, Index j, Index) { return double(100 * h + j); }));
  const Pages<float> pages(view(rows), 4);
  std::vector<float> seen;
  for_each_source_run(pages, 0, 1, 2, 15, [&](Index first, const auto& run) {
    EXPECT_EQ(first, static_cast<Index>(seen.size()));
    for (Index r = 0; r < run.count; ++r) seen.push_back(run.template at<float>(r, 0));
  });
  ASSERT_EQ(seen.size(), 15U);
  for (std::size_t n = 0; n < 15; ++n) EXPECT_EQ(seen[n], static_cast<float>(102 + n));
}

}  // namespace
}  // namespace heed::detail
