#include <functional>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "heed/heed.hpp"
#include "semantics_support.hpp"

/// The semantics of one call, on every way to compute it: the fused engine, its rows for few keys,
/// the definition, decoding in rows and in blocks, parts of the keys that are merged, caches and
/// ragged batches.
namespace heed::test {
namespace {

double formula(const Call& call, const Pair<double>& p) {
  const double sum = dot(call.scale)(p) + call.added(p.b, p.h, p.i, p.j);
  return 2 * std::tanh(sum / 2) * (static_cast<double>(p.h) + 1) +
         static_cast<double>(p.j - p.i) / 32;
}

struct Result {
  Reference output, log_sum_exp;  // the second of nothing where a way gives none
};

Result result_of(const auto& pass) {
  return {reference(pass.output), reference_rows(pass.log_sum_exp)};
}

template <class Scalar>
Result forward(const Call& c, Index query, Index query_end, Index key, Index key_end,
               const AttentionOptions& options) {
  const auto added = make<Scalar, 4>(columns(rows(c.added, query, query_end), key, key_end));
  return result_of(attention_forward(
      make<Scalar, 4>(rows(c.query, query, query_end)), make<Scalar, 4>(rows(c.key, key, key_end)),
      make<Scalar, 4>(rows(c.value, key, key_end)), score_of(c.scale, added, query, key),
      Shown(c, query, key), options));
}

/// run(first, last) for `step` queries at a time, put together.
Result in_steps(const Call& c, Index step, const auto& run) {
  Result all{constant({batch, heads, c.count(), c.value.dimension(3)}, nan),
             constant({batch, heads, c.count(), 1}, nan)};
  for (Index first = 0; first < c.count(); first += step) {
    const Index last = std::min(first + step, c.count());
    const Result part = run(first, last);
    for_each_index({batch, heads, last - first, 1}, [&](Index b, Index h, Index i, Index) {
      all.log_sum_exp(b, h, first + i, 0) = part.log_sum_exp(b, h, i, 0);
      for (Index col = 0; col < c.value.dimension(3); ++col) {
        all.output(b, h, first + i, col) = part.output(b, h, i, col);
      }
    });
  }
  return all;
}

Result over_cache(const Call& c, Index first, Index last, const AttentionOptions& options) {
  KeyValueCache<float> cache({.batch = batch,
                              .kv_heads = key_heads,
                              .key_dim = 16,
                              .value_dim = c.value.dimension(3),
                              .capacity = c.keys()});
  for (const auto& [from, to] : {std::pair<Index, Index>{0, 33}, {33, c.keys()}}) {
    cache.append(make<float, 4>(rows(c.key, from, to)), make<float, 4>(rows(c.value, from, to)));
  }
  const auto added = make<float, 4>(rows(c.added, first, last));
  return result_of(attention_forward(make<float, 4>(rows(c.query, first, last)), cache,
                                     score_of(c.scale, added, first, 0), Shown(c, first, 0),
                                     options));
}

Result over_ragged(const Call& c, const AttentionOptions& options) {
  const Index n = c.count(), keys = c.keys();
  const auto q = tokens(c.query), k = tokens(c.key), v = tokens(c.value);
  const auto added = make<float, 4>(c.added);
  const auto pass = attention_forward(ragged(q, {0, n, 2 * n}), ragged(k, {0, keys, 2 * keys}),
                                      ragged(v, {0, keys, 2 * keys}),
                                      score_of(c.scale, added, 0, 0), Shown(c, 0, 0), options);
  return {apart(pass.output), generate({batch, heads, n, 1}, [&](Index b, Index h, Index i, Index) {
            return number(pass.log_sum_exp(b * n + i, h));
          })};
}

struct Way {
  const char* name;
  bool whole;  // all queries and keys are of one call, which is what dropout counts
  std::function<Result(const Call&, const AttentionOptions&)> run;
};

const std::vector<Way> ways = {
    {"fused", true,
     [](const Call& c, const auto& o) { return forward<float>(c, 0, c.count(), 0, c.keys(), o); }},
    {"with weights", true,
     [](const Call& c, const auto& o) {
       const auto added = make<float, 4>(c.added);
       return Result{
           reference(attention_with_weights(make<float, 4>(c.query), make<float, 4>(c.key),
                                            make<float, 4>(c.value), score_of(c.scale, added, 0, 0),
                                            Shown(c, 0, 0), o)
                         .output),
           {}};
     }},
    {"definition", true,
     [](const Call& c, const auto& o) {
       return forward<long double>(c, 0, c.count(), 0, c.keys(), o);
     }},
    {"decoded one by one", false,
     [](const Call& c, const auto& o) {
       return in_steps(c, 1, [&](Index first, Index last) {
         return forward<float>(c, first, last, 0, c.keys(), o);
       });
     }},
    {"decoded in blocks", false,
     [](const Call& c, const auto& o) {
       return in_steps(c, 16, [&](Index first, Index last) {
         return forward<float>(c, first, last, 0, c.keys(), o);
       });
     }},
    {"merged", false,
     [](const Call& c, const auto& o) {
       const auto part = [&](Index first, Index last) {
         const Result r = forward<float>(c, 0, c.count(), first, last, o);
         return AttentionPass<Tensor<float, 4>, Tensor<float, 3>>{
             make<float, 4>(r.output),
             Eigen::TensorMap<Tensor<float, 3>>(make<float, 4>(r.log_sum_exp).data(), batch, heads,
                                                c.count())};
       };
       const Index third = c.keys() / 3;
       return result_of(
           merge(merge(part(0, third), part(third, 2 * third)), part(2 * third, c.keys())));
     }},
    {"cache", true, [](const Call& c, const auto& o) { return over_cache(c, 0, c.count(), o); }},
    {"cache in steps", false,
     [](const Call& c, const auto& o) {
       return in_steps(c, 3,
                       [&](Index first, Index last) { return over_cache(c, first, last, o); });
     }},
    {"ragged", true, [](const Call& c, const auto& o) { return over_ragged(c, o); }},
};

/// Few keys, which have rows of their own where vectors are of 64 bytes; some tiles of keys; widths
/// that are no whole vectors, which are not decoded.
const std::vector<std::array<Index, 2>> shapes = {{80, 16}, {230, 16}, {230, 7}};

void for_each_call(const auto& body) {
  for (const auto& [keys, width] : shapes) {
    for (const bool pairs : {false, true}) {
      Call call(keys, width);
      call.pairs = pairs;
      call.left = pairs ? -1 : 40;
      SCOPED_TRACE(::testing::Message() << keys << " keys, width " << width << ", pairs " << pairs);
      body(call);
      call.left = -1;
      if (!pairs) body(call);
    }
  }
}

/// body(way, what the way gives for the call)
void for_each_way(const Call& call, const auto& body, const AttentionOptions& options = {}) {
  for (const Way& way : ways) {
    if (options.dropout > 0 && !way.whole) continue;
    SCOPED_TRACE(::testing::Message() << way.name << ", left " << call.left);
    body(way, way.run(call, options));
  }
}

void expect_definition(const Call& call, const auto& shows, const auto& keep,
                       const AttentionOptions& options = {}) {
  const auto exact = attend<double>(
      call.query, call.key, call.value, [&](const auto& p) { return formula(call, p); }, shows,
      keep);
  // Weights are off by as much as scores of up to 8 + 230 / 32 are: a few of their roundings.
  const double bound = 32 * epsilon<float>();
  for_each_way(
      call,
      [&](const Way&, const Result& result) {
        EXPECT_TRUE(near(result.output, exact.output, bound));
        if (result.log_sum_exp.size() == 0) return;
        EXPECT_TRUE(near(result.log_sum_exp, exact.log_sum_exp, bound));
      },
      options);
}

// Scale of any sign, order of modifiers, indices as real numbers, groups of heads, causal and
// windows at offsets.
TEST(Paths, GiveTheDefinition) {
  for_each_call([](const Call& call) {
    expect_definition(
        call, [&](auto... at) { return call.shows(at...); }, [](auto...) { return 1.; });
  });
}

/// The bits of queries that do not see any of the places stay; others become NaN, but for the
/// log-sum-exp if the places are values.
void expect_reach(const Call& call, const Result& before, const Result& after, bool in_values,
                  const std::vector<Index>& places) {
  Index wrong = 0, wrong_rows = 0;
  for_each_index({batch, heads, call.count(), 1}, [&](Index b, Index h, Index i, Index) {
    const bool sees =
        std::any_of(places.begin(), places.end(), [&](Index j) { return call.shows(b, h, i, j); });
    for (Index c = 0; c < call.value.dimension(3); ++c) {
      const double x = after.output(b, h, i, c);
      wrong += sees ? !std::isnan(x) : !(x == before.output(b, h, i, c));
    }
    if (before.log_sum_exp.size() == 0) return;
    const double x = after.log_sum_exp(b, h, i, 0), right = before.log_sum_exp(b, h, i, 0);
    wrong_rows += !sees        ? !(x == right)
                  : !in_values ? !std::isnan(x)
                               : !(std::abs(x - right) <= 1e-5);
  });
  EXPECT_EQ(wrong, 0) << "NaN at " << places[0];
  EXPECT_EQ(wrong_rows, 0) << "NaN at " << places[0];
}

/// NaN in two keys: one that a window has left behind for some queries, one that most do not see
/// yet.
void expect_reach(const Call& call) {
  const std::vector<Index> places = {call.keys() - 45, call.keys() - 7};
  for_each_way(call, [&](const Way& way, const Result& before) {
    for (const char* what : {"key", "value", "bias"}) {
      SCOPED_TRACE(what);
      Call dirty = call;
      for_each_index({batch, heads, 2, 1}, [&](Index b, Index h, Index n, Index) {
        const Index j = places[static_cast<std::size_t>(n)];
        if (*what == 'k') dirty.key(b, h / 2, j, 3) = nan;
        for (Index c = 0; c < call.value.dimension(3) && *what == 'v'; ++c) {
          dirty.value(b, h / 2, j, c) = nan;
        }
        for (Index i = 0; i < call.count() && *what == 'b'; ++i) dirty.added(b, h, i, j) = nan;
      });
      expect_reach(call, before, way.run(dirty, {}), *what == 'v', places);
    }
  });
}

// Of causal attention: a NaN in the value of key j changes no query before j, and every later one.
// The last one has several runs of keys in decoding.
TEST(Paths, NaNReachesTheQueriesThatSeeItAndNoOthers) {
  for_each_call([](const Call& call) { expect_reach(call); });
  expect_reach(Call(2100, 16, 1));
}

TEST(Paths, AQueryOfNaNIsNaNAlone) {
  for_each_call([](const Call& call) {
    Call dirty = call;
    dirty.query(0, 2, 8, 3) = nan;
    for_each_way(call, [&](const Way& way, const Result& before) {
      const Result after = way.run(dirty, {});
      Index wrong = 0;
      for_each_index(after.output.dimensions(), [&](Index b, Index h, Index i, Index c) {
        const double x = after.output(b, h, i, c);
        wrong += b == 0 && h == 2 && i == 8 ? !std::isnan(x) : !(x == before.output(b, h, i, c));
      });
      EXPECT_EQ(wrong, 0);
    });
  });
}

TEST(Paths, WhatIsHiddenNeverMatters) {
  for_each_call([](Call call) {
    const Index hidden = 20, first = call.keys() - hidden;
    call.offset = {first - queries, first - queries - 10};
    for_each_way(call, [&](const Way& way, const Result& before) {
      for (const double poison : {nan, infinity, -infinity}) {
        Call dirty = call;
        for_each_index(call.added.dimensions(), [&](Index b, Index h, Index i, Index j) {
          if (!call.shows(b, h, i, j)) dirty.added(b, h, i, j) = poison;
        });
        for_each_index({batch, key_heads, hidden, 1}, [&](Index b, Index h, Index j, Index) {
          dirty.key(b, h, first + j, j % 16) = dirty.value(b, h, first + j, j % 7) = poison;
        });
        const Result after = way.run(dirty, {});
        EXPECT_TRUE(same(after.output, before.output)) << poison;
        EXPECT_TRUE(same(after.log_sum_exp, before.log_sum_exp)) << poison;
      }
    });
  });
}

// Also where the query is NaN.
TEST(Paths, AQueryWithoutAKeyGivesZero) {
  for_each_call([](Call call) {
    call.offset = {-9, -2 * queries};  // the first nine of entry 0, and all of entry 1
    for_each_index(call.query.dimensions(), [&](Index b, Index h, Index i, Index d) {
      if (call.blind(b, h, i)) call.query(b, h, i, d) = nan;
    });
    for_each_way(call, [&](const Way&, const Result& result) {
      Index count = 0, wrong = 0;
      for_each_index({batch, heads, queries, 1}, [&](Index b, Index h, Index i, Index) {
        const bool blind = call.blind(b, h, i);
        count += blind;
        for (Index c = 0; c < call.value.dimension(3); ++c) {
          wrong += (result.output(b, h, i, c) == 0) != blind;
        }
        if (result.log_sum_exp.size() == 0) return;
        const double lse = result.log_sum_exp(b, h, i, 0);
        wrong += blind ? lse != -infinity : !std::isfinite(lse);
      });
      EXPECT_EQ(wrong, 0);
      EXPECT_GE(count, heads * (queries + 9));
    });
  });
}

// A bias of -infinity hides as a mask does, through softcap and lambdas; so it does a whole row.
TEST(Paths, AScoreOfMinusInfinityHasNoWeight) {
  for_each_call([](Call call) {
    const auto none = [](Index i, Index j) { return i == 5 || (i + j) % 3 == 0; };
    for_each_index(call.added.dimensions(), [&](Index b, Index h, Index i, Index j) {
      if (none(i, j)) call.added(b, h, i, j) = -infinity;
    });
    expect_definition(
        call,
        [&](Index b, Index h, Index i, Index j) { return !none(i, j) && call.shows(b, h, i, j); },
        [](auto...) { return 1.; });
  });
}

// The pattern is that of (seed, batch, head, query, key), after the softmax: the log-sum-exp says
// nothing of it, and kept weights are divided by 1 - p. One and seven queries are decoded.
TEST(Paths, DropoutComesAfterTheSoftmax) {
  const AttentionOptions options{.dropout = .4, .seed = 5};
  const Dropout dropout("test", .4, 5);
  for (const auto& [keys, width] : shapes) {
    for (const Index count : {Index(1), Index(7), queries}) {
      SCOPED_TRACE(::testing::Message() << count << " queries, " << keys << " keys");
      const Call call(keys, width, count);
      expect_definition(
          call, [&](auto... at) { return call.shows(at...); },
          [&](Index b, Index h, Index i, Index j) {
            return dropout.keeps(dropout.row(b, h, i), j) ? 1 / .6 : 0.;
          },
          options);
    }
  }
}

// Lambdas that take indices as they are run on numbers, one score at a time.
TEST(Paths, ModifiersOfSingleScoresKeepTheirOrder) {
  const Call call(130, 16);
  const auto q = make<float, 4>(call.query), k = make<float, 4>(call.key),
             v = make<float, 4>(call.value);
  const auto score = dot_product() | score_mod([](auto s, Index, Index h, Index, Index j) {
                       return s + static_cast<float>((h + j) % 5);
                     }) |
                     softcap(2);
  const auto exact = attend<double>(
      call.query, call.key, call.value,
      [](const auto& p) {
        return 2 * std::tanh((dot()(p) + static_cast<double>((p.h + p.j) % 5)) / 2);
      },
      everything(), [](auto...) { return 1.; });
  const double bound = 32 * epsilon<float>();
  EXPECT_TRUE(near(reference(attention(q, k, v, score)), exact.output, bound));
  EXPECT_TRUE(near(reference(attention_with_weights(q, k, v, score).output), exact.output, bound));
  const auto few = make<float, 4>(rows(call.query, 0, 3));
  EXPECT_TRUE(near(reference(attention(few, k, v, score)), rows(exact.output, 0, 3), bound));
}

TEST(Paths, ThreadsChangeNoBit) {
  Eigen::ThreadPool pool(3);
  for_each_call([&](const Call& call) {
    if (call.pairs) return;
    for_each_way(call, [&](const Way& way, const Result& alone) {
      const Result together = way.run(call, {.pool = &pool});
      EXPECT_TRUE(same(together.output, alone.output));
      EXPECT_TRUE(same(together.log_sum_exp, alone.log_sum_exp));
    });
  });
}

}  // namespace
}  // namespace heed::test
