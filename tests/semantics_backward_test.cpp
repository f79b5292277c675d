#include <functional>

#include "heed/heed.hpp"
#include "semantics_support.hpp"

/// The semantics of one call on every way to its gradients: the fused engine, the definition, and
/// ragged batches.
namespace heed::test {
namespace {

constexpr Index keys = 110, width = 7;

Reference grad_output() { return random({batch, heads, queries, width}, 9); }

struct Gradients {
  Reference query, key, value, added;
};

/// Its slope at a score of -infinity is infinite. Adds to nothing: the gradient of `added` is
/// counted from 0.
template <class Scalar>
auto trained_score(double scale, const Tensor<Scalar, 4>& added, Tensor<Scalar, 4>& gradient) {
  gradient = added.constant(Scalar(0));
  return dot_product(scale) | bias(added, gradient) | softcap(2) |
         score_mod([](auto s, auto, auto h, auto i, auto j) {
           using std::abs;
           return s * (h + 1.F) + s * abs(s) / 16 + (j - i) / 2 / 16;
         });
}

template <class Scalar>
Gradients backward(const Call& c, const Reference& grad, const AttentionOptions& options) {
  const auto q = make<Scalar, 4>(c.query), k = make<Scalar, 4>(c.key), v = make<Scalar, 4>(c.value),
             added = make<Scalar, 4>(c.added);
  Tensor<Scalar, 4> d_added;
  const auto score = trained_score(c.scale, added, d_added);
  const Shown mask(c, 0, 0);
  const auto pass = attention_forward(q, k, v, score, mask, options);
  const auto g = attention_backward(q, k, v, pass, make<Scalar, 4>(grad), score, mask, options);
  return {reference(g.query), reference(g.key), reference(g.value), reference(d_added)};
}

Gradients over_ragged(const Call& c, const Reference& grad, const AttentionOptions& options) {
  const auto q = tokens(c.query), k = tokens(c.key), v = tokens(c.value);
  const auto added = make<float, 4>(c.added);
  Tensor<float, 4> d_added;
  const auto score = trained_score(c.scale, added, d_added);
  const Shown mask(c, 0, 0);
  const auto rq = ragged(q, {0, queries, 2 * queries}), rk = ragged(k, {0, keys, 2 * keys}),
             rv = ragged(v, {0, keys, 2 * keys});
  const auto pass = attention_forward(rq, rk, rv, score, mask, options);
  const auto g = attention_backward(rq, rk, rv, pass, tokens(grad), score, mask, options);
  return {apart(g.query), apart(g.key), apart(g.value), reference(d_added)};
}

struct Way {
  const char* name;
  std::function<Gradients(const Call&, const Reference&, const AttentionOptions&)> run;
};
const std::vector<Way> ways = {
    {"fused", backward<float>}, {"definition", backward<long double>}, {"ragged", over_ragged}};

void for_each_call(const auto& body) {
  for (const bool pairs : {false, true}) {
    for (const Index left : {-1, 40}) {
      if (pairs && left >= 0) continue;
      SCOPED_TRACE(::testing::Message() << "pairs " << pairs << ", left " << left);
      Call call(keys, width);
      call.pairs = pairs;
      call.left = left;
      body(call);
    }
  }
}

/// Sums over up to 37 queries and 110 keys, of numbers of about 1.
constexpr double bound = 128 * 0x1p-23;

void expect_near(const Gradients& actual, const Gradients& expected) {
  EXPECT_TRUE(near(actual.query, expected.query, bound)) << "query";
  EXPECT_TRUE(near(actual.key, expected.key, bound)) << "key";
  EXPECT_TRUE(near(actual.value, expected.value, bound)) << "value";
  EXPECT_TRUE(near(actual.added, expected.added, bound)) << "bias";
}

/// The slope of the loss along a direction of each input, by the forward pass of the definition.
TEST(BackwardPaths, GiveTheSlopeOfTheDefinition) {
  for_each_call([](const Call& call) {
    const Reference grad = grad_output();
    const AttentionOptions options{.dropout = .3, .seed = 4};
    const auto loss = [&](const Call& c) {
      const auto added = make<double, 4>(c.added);
      Tensor<double, 4> unused;
      const auto out =
          attention_with_weights(make<double, 4>(c.query), make<double, 4>(c.key),
                                 make<double, 4>(c.value), trained_score(c.scale, added, unused),
                                 Shown(c, 0, 0), options)
              .output;
      double sum = 0;
      for (Index n = 0; n < out.size(); ++n) sum += out.data()[n] * grad.data()[n];
      return sum;
    };
    const auto slope = [&](Reference Call::* input, const Reference& direction) {
      constexpr double step = 1e-6;
      Call up = call, down = call;
      up.*input = call.*input + direction * step;
      down.*input = call.*input - direction * step;
      return (loss(up) - loss(down)) / (2 * step);
    };
    const std::array<Reference Call::*, 4> inputs = {&Call::query, &Call::key, &Call::value,
                                                     &Call::added};
    for (const Way& way : ways) {
      SCOPED_TRACE(way.name);
      const Gradients g = way.run(call, grad, options);
      const Reference* gradients[] = {&g.query, &g.key, &g.value, &g.added};
      for (std::size_t n = 0; n < 4; ++n) {
        const Reference direction = random((call.*inputs[n]).dimensions(), 20 + n);
        double sum = 0;
        for (Index m = 0; m < direction.size(); ++m) {
          sum += direction.data()[m] * gradients[n]->data()[m];
        }
        const double expected = slope(inputs[n], direction);
        EXPECT_TRUE(std::abs(sum - expected) <= 2e-5 * (1 + std::abs(expected)))
            << "input " << n << ": " << sum << " and not " << expected;
      }
    }
  });
}

/// One number of one input of batch entry 0 is NaN. With P of a query NaN where it sees a NaN of
/// the scores, and its delta where it sees any, what it has to do with becomes NaN: its dQ, and dK
/// and dV of the keys that it sees; but dV stays if only delta is NaN. All else keeps its value.
TEST(BackwardPaths, NaNReachesWhatSeesItAndNothingElse) {
  for_each_call([](const Call& call) {
    for (const Way& way : ways) {
      const Reference grad = grad_output();
      const Gradients before = way.run(call, grad, {});
      for (const char* what : {"query", "key", "value", "bias", "grad"}) {
        for (const Index place : {Index(3), Index(31)}) {
          SCOPED_TRACE(::testing::Message() << way.name << ", NaN in " << what << " " << place);
          Call dirty = call;
          Reference dirty_grad = grad;
          const Index key = keys - queries - 8 + place;
          const bool by_key = *what == 'k' || *what == 'v';
          if (*what == 'q') dirty.query(0, 2, place, 3) = nan;
          if (*what == 'k') dirty.key(0, 1, key, 3) = nan;
          if (*what == 'v') dirty.value(0, 1, key, 3) = nan;
          if (*what == 'b') dirty.added(0, 2, place, key) = nan;
          if (*what == 'g') dirty_grad(0, 2, place, 3) = nan;
          const auto reached = [&](Index h, Index i) {
            if (by_key) return h >= 2 && call.shows(0, h, i, key);
            return h == 2 && i == place && (*what != 'b' || call.shows(0, h, i, key));
          };
          const Gradients after = way.run(dirty, dirty_grad, {});
          Index wrong = 0;
          const auto expect = [&](double x, double old, bool is_nan) {
            wrong += is_nan ? !std::isnan(x) : !(std::abs(x - old) <= bound);
          };
          for_each_index(call.query.dimensions(), [&](Index b, Index h, Index i, Index d) {
            expect(after.query(b, h, i, d), before.query(b, h, i, d), b == 0 && reached(h, i));
          });
          for_each_index({batch, key_heads, keys, 1}, [&](Index b, Index kv, Index j, Index) {
            bool by_any = false;
            for (Index h = 2 * kv; h < 2 * kv + 2; ++h) {
              for (Index i = 0; i < queries; ++i) {
                by_any = by_any || (b == 0 && reached(h, i) && call.shows(0, h, i, j));
              }
            }
            for (Index d = 0; d < 16; ++d) {
              expect(after.key(b, kv, j, d), before.key(b, kv, j, d), by_any);
            }
            // Of dO it is the one number that is NaN.
            for (Index c = 0; c < width; ++c) {
              expect(after.value(b, kv, j, c), before.value(b, kv, j, c),
                     by_any && *what != 'v' && (*what != 'g' || c == 3));
            }
          });
          for_each_index(call.added.dimensions(), [&](Index b, Index h, Index i, Index j) {
            expect(after.added(b, h, i, j), before.added(b, h, i, j),
                   b == 0 && reached(h, i) && call.shows(b, h, i, j));
          });
          EXPECT_EQ(wrong, 0);
        }
      }
    }
  });
}

// Keys that nobody sees, hidden biases, and queries without keys with their dO, one after another.
TEST(BackwardPaths, WhatIsHiddenNeverMattersAndHasNoGradient) {
  for_each_call([](Call call) {
    call.offset = {-9, keys - queries - 20};  // the first nine of entry 0 see nothing
    const Reference grad = grad_output();
    for (const Way& way : ways) {
      const Gradients before = way.run(call, grad, {});
      const auto blind = [&](Index b, Index h, Index i) { return call.blind(b, h, i); };
      const auto unseen = [&](Index b, Index j) {
        return j > queries - 1 + call.offset[std::size_t(b)];
      };
      for_each_index(call.query.dimensions(), [&](Index b, Index h, Index i, Index d) {
        if (blind(b, h, i)) {
          ASSERT_EQ(before.query(b, h, i, d), 0);
        }
      });
      for_each_index(call.key.dimensions(), [&](Index b, Index h, Index j, Index d) {
        if (!unseen(b, j)) return;
        ASSERT_EQ(before.key(b, h, j, d), 0);
        ASSERT_EQ(before.value(b, h, j, d % width), 0);
      });
      for (const double poison : {nan, infinity}) {
        for (const char* what : {"query", "key", "value", "bias", "grad"}) {
          SCOPED_TRACE(::testing::Message() << way.name << ", " << poison << " in " << what);
          Call dirty = call;
          Reference dirty_grad = grad;
          const auto spoil = [&](Reference& x, const auto& hidden) {
            for_each_index(x.dimensions(), [&](Index b, Index h, Index i, Index c) {
              if (hidden(b, h, i, c)) x(b, h, i, c) = poison;
            });
          };
          const auto no_key = [&](Index b, Index h, Index i, Index) { return blind(b, h, i); };
          const auto no_query = [&](Index b, Index, Index j, Index) { return unseen(b, j); };
          if (*what == 'q') spoil(dirty.query, no_key);
          if (*what == 'g') spoil(dirty_grad, no_key);
          if (*what == 'k') spoil(dirty.key, no_query);
          if (*what == 'v') spoil(dirty.value, no_query);
          if (*what == 'b') spoil(dirty.added, [&](auto... at) { return !call.shows(at...); });
          expect_near(way.run(dirty, dirty_grad, {}), before);
        }
      }
    }
  });
}

// Through softcap, whose slope there is 0, and a lambda, whose slope is infinite; also of a whole
// row, whose dO is of no account.
TEST(BackwardPaths, AScoreOfMinusInfinityIsHidden) {
  for_each_call([](const Call& call) {
    const auto none = [](Index i, Index j) { return i == 5 || (i + j) % 3 == 0; };
    Call infinite = call, masked = call;
    for_each_index(call.added.dimensions(), [&](Index b, Index h, Index i, Index j) {
      if (none(i, j)) infinite.added(b, h, i, j) = -infinity;
    });
    masked.hides = none;
    const Reference grad = grad_output();
    const Reference spoiled = generate(grad.dimensions(), [&](Index b, Index h, Index i, Index c) {
      return i == 5 ? nan : grad(b, h, i, c);
    });
    for (const Way& way : ways) {
      SCOPED_TRACE(way.name);
      expect_near(way.run(infinite, spoiled, {}), way.run(masked, grad, {}));
    }
  });
}

// dM adds up q dS k over all queries: one without a key counts for nothing, whatever it holds.
TEST(BackwardPaths, AQueryWithoutAKeyReachesNoParameter) {
  const auto m = make<float, 2>(random({1, 1, 16, 16}, 5));
  Call call(keys, width);
  call.offset = {-9, 20};
  const auto of = [&](const Call& c) {
    Matrix<float> dm = Matrix<float>::Zero(16, 16);
    const auto q = make<float, 4>(c.query), k = make<float, 4>(c.key), v = make<float, 4>(c.value);
    const auto pass = attention_forward(q, k, v, bilinear(m), Shown(c, 0, 0));
    attention_backward(q, k, v, pass, make<float, 4>(grad_output()), bilinear(m, dm),
                       Shown(c, 0, 0));
    return reference(dm);
  };
  Call spoiled = call;
  for_each_index(call.query.dimensions(), [&](Index b, Index h, Index i, Index d) {
    if (call.blind(b, h, i)) spoiled.query(b, h, i, d) = nan;
  });
  EXPECT_TRUE(near(of(spoiled), of(call), bound));
}

template <class Scalar, class Score>
Gradients backward_of(const Call& c, const Score& score) {
  const auto q = make<Scalar, 4>(c.query), k = make<Scalar, 4>(c.key), v = make<Scalar, 4>(c.value);
  const Shown mask(c, 0, 0);
  const auto pass = attention_forward(q, k, v, score, mask);
  const auto g = attention_backward(q, k, v, pass, make<Scalar, 4>(grad_output()), score, mask);
  return {reference(g.query), reference(g.key), reference(g.value), {}};
}

/// Less far is less alike than far enough, and the query itself is nothing: the slope there is
/// infinite.
struct Distance : ScorePolicy {
  template <class Number>
  struct Bound {
    static constexpr ScoreTraits traits{.vectorised = true, .features_alike = true};
    template <class T>
    T step(const T& sum, const T& q, const T& k, Index) const {
      return sum + (q - k) * (q - k);
    }
    template <class T>
    T finish(const T& sum) const {
      return -sum - T(1) / sum;
    }
  };
  template <class Number>
  Bound<Number> bind(const heed::Problem&) const {
    return {};
  }
};

// Of distances: a key infinitely far, one at the radius of the kernel, where its slope is infinite,
// and hidden keys of NaN, and hidden ones that are the query itself, are as if they were masked.
TEST(BackwardPaths, KeysOutOfReachHaveNoGradient) {
  for_each_call([](const Call& call) {
    Call near_by = call;
    near_by.offset = {keys - queries - 20, keys - queries - 30};
    for_each_index({batch, heads, 1, 16}, [&](Index b, Index h, Index, Index d) {
      near_by.query(b, h, 7, d) = 0;
      near_by.key(b, h / 2, 60, d) = d == 0 ? 8 : 0;
    });
    Call far = near_by;
    near_by.hides = [](Index i, Index j) { return j == 50 || (i == 7 && (j == 60 || j == 70)); };
    for_each_index({batch, key_heads, keys, 16}, [&](Index b, Index h, Index j, Index d) {
      if (j == 50) far.key(b, h, j, d) = infinity;
      if (j > keys - 20) far.key(b, h, j, d) = nan;
    });
    for_each_index({batch, key_heads, 1, 16}, [&](Index b, Index h, Index, Index d) {
      near_by.key(b, h, 70, d) = far.key(b, h, 70, d) = 0;
    });
    far.hides = [](Index i, Index j) { return i == 7 && j == 70; };
    const auto check = [&](const auto& score, const Call& of) {
      const Gradients expected = backward_of<long double>(near_by, score);
      for (const Gradients& g :
           {backward_of<float>(of, score), backward_of<long double>(of, score)}) {
        EXPECT_TRUE(near(g.query, expected.query, bound));
        EXPECT_TRUE(near(g.key, expected.key, bound));
        EXPECT_TRUE(near(g.value, expected.value, bound));
      }
    };
    check(Distance(), near_by);
    check(triangular(8), far);
    check(gaussian(.6), far);
  });
}

/// The dot product, which says nothing of itself: it goes by the definition.
struct Plain : ScorePolicy {
  template <class Number>
  struct Bound {
    template <class T>
    T step(const T& sum, const T& q, const T& k, Index) const {
      return sum + q * k;
    }
    template <class T>
    T finish(const T& sum) const {
      return sum;
    }
  };
  template <class Number>
  Bound<Number> bind(const heed::Problem&) const {
    return {};
  }
};

/// One key has all the weight: dV = sum over queries of dO, large at both ends and small between,
/// where a sum held in Scalar from block to block would lose count of it. So many heads are not
/// split any further.
template <class Scalar>
void expect_long_sums(double small) {
  constexpr Index n = 3000;
  const auto query = make<Scalar, 4>(constant({1, 8, n, 16}, 0)),
             key = make<Scalar, 4>(constant({1, 8, 1, 16}, 0)),
             value = make<Scalar, 4>(constant({1, 8, 1, 16}, 1));
  const Reference g = rounded<Scalar>(generate({1, 8, n, 16}, [&](Index, Index, Index i, Index) {
    return i < 100 || i >= n - 100 ? 8 : small;
  }));
  double sum = 0;
  for (Index i = 0; i < n; ++i) sum += g(0, 7, i, 3);
  const auto check = [&](const auto& score) {
    const auto pass = attention_forward(query, key, value, score);
    const auto gradients = attention_backward(query, key, value, pass, make<Scalar, 4>(g), score);
    const double error = std::abs(number(gradients.value(0, 7, 0, 3)) - sum);
    EXPECT_TRUE(error <= epsilon<Scalar>() / 2 * 1024 + .01) << error;  // rounded once
  };
  check(dot_product());
  check(Plain());
}
TEST(BackwardPaths, NarrowNumbersAreSummedUpInFloat) {
  expect_long_sums<Eigen::half>(.001);      // of 192 queries .19, below half a step at 800, .25
  expect_long_sums<Eigen::bfloat16>(.008);  // 1.5, below 2
}

}  // namespace
}  // namespace heed::test
