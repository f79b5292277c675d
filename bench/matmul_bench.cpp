#include <heed/matmul.hpp>

#include "support.hpp"

#ifdef HEED_BENCH_OPENBLAS
#include <cblas.h>
#endif

namespace heed_bench {
namespace {

struct Shape {
  Index batch, m, n, k;
  bool transposed_b;  // b is stored (n, k)
  double goal;
};

struct Operands {
  Tensor<float, 4> a, b, c;  // (batch, 1, rows, cols)
};

Expected reference(const Operands& x, const Shape& s) {
  Expected expected(s.batch, 1, s.m, s.n);
  for (Index batch = 0; batch < s.batch; ++batch) {
    for (std::size_t row = 0; row < expected.rows.size(); ++row) {
      for (Index j = 0; j < s.n; ++j) {
        double sum = 0;
        for (Index p = 0; p < s.k; ++p) {
          const float b = s.transposed_b ? x.b(batch, 0, j, p) : x.b(batch, 0, p, j);
          sum += static_cast<double>(x.a(batch, 0, expected.rows[row], p)) * static_cast<double>(b);
        }
        expected.values(batch, 0, static_cast<Index>(row), j) = sum;
      }
    }
  }
  return expected;
}

Case make(const std::string& name, const Shape& s) {
  auto x = std::make_shared<Operands>();
  x->a = random<float, 4>({s.batch, 1, s.m, s.k}, 1);
  x->b = s.transposed_b ? random<float, 4>({s.batch, 1, s.n, s.k}, 2)
                        : random<float, 4>({s.batch, 1, s.k, s.n}, 2);
  x->c.resize(s.batch, 1, s.m, s.n);
  const Expected expected = reference(*x, s);
  // Inputs are at most sqrt(3): k roundings of at most k * 3 in the worst order.
  const double bound = 3e-7 * static_cast<double>(s.k);
  const auto check = [&](const char* who, const std::function<void()>& run) {
    return verified(name + ": " + who, run, [x] { return heed::view(x->c); }, expected, bound);
  };

  Case c;
  c.data = x;
  c.flops = 2.0 * static_cast<double>(s.batch * s.m * s.n * s.k);
  c.goal = {Measure::peak, s.goal, true};
  c.heed = check("heed", [x = x.get(), s] {
    if (s.transposed_b) {
      heed::batched_matmul_into(x->c, x->a, heed::transposed(std::as_const(x->b)));
    } else {
      heed::batched_matmul_into(x->c, x->a, x->b);
    }
  });
  c.eigen = check("Eigen", [x = x.get(), s] {
    for (Index batch = 0; batch < s.batch; ++batch) {
      const auto a = head(x->a, batch, 0), b = head(x->b, batch, 0);
      if (s.transposed_b) {
        head(x->c, batch, 0).noalias() = a * b.transpose();
      } else {
        head(x->c, batch, 0).noalias() = a * b;
      }
    }
  });
#ifdef HEED_BENCH_OPENBLAS
  c.openblas = check("OpenBLAS", [x = x.get(), s] {
    const int m = static_cast<int>(s.m), n = static_cast<int>(s.n), k = static_cast<int>(s.k);
    for (Index batch = 0; batch < s.batch; ++batch) {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, s.transposed_b ? CblasTrans : CblasNoTrans, m, n, k,
                  1.0F, x->a.data() + batch * m * k, k, x->b.data() + batch * n * k,
                  s.transposed_b ? k : n, 0.0F, x->c.data() + batch * m * n, n);
    }
  });
#endif
  return c;
}

void add_all() {
  const Shape shapes[] = {
      {1, 64, 64, 64, false, .92},      {1, 128, 128, 64, false, .92},
      {1, 128, 64, 128, false, .95},    {1, 196, 200, 64, false, .92},
      {1, 196, 64, 196, false, .92},    {1, 512, 512, 64, false, .90},
      {1, 512, 64, 512, false, .90},    {1, 1024, 1024, 64, false, .90},
      {1, 512, 512, 512, false, .90},   {1, 1024, 1024, 1024, false, .90},
      {16, 64, 64, 64, false, .93},     {16, 64, 128, 64, false, .98},
      {16, 128, 64, 64, false, .88},    {1, 64, 64, 64, true, .92},
      {1, 128, 128, 64, true, .92},     {1, 196, 200, 64, true, .92},
      {1, 512, 512, 64, true, .90},     {1, 512, 64, 512, true, .90},
      {1, 1024, 1024, 64, true, .90},   {1, 512, 512, 512, true, .90},
      {1, 1024, 1024, 1024, true, .90},
  };
  for (const Shape& s : shapes) {
    add(join("matmul/", s.transposed_b ? "ABt/" : "AB/", s.batch == 1 ? "" : join(s.batch, "x"),
             s.m, "x", s.n, "x", s.k),
        [s](const std::string& name) { return make(name, s); });
  }
}

const Suite suite(add_all);

}  // namespace
}  // namespace heed_bench
