#include "heed/policy/contract.hpp"

#include "heed/heed.hpp"
#include "support.hpp"

/// What a policy does not say of itself selects the path that is slow and right.
namespace heed::test {
namespace {

/// A dot product weighted by feature, with members of the names that the library's own scores have,
/// which say nothing.
struct Weighted : ScorePolicy {
  template <class Number>
  struct Bound {
    std::vector<double> weight = {1, -2, 3, .5, 1, 1, -1, 2, 1, 1, 2, 2, 1, 1, 1, 1};
    double width = 3, unit = 2, scale = 7, query_factor = 5;
    Number step(Number sum, Number q, Number k, Index feature) const {
      return sum + q * k * static_cast<Number>(weight[static_cast<std::size_t>(feature)]);
    }
    Number finish(Number sum) const { return sum; }
  };
  template <class Number>
  Bound<Number> bind(const Problem&) const {
    return {};
  }
};

/// The same for any T, so that it runs on vectors and is differentiated, but with features that
/// differ, so that no vector may hold features.
struct WeightedOnVectors : ScorePolicy {
  template <class Number>
  struct Bound {
    static constexpr ScoreTraits traits{.vectorised = true};
    std::vector<double> weight = Weighted::Bound<Number>().weight;
    template <class T>
    T step(const T& sum, const T& q, const T& k, Index feature) const {
      return sum + q * k * static_cast<Number>(weight.at(static_cast<std::size_t>(feature)));
    }
    template <class T>
    T finish(const T& sum) const {
      return sum;
    }
  };
  template <class Number>
  Bound<Number> bind(const Problem&) const {
    return {};
  }
};

struct Plus : ModifierPolicy {
  template <class Number>
  struct Bound {
    Number added = 1, shifts = 2, slopes = 3;
    Number operator()(Number s, Index, Index h, Index i, Index j) const {
      return s + static_cast<Number>(h + i - j) / 8;
    }
  };
  template <class Number>
  Bound<Number> bind(const Problem&) const {
    return {};
  }
};

template <class P>
auto weighted_dot(const P& p) {
  using Real = typename P::Real;
  const auto weights = Weighted::Bound<double>().weight;
  Real sum = 0;
  for (std::size_t c = 0; c < p.query.size(); ++c) {
    sum += p.query[c] * p.key[c] * static_cast<Real>(weights[c]);
  }
  return sum;
}

TEST(Contract, MembersWithoutTraitsSayNothing) {
  static_assert(!detail::score_traits<Weighted::Bound<float>>.vectorised);
  static_assert(!detail::trained<Weighted::Bound<float>> && !detail::trained<Plus::Bound<float>>);
  static_assert(detail::modifier_traits<Plus::Bound<float>>.effect == Effect::maps);
  for (const Index queries : {1, 30}) {
    const auto q = random({1, 1, queries, 16}, 1), k = random({1, 1, 70, 16}, 2),
               v = random({1, 1, 70, 16}, 3);
    const auto formula = [](const auto& p) { return weighted_dot(p); };
    const Expected<float> expected(q, k, v, formula, everything());
    const auto query = make<float, 2>(q), key = make<float, 2>(k), value = make<float, 2>(v);
    EXPECT_TRUE(expected.accepts(attention(query, key, value, Weighted())));
    EXPECT_TRUE(expected.accepts(attention(query, key, value, WeightedOnVectors())));
    const auto shifted = [](const auto& p) {
      const auto score = weighted_dot(p);
      return score + static_cast<std::remove_const_t<decltype(score)>>(p.h + p.i - p.j) / 8;
    };
    const Expected<float> modified(q, k, v, shifted, everything());
    EXPECT_TRUE(modified.accepts(attention(query, key, value, WeightedOnVectors() | Plus())));
  }
}

TEST(Contract, GradientsOfFeaturesThatDiffer) {
  // d score / d q_c = w_c k_c, so that gradients are those of the dot product of w q and k.
  const Matrix<double> q = make<double, 2>(random({1, 1, 9, 11}, 1));
  const Matrix<double> k = make<double, 2>(random({1, 1, 13, 11}, 2));
  const Matrix<double> v = make<double, 2>(random({1, 1, 13, 3}, 3));
  const Matrix<double> grad = make<double, 2>(random({1, 1, 9, 3}, 4));
  const auto all = Weighted::Bound<double>().weight;
  const Vector<double> w = Vector<double>::Map(all.data(), 11);
  const Matrix<double> wq = q * w.asDiagonal();
  const auto pass = attention_forward(q, k, v, WeightedOnVectors());
  const auto got = attention_backward(q, k, v, pass, grad, WeightedOnVectors());
  const auto plain = attention_forward(wq, k, v, dot_product());
  const auto expected = attention_backward(wq, k, v, plain, grad, dot_product());
  EXPECT_TRUE(near(reference(got.query), reference(Matrix<double>(expected.query * w.asDiagonal())),
                   1e-14));
  EXPECT_TRUE(near(reference(got.key), reference(expected.key), 1e-14));
  EXPECT_TRUE(near(reference(got.value), reference(expected.value), 1e-14));
}

TEST(Contract, TheUnitIsPartOfTheType) {
  const Problem problem{"test", 1, 1, 1, 2, 2, 4, 4, 4};
  using Plain = decltype(detail::bind_score<float, BinaryUnit>(dot_product(), problem));
  using Modified =
      decltype(detail::bind_score<float, BinaryUnit>(dot_product() | softcap(1), problem));
  using Own = decltype(detail::bind_score<float, BinaryUnit>(WeightedOnVectors(), problem));
  static_assert(std::is_same_v<Plain::Unit, BinaryUnit>);
  static_assert(std::is_same_v<Modified::Unit, NaturalUnit>);
  static_assert(std::is_same_v<Own::Unit, NaturalUnit>);
  const auto natural = detail::bind_score<double, NaturalUnit>(dot_product(3), problem);
  const auto binary = detail::bind_score<double, BinaryUnit>(dot_product(3), problem);
  // 3 and 3 log2(e).
  EXPECT_NEAR(natural.similarity.query_factor, 3, 1e-15);
  EXPECT_NEAR(binary.similarity.query_factor, 4.3280851226668903, 1e-15);
}

TEST(Contract, AMaskWithoutRowsIsAsked) {
  struct Odd : MaskPolicy {
    struct Bound {
      bool allows(Index, Index, Index i, Index j) const { return (i + j) % 2 == 1; }
    };
    Bound bind(const Problem&) const { return {}; }
  };
  const Problem problem{"test", 1, 1, 1, 3, 5, 4, 4, 4};
  const auto bound = detail::bind_mask(Odd() && causal(), problem);
  std::vector<Index> seen;
  // Query 1 of 3 stands at 1 + 5 - 3 = 3: keys 0 .. 3, of which 0 and 2 are odd with it.
  for_each_visible(bound, bound.row(0, 0, 1), 0, 0, 1, 0, 5, [&](Index j) { seen.push_back(j); });
  EXPECT_EQ(seen, (std::vector<Index>{0, 2}));
  seen.clear();
  for_each_visible(bound, bound.row(0, 0, 1), 0, 0, 1, 1, 3, [&](Index j) { seen.push_back(j); });
  EXPECT_EQ(seen, (std::vector<Index>{2}));
}

}  // namespace
}  // namespace heed::test
