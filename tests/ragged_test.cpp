#include "heed/ragged.hpp"

#include <memory>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "allocation_support.hpp"
#include "ragged_support.hpp"

namespace heed::test {
namespace {

/// Padded inputs of sequences of the given lengths; padding is NaN.
struct Batch {
  Lengths queries, keys;
  Reference query, key, value;

  Batch(Lengths of_queries, Lengths of_keys, Index heads = 4, Index key_heads = 2, Index dim = 16,
        Index width = 16)
      : queries(std::move(of_queries)), keys(std::move(of_keys)) {
    const auto batch = static_cast<Index>(queries.size());
    query = random({batch, heads, longest(queries), dim}, 1);
    key = random({batch, key_heads, longest(keys), dim}, 2);
    value = random({batch, key_heads, longest(keys), width}, 3);
  }
  std::vector<Index> query_offsets() const { return offsets_of(queries); }
  std::vector<Index> key_offsets() const { return offsets_of(keys); }
  Index count(const Lengths& lengths, Index b) const {
    return lengths[static_cast<std::size_t>(b)];
  }
};

const Batch& mixed() {
  static const Batch batch({1, 0, 17, 2, 5, 49, 7, 1, 31}, {1, 4, 17, 40, 0, 211, 3, 300, 31});
  return batch;
}

/// Batch entries as the definition sees them, one after another, and what attention gives.
template <class Scalar, class Score, class Mask, class Rule, class Allowed, class Keep>
void expect_definition(const Batch& in, const Score& score, const Mask& mask, const Rule& rule,
                       const Allowed& allowed, const AttentionOptions& options, const Keep& keep) {
  const Reference query = rounded<Scalar>(in.query), key = rounded<Scalar>(in.key),
                  value = rounded<Scalar>(in.value);
  const Expected<Scalar> expected(
      query, key, value, rule,
      [&](Index b, Index h, Index i, Index j) {
        return i < in.count(in.queries, b) && j < in.count(in.keys, b) && allowed(b, h, i, j);
      },
      keep);
  const auto q = packed<Scalar>(in.query, in.queries), k = packed<Scalar>(in.key, in.keys),
             v = packed<Scalar>(in.value, in.keys);
  const auto pass = attention_forward(ragged(q, in.query_offsets()), ragged(k, in.key_offsets()),
                                      ragged(v, in.key_offsets()), score, mask, options);
  EXPECT_TRUE(near(unpacked(pass.output, in.queries), expected.output, expected.output_bound));
  Reference lse = unpacked_rows(pass.log_sum_exp, in.queries);
  for_each_index(lse.dimensions(), [&](Index b, Index h, Index i, Index) {
    if (i >= in.count(in.queries, b)) lse(b, h, i, 0) = -infinity;
  });
  EXPECT_TRUE(near(lse, expected.log_sum_exp, expected.log_sum_exp_bound));
}
template <class Scalar = float, class Score, class Mask, class Rule, class Allowed>
void expect_definition(const Batch& in, const Score& score, const Mask& mask, const Rule& rule,
                       const Allowed& allowed, const AttentionOptions& options = {}) {
  expect_definition<Scalar>(in, score, mask, rule, allowed, options, [](auto...) { return 1.0; });
}

TEST(Ragged, AttentionByHand) {
  // Sequence 0: one query 0 and keys 0, 0 of values 1, 3: weights 1/2, output 2.
  // Sequence 1 has no tokens. Sequence 2: query ln 3 and keys 1, 0 of values 4, 8: scores ln 3, 0,
  // weights 3/4, 1/4, output 3 + 2 = 5.
  Matrix<double> q(2, 1), k(4, 1), v(4, 1);
  q << 0, std::log(3);
  k << 0, 0, 1, 0;
  v << 1, 3, 4, 8;
  const auto pass = attention_forward(ragged(q, {0, 1, 1, 2}), ragged(k, {0, 2, 2, 4}),
                                      ragged(v, {0, 2, 2, 4}), dot_product());
  static_assert(std::is_same_v<decltype(pass.output), Matrix<double>>);
  static_assert(std::is_same_v<decltype(pass.log_sum_exp), Vector<double>>);
  EXPECT_NEAR(pass.output(0, 0), 2, 1e-15);
  EXPECT_NEAR(pass.output(1, 0), 5, 1e-15);
  EXPECT_NEAR(pass.log_sum_exp(0), std::log(2), 1e-15);
  EXPECT_NEAR(pass.log_sum_exp(1), std::log(4), 1e-15);
}

TEST(Ragged, PositionsAreThoseWithinTheSequence) {
  const Batch& in = mixed();
  const auto last = [&](Index b, Index i) {  // bottom right
    return i + in.count(in.keys, b) - in.count(in.queries, b);
  };
  const auto sdpa = scaled_dot_product();
  expect_definition(in, sdpa, no_mask(), scaled_dot(), everything());
  expect_definition(in, sdpa, causal(), scaled_dot(),
                    [&](Index b, Index, Index i, Index j) { return j <= last(b, i); });
  expect_definition(in, sdpa, causal(Align::top_left), scaled_dot(),
                    [](Index, Index, Index i, Index j) { return j <= i; });
  expect_definition(
      in, sdpa, sliding_window(5, 2), scaled_dot(),
      [&](Index b, Index, Index i, Index j) { return j >= last(b, i) - 5 && j <= last(b, i) + 2; });
  expect_definition(in, sdpa, prefix(3) || causal(), scaled_dot(),
                    [&](Index b, Index, Index i, Index j) { return j < 3 || j <= last(b, i); });
  expect_definition(in, sdpa, !causal(), scaled_dot(),
                    [&](Index b, Index, Index i, Index j) { return j > last(b, i); });
}

TEST(Ragged, WhatIsGivenForEachBatchEntryIsForEachSequence) {
  const Batch& in = mixed();
  const auto sdpa = scaled_dot_product();
  const std::vector<int> lens{1, 3, 9, 100, 2, 190, 0, 299, 30};
  expect_definition(in, sdpa, valid_lens(lens), scaled_dot(), [&](Index b, Index, Index, Index j) {
    return j < lens[static_cast<std::size_t>(b)];
  });
  const std::vector<int> at{0, 1, 2, 3, -4, 5, 1, 200, -7};
  expect_definition(in, sdpa, causal(at), scaled_dot(), [&](Index b, Index, Index i, Index j) {
    return j <= i + at[static_cast<std::size_t>(b)];
  });
  // One length for each sequence and query, with room for more queries than the longest has.
  Matrix<Index> by_query(9, 60);
  for (Index b = 0; b < 9; ++b) {
    for (Index i = 0; i < 60; ++i) by_query(b, i) = (7 * b + 3 * i) % 50;
  }
  expect_definition(in, sdpa, valid_lens(by_query), scaled_dot(),
                    [&](Index b, Index, Index i, Index j) { return j < by_query(b, i); });
  // Documents of five positions.
  Matrix<int> query_ids(9, 49), key_ids(9, 300);
  for (Index b = 0; b < 9; ++b) {
    for (Index i = 0; i < 49; ++i) query_ids(b, i) = static_cast<int>(b + i / 5);
    for (Index j = 0; j < 300; ++j) key_ids(b, j) = static_cast<int>(b + j / 5);
  }
  expect_definition(in, sdpa, segments(query_ids, key_ids), scaled_dot(),
                    [](Index, Index, Index i, Index j) { return i / 5 == j / 5; });
  const auto odd = [](Index b, Index h, Index i, Index j) { return (b + h + i * j) % 3 != 0; };
  expect_definition(in, sdpa, mask_if(odd), scaled_dot(), odd);
  Tensor<bool, 4> allowed(9, 1, 49, 301);
  for_each_index({9, 1, 49, 301}, [&](Index b, Index h, Index i, Index j) {
    allowed(b, h, i, j) = odd(b, h, i, j);
  });
  expect_definition(in, sdpa, allow(allowed), scaled_dot(),
                    [&](Index b, Index, Index i, Index j) { return odd(b, 0, i, j); });
}

TEST(Ragged, ScoresAndModifiers) {
  const Batch& in = mixed();
  const Reference bias_values = random({9, 4, 49, 310}, 7, 2);
  const auto tensor = make<float, 4>(bias_values);
  expect_definition(
      in, scaled_dot_product() | bias(tensor), causal(),
      [&](const auto& p) {
        using Real = typename std::remove_cvref_t<decltype(p)>::Real;
        return scaled_dot()(p) + static_cast<Real>(bias_values(p.b, p.h, p.i, p.j));
      },
      [&](Index b, Index, Index i, Index j) {
        return j <= i + in.count(in.keys, b) - in.count(in.queries, b);
      });
  const auto table = make<float, 2>(random({1, 1, 4, 11}, 8));
  const auto bucket = [](Index distance) { return ((distance % 11) + 11) % 11; };
  expect_definition(
      in,
      scaled_dot_product() | relative_bias(table, bucket) | alibi({.5, .25, .125, .0625}) |
          score_mod([](auto s, Index b, Index h, Index i, Index j) {
            return s + float(b % 3) - float((h + i + 2 * j) % 5) / 4;
          }),
      no_mask(),
      [&](const auto& p) {
        using Real = typename std::remove_cvref_t<decltype(p)>::Real;
        const Real slope = Real(.5) / static_cast<Real>(Index(1) << p.h);
        return scaled_dot()(p) + static_cast<Real>(table(p.h, bucket(p.j - p.i))) +
               slope * static_cast<Real>(p.j - p.i) + static_cast<Real>(p.b % 3) -
               static_cast<Real>((p.h + p.i + 2 * p.j) % 5) / 4;
      },
      everything());
}

TEST(Ragged, SinksAndDropout) {
  const Batch& in = mixed();
  const AttentionOptions options{.dropout = .4, .seed = 11};
  const Dropout dropout("test", .4, 11);
  expect_definition<float>(in, scaled_dot_product(), no_mask(), scaled_dot(), everything(), options,
                           [&](Index b, Index h, Index i, Index j) {
                             return dropout.keeps(dropout.row(b, h, i), j) ? 1 / .6 : 0.0;
                           });
  // A sink is one key more, of value 0.
  const std::vector<double> logits{.5, -1, 0, 2};
  const auto q = packed<float>(in.query, in.queries), k = packed<float>(in.key, in.keys),
             v = packed<float>(in.value, in.keys);
  const auto call = [&](const auto& score) {
    return attention_forward(ragged(q, in.query_offsets()), ragged(k, in.key_offsets()),
                             ragged(v, in.key_offsets()), score);
  };
  const auto plain = call(scaled_dot_product()), sunk = call(scaled_dot_product() | sink(logits));
  for (Index t = 0; t < q.dimension(0); ++t) {
    for (Index h = 0; h < 4; ++h) {
      const double lse = plain.log_sum_exp(t, h), logit = logits[static_cast<std::size_t>(h)];
      const double with = std::log(std::exp(lse) + std::exp(logit));
      EXPECT_NEAR(sunk.log_sum_exp(t, h), with, 1e-5);
      for (Index c = 0; c < 16; ++c) {
        EXPECT_NEAR(sunk.output(t, h, c), plain.output(t, h, c) * std::exp(lse - with), 1e-5);
      }
    }
  }
}

TEST(Ragged, OtherNumbersAndEngines) {
  const Batch few({3, 0, 1, 50}, {5, 2, 70, 50}, 2, 1, 7, 5);
  const auto causal_in_few = [&](Index b, Index, Index i, Index j) {
    return j <= i + few.count(few.keys, b) - few.count(few.queries, b);
  };
  const auto sdpa = scaled_dot_product();
  expect_definition<double>(few, sdpa, causal(), scaled_dot(), causal_in_few);
  expect_definition<Eigen::half>(few, sdpa, causal(), scaled_dot(), causal_in_few);
  expect_definition<Eigen::bfloat16>(mixed(), sdpa, no_mask(), scaled_dot(), everything());
  // By the definition's engine: a distance that runs on numbers alone.
  expect_definition<float>(few, pairwise([](float q, float k) { return q * k; }), causal(), dot(),
                           causal_in_few);
  expect_definition<float>(
      few, gaussian(.7), no_mask(),
      [](const auto& p) {
        using Real = typename std::remove_cvref_t<decltype(p)>::Real;
        Real sum = 0;
        for (std::size_t c = 0; c < p.query.size(); ++c) {
          const Real d = (p.query[c] - p.key[c]) * Real(.7F);
          sum -= d * d / 2;
        }
        return sum;
      },
      everything());
}

/// A mask written by a user, who goes by the extents of the call.
struct LastHalf : MaskPolicy {
  struct Bound {
    Index from;
    bool allows(Index, Index, Index, Index j) const { return j >= from; }
  };
  Bound bind(const Problem& problem) const { return {problem.keys / 2}; }
};

TEST(Ragged, AUsersMaskIsBoundToEachSequence) {
  const Batch& in = mixed();
  expect_definition(in, scaled_dot_product(), LastHalf(), scaled_dot(),
                    [&](Index b, Index, Index, Index j) { return j >= in.count(in.keys, b) / 2; });
}

TEST(Ragged, GivesTheBitsOfSeparateCallsForAnyNumberOfThreads) {
  const Batch in({1, 0, 17, 2, 5, 300, 1, 33, 1, 0, 16}, {1, 4, 17, 40, 0, 301, 3000, 33, 80, 0, 9},
                 4, 2, 32, 16);
  const auto q = packed<float>(in.query, in.queries), k = packed<float>(in.key, in.keys),
             v = packed<float>(in.value, in.keys);
  const auto score = scaled_dot_product();
  Tensor<float, 3> expected(q.dimension(0), 4, 16);
  for (std::size_t b = 0; b < in.queries.size(); ++b) {
    attention_into(sequence(expected, in.queries, b), sequence(q, in.queries, b),
                   sequence(k, in.keys, b), sequence(v, in.keys, b), score, causal());
  }
  for (const int threads : {0, 1, 2, 5}) {
    const auto pool = threads > 0 ? std::make_unique<Eigen::ThreadPool>(threads) : nullptr;
    const auto out = attention(ragged(q, in.query_offsets()), ragged(k, in.key_offsets()),
                               ragged(v, in.key_offsets()), score, causal(), {.pool = pool.get()});
    EXPECT_TRUE(same(reference(out), reference(expected))) << threads << " threads";
  }
}

TEST(Ragged, AnyStridesAndStorageOrder) {
  const Batch in({3, 1, 20}, {4, 9, 20}, 2, 1);
  const auto qo = in.query_offsets(), ko = in.key_offsets();
  const auto q = packed<float>(in.query, in.queries), k = packed<float>(in.key, in.keys),
             v = packed<float>(in.value, in.keys);
  const auto expected =
      attention(ragged(q, qo), ragged(k, ko), ragged(v, ko), scaled_dot_product(), causal());
  const auto columns = packed<float, 3, Eigen::ColMajor>(in.query, in.queries);
  const auto key_columns = packed<float, 3, Eigen::ColMajor>(in.key, in.keys);
  // Tokens backwards in memory.
  Tensor<float, 3> turned(v.dimension(0), 1, 16);
  for (Index t = 0; t < v.dimension(0); ++t) {
    for (Index c = 0; c < 16; ++c) turned(v.dimension(0) - 1 - t, 0, c) = v(t, 0, c);
  }
  View<const float, 3> back = view(turned);
  back.data += (back.shape[0] - 1) * back.strides[0];
  back.strides[0] = -back.strides[0];
  const auto out = attention(ragged(columns, qo), ragged(key_columns, ko), ragged(back, ko),
                             scaled_dot_product(), causal());
  static_assert(int(decltype(out)::Layout) == int(Eigen::ColMajor));
  EXPECT_TRUE(near(unpacked(out, in.queries), unpacked(expected, in.queries), 1e-6));
  // (total, dim) is (total, 1, dim); the first head of two, and its keys in columns of a matrix.
  const View<const float, 3> heads = view(q);
  const View<const float, 2> first{heads.data, {heads.shape[0], 16}, {heads.strides[0], 1}};
  const auto k2 = packed<float, 2>(in.key, in.keys);
  const auto v2 = packed<float, 2, Eigen::ColMajor>(in.value, in.keys);
  const auto one = attention(ragged(first, Eigen::Vector4i(0, 3, 4, 24)), ragged(k2, ko),
                             ragged(v2, ko), scaled_dot_product(), causal());
  for (Index t = 0; t < 24; ++t) {
    for (Index c = 0; c < 16; ++c) EXPECT_NEAR(one(t, c), expected(t, 0, c), 1e-6);
  }
}

TEST(Ragged, WritesInto) {
  const Batch& in = mixed();
  const auto qo = in.query_offsets(), ko = in.key_offsets();
  const auto q = packed<float>(in.query, in.queries), k = packed<float>(in.key, in.keys),
             v = packed<float>(in.value, in.keys);
  const auto expected = attention(ragged(q, qo), ragged(k, ko), ragged(v, ko));
  Tensor<float, 3> out(expected.dimensions());
  out.setConstant(-5);
  attention_into(ragged(out, qo), ragged(q, qo), ragged(k, ko), ragged(v, ko));
  EXPECT_TRUE(same(reference(out), reference(expected)));
  out.setConstant(-5);
  attention_into(view(out), ragged(q, qo), ragged(k, ko), ragged(v, ko));
  EXPECT_TRUE(same(reference(out), reference(expected)));
  const auto sdpa = scaled_dot_product_attention(ragged(q, qo), ragged(k, ko), ragged(v, ko));
  EXPECT_TRUE(same(reference(sdpa), reference(expected)));
#ifdef HEED_TEST_COUNTS_ALLOCATIONS
  const auto call = [&] {
    attention_into(out, ragged(q, qo), ragged(k, ko), ragged(v, ko), scaled_dot_product(),
                   causal());
  };
  call();
  EXPECT_EQ(allocations_of(call), 0);
#endif
}

TEST(Ragged, WhatAMaskHidesNeverMatters) {
  const Batch& in = mixed();
  const auto qo = in.query_offsets(), ko = in.key_offsets();
  const std::vector<Index> lens{1, 3, 9, 33, 0, 150, 0, 299, 30};
  auto q = packed<float>(in.query, in.queries), k = packed<float>(in.key, in.keys),
       v = packed<float>(in.value, in.keys);
  const auto expected = attention(ragged(q, qo), ragged(k, ko), ragged(v, ko), scaled_dot_product(),
                                  valid_lens(lens));
  for (std::size_t b = 0; b < lens.size(); ++b) {
    for (Index t = ko[b] + lens[b]; t < ko[b + 1]; ++t) {
      for (Index h = 0; h < 2; ++h) {
        for (Index c = 0; c < 16; ++c) {
          k(t, h, c) = std::numeric_limits<float>::quiet_NaN();
          v(t, h, c) = std::numeric_limits<float>::infinity();
        }
      }
    }
  }
  const auto out = attention(ragged(q, qo), ragged(k, ko), ragged(v, ko), scaled_dot_product(),
                             valid_lens(lens));
  EXPECT_TRUE(same(reference(out), reference(expected)));
}

TEST(Ragged, EmptyBatches) {
  const Tensor<float, 3> none(0, 2, 4), some = packed<float>(random({1, 2, 3, 4}, 1), {3});
  const auto out = attention(ragged(none, {0}), ragged(none, {0}), ragged(none, {0}));
  EXPECT_EQ(out.dimension(0), 0);
  EXPECT_EQ(out.dimension(2), 4);
  const auto still =
      attention(ragged(none, {0, 0, 0}), ragged(none, {0, 0, 0}), ragged(none, {0, 0, 0}));
  EXPECT_EQ(still.dimension(0), 0);
  const auto pass =
      attention_forward(ragged(some, {0, 0, 3}), ragged(none, {0, 0, 0}), ragged(none, {0, 0, 0}));
  for (Index t = 0; t < 3; ++t) {
    for (Index h = 0; h < 2; ++h) {
      EXPECT_EQ(pass.log_sum_exp(t, h), -std::numeric_limits<float>::infinity());
      for (Index c = 0; c < 4; ++c) EXPECT_EQ(pass.output(t, h, c), 0);
    }
  }
  EXPECT_TRUE(refuses(
      [&] {
        attention(ragged(none, {0}), ragged(none, {0}), ragged(none, {0}), scaled_dot_product(),
                  valid_lens({3}));
      },
      {"valid_lens", "1 rows", "batch of 0"}));
}

TEST(Ragged, RefusesWhatDoesNotFit) {
  const auto tokens = [](Index total, Index heads, Index dim) {
    Tensor<float, 3> x(total, heads, dim);
    x.setConstant(1);
    return x;
  };
  const auto q = tokens(5, 4, 8), k = tokens(7, 2, 8), v = tokens(7, 2, 6);
  Tensor<float, 3> out(5, 4, 6);
  out.setConstant(-3);
  using Offsets = std::vector<Index>;
  const auto call = [&](const Offsets& of_q, const Offsets& of_k, const Offsets& of_v,
                        const auto& key, const auto& value) {
    return [&, of_q, of_k, of_v] {
      attention_into(out, ragged(q, of_q), ragged(key, of_k), ragged(value, of_v));
    };
  };
  const Offsets qo{0, 2, 5}, ko{0, 3, 7};
  EXPECT_NO_THROW(call(qo, ko, ko, k, v)());
  out.setConstant(-3);
  const char* name = "heed::attention_into: ";
  EXPECT_TRUE(refuses(call({}, ko, ko, k, v), {name, "offsets of query are empty"}));
  EXPECT_TRUE(refuses(call({1, 2, 5}, ko, ko, k, v), {name, "query begin with 1"}));
  EXPECT_TRUE(refuses(call({-1, 2, 5}, ko, ko, k, v), {name, "query begin with -1"}));
  EXPECT_TRUE(refuses(call(qo, {0, 8, 7}, ko, k, v), {name, "key fall from 8 to 7 at offset 2"}));
  EXPECT_TRUE(
      refuses(call({0, 2, 4}, ko, ko, k, v), {name, "query end at 4", "5 tokens (axis 0)"}));
  EXPECT_TRUE(
      refuses(call({0, 2, 6}, ko, ko, k, v), {name, "query end at 6", "5 tokens (axis 0)"}));
  EXPECT_TRUE(refuses(call({0, 1, 2, 5}, ko, ko, k, v),
                      {name, "query and key differ in batch", "3 and 2 sequences"}));
  EXPECT_TRUE(refuses(call(qo, ko, {0, 7}, k, v),
                      {name, "key and value differ in batch", "2 and 1 sequences"}));
  EXPECT_TRUE(
      refuses(call(qo, ko, {0, 4, 7}, k, v), {name, "key and value differ at offset 1: 3 and 4"}));
  EXPECT_TRUE(refuses(call(qo, ko, {0, 3, 6}, k, tokens(6, 2, 6)),
                      {name, "number of keys (axis 0): 7 and 6", "(7, 2, 8)", "(6, 2, 6)"}));
  EXPECT_TRUE(refuses(call(qo, ko, ko, k, tokens(7, 1, 6)), {name, "heads (axis 1): 2 and 1"}));
  EXPECT_TRUE(refuses(call(qo, ko, ko, tokens(7, 3, 8), tokens(7, 3, 6)),
                      {name, "3 key heads do not divide 4 query heads (axis 1)"}));
  EXPECT_TRUE(refuses(call(qo, ko, ko, tokens(7, 2, 9), v), {name, "one width, got 8 and 9"}));
  const Offsets huge{0, 2, std::numeric_limits<Index>::max()};
  EXPECT_TRUE(refuses(call(huge, ko, ko, k, v), {name, "query end at 9223372036854775807"}));
  const auto into = [&](auto&& to) {
    attention_into(to, ragged(q, qo), ragged(k, ko), ragged(v, ko));
  };
  EXPECT_TRUE(refuses([&] { into(ragged(out, {0, 1, 5})); },
                      {name, "the output and query differ at offset 1: 1 and 2"}));
  Tensor<float, 3> narrow(5, 4, 5);
  EXPECT_TRUE(refuses([&] { into(narrow); }, {name, "(5, 4, 5)", "(5, 4, 6)"}));
  Tensor<float, 2> bias_of(2, 4);  // the longest sequences have 3 queries and 4 keys
  bias_of.setConstant(0);
  EXPECT_TRUE(refuses(
      [&] {
        attention_into(out, ragged(q, qo), ragged(k, ko), ragged(v, ko),
                       scaled_dot_product() | bias(bias_of));
      },
      {name, "bias of shape (2, 4)", "queries", "(2, 4, 3, 4)"}));
  const Tensor<bool, 2> shown(3, 3);
  EXPECT_TRUE(refuses(
      [&] {
        attention_into(out, ragged(q, qo), ragged(k, ko), ragged(v, ko), scaled_dot_product(),
                       allow(shown));
      },
      {name, "allow of shape (3, 3)", "keys", "(2, 4, 3, 4)"}));
  EXPECT_TRUE(refuses(
      [&] {
        attention_into(out, ragged(q, qo), ragged(k, ko), ragged(v, ko), scaled_dot_product(),
                       valid_lens({3, -1}));
      },
      {name, "length of -1 in batch 1"}));
  EXPECT_TRUE(refuses(
      [&] {
        attention_into(out, ragged(q, qo), ragged(k, ko), ragged(v, ko), scaled_dot_product(),
                       causal(), {.dropout = 1});
      },
      {name, "dropout is 1"}));
  auto both = tokens(7, 2, 8);
  Tensor<float, 3> same_heads(7, 2, 8);
  EXPECT_TRUE(refuses(
      [&] { attention_into(both, ragged(both, ko), ragged(k, ko), ragged(same_heads, ko)); },
      {name, "shares elements with query"}));
  for (Index n = 0; n < out.size(); ++n) EXPECT_EQ(out.data()[n], -3);
}

}  // namespace
}  // namespace heed::test
