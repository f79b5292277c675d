#include <numeric>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include <heed/ragged.hpp>

#include "support.hpp"

namespace heed_bench {
namespace {

constexpr Index heads = 4, dim = 64;

using Lengths = std::vector<Index>;

/// Queries and keys of each sequence.
struct Mixture {
  const char* name;
  Lengths queries, keys;
};

Lengths uniform(Index count, Index most, unsigned seed) {
  std::mt19937 bits(seed);
  Lengths lengths;
  for (Index n = 0; n < count; ++n) {
    lengths.push_back(1 + static_cast<Index>(bits()) % most);
  }
  return lengths;
}
Lengths repeated(Index count, Index length) {
  return Lengths(static_cast<std::size_t>(count), length);
}
Lengths together(Lengths a, const Lengths& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// The same sequences without padding, (total, heads, dim), and with, (batch, longest, heads, dim).
struct Sequences {
  Lengths queries, keys;
  std::vector<Index> query_offsets{0}, key_offsets{0};
  Tensor<float, 3> q, k, v, out;
  Tensor<float, 4> padded_q, padded_k, padded_v, padded_out;
  std::unique_ptr<Eigen::ThreadPool> threads;

  Sequences(const Mixture& mixture, int thread_count)
      : queries(mixture.queries), keys(mixture.keys) {
    if (thread_count > 1) threads = std::make_unique<Eigen::ThreadPool>(thread_count);
    for (const Index n : queries) query_offsets.push_back(query_offsets.back() + n);
    for (const Index n : keys) key_offsets.push_back(key_offsets.back() + n);
    q = random<float, 3>({query_offsets.back(), heads, dim}, 1);
    k = random<float, 3>({key_offsets.back(), heads, dim}, 2);
    v = random<float, 3>({key_offsets.back(), heads, dim}, 3);
    out.resize(q.dimensions());
    padded_q = padded(q, query_offsets);
    padded_k = padded(k, key_offsets);
    padded_v = padded(v, key_offsets);
    padded_out.resize(padded_q.dimensions());
  }

  heed::AttentionOptions options() const { return {.pool = threads.get()}; }

  /// Sequence b of tokens, (1, heads, length, dim).
  static View<float, 4> sequence(Tensor<float, 3>& x, const std::vector<Index>& offsets,
                                 std::size_t b) {
    return {x.data() + offsets[b] * heads * dim,
            {1, heads, offsets[b + 1] - offsets[b], dim},
            {0, dim, heads * dim, 1}};
  }
  static View<float, 4> by_heads(Tensor<float, 4>& x) {
    return {x.data(),
            {x.dimension(0), heads, x.dimension(1), dim},
            {x.dimension(1) * heads * dim, dim, heads * dim, 1}};
  }
  View<float, 4> output() {
    return {out.data(), {1, heads, out.dimension(0), dim}, {0, dim, heads * dim, 1}};
  }

  void ragged(const auto& mask) {
    heed::attention_into(out, heed::ragged(q, query_offsets), heed::ragged(k, key_offsets),
                         heed::ragged(v, key_offsets), heed::scaled_dot_product(), mask, options());
  }
  void one_by_one(const auto& mask) {
    for (std::size_t b = 0; b < queries.size(); ++b) {
      heed::attention_into(sequence(out, query_offsets, b), sequence(q, query_offsets, b),
                           sequence(k, key_offsets, b), sequence(v, key_offsets, b),
                           heed::scaled_dot_product(), mask, options());
    }
  }
  void with_padding(const auto& mask) {
    heed::attention_into(by_heads(padded_out), by_heads(padded_q), by_heads(padded_k),
                         by_heads(padded_v), heed::scaled_dot_product(), mask, options());
  }
  /// What is no padding, into `out`.
  void collect() {
    const Index row = heads * dim;
    for (std::size_t b = 0; b < queries.size(); ++b) {
      std::copy_n(padded_out.data() + static_cast<Index>(b) * padded_out.dimension(1) * row,
                  queries[b] * row, out.data() + query_offsets[b] * row);
    }
  }

 private:
  static Tensor<float, 4> padded(const Tensor<float, 3>& x, const std::vector<Index>& offsets) {
    Index longest = 0;
    for (std::size_t b = 0; b + 1 < offsets.size(); ++b) {
      longest = std::max(longest, offsets[b + 1] - offsets[b]);
    }
    const auto batch = static_cast<Index>(offsets.size()) - 1, row = heads * dim;
    Tensor<float, 4> result(batch, longest, heads, dim);
    result.setZero();
    for (Index b = 0; b < batch; ++b) {
      const Index first = offsets[static_cast<std::size_t>(b)];
      std::copy_n(x.data() + first * row, (offsets[static_cast<std::size_t>(b + 1)] - first) * row,
                  result.data() + b * longest * row);
    }
    return result;
  }
};

/// By the definition, in double, for some tokens.
Expected reference(Sequences& x, bool causal) {
  Expected expected(1, heads, x.out.dimension(0), dim);
  for (std::size_t row = 0; row < expected.rows.size(); ++row) {
    std::size_t b = 0;
    while (x.query_offsets[b + 1] <= expected.rows[row]) ++b;
    const Index i = expected.rows[row] - x.query_offsets[b];
    const Index seen = causal ? i + x.keys[b] - x.queries[b] + 1 : x.keys[b];
    const auto q = Sequences::sequence(x.q, x.query_offsets, b),
               k = Sequences::sequence(x.k, x.key_offsets, b),
               v = Sequences::sequence(x.v, x.key_offsets, b);
    for (Index h = 0; h < heads; ++h) {
      Eigen::VectorXd weights(seen);
      for (Index j = 0; j < seen; ++j) {
        double dot = 0;
        for (Index c = 0; c < dim; ++c) dot += double(q(0, h, i, c)) * double(k(0, h, j, c));
        weights(j) = dot / std::sqrt(double(dim));
      }
      weights = (weights.array() - weights.maxCoeff()).exp();
      for (Index c = 0; c < dim; ++c) {
        double sum = 0;
        for (Index j = 0; j < seen; ++j) sum += weights(j) * double(v(0, h, j, c));
        expected.values(0, h, static_cast<Index>(row), c) = sum / weights.sum();
      }
    }
  }
  return expected;
}

enum class Rival { one_by_one, padding };

Case make(const std::string& name, const Mixture& mixture, bool causal, int threads, Rival rival) {
  auto x = std::make_shared<Sequences>(mixture, threads);
  const Expected expected = reference(*x, causal);
  const auto check = [&](const char* who, std::function<void()> run) {
    return verified(
        name + ": " + who, std::move(run), [x] { return x->output(); }, expected,
        attention_bound<float>());
  };
  Case c;
  c.data = x;
  c.threaded = threads > 1;
  for (std::size_t b = 0; b < x->queries.size(); ++b) {
    const double n = double(x->queries[b]), m = double(x->keys[b]);
    c.flops += 4 * dim * heads * (causal ? n * (m - n) + n * (n + 1) / 2 : n * m);
  }
  c.goal = {Measure::base, 1};
  const auto contend = [&, x = x.get()](const auto& mask, const auto& padded_mask) {
    c.heed = check("ragged", [=] { x->ragged(mask); });
    if (rival == Rival::one_by_one) {
      c.base = check("one by one", [=] { x->one_by_one(mask); }).run;
      c.base_name = "one by one";
    } else {
      check("padded", [=] {
        x->with_padding(padded_mask);
        x->collect();
      });
      c.base = [=] { x->with_padding(padded_mask); };
      c.base_name = "padded";
    }
  };
  const auto lens = heed::valid_lens(x->keys);
  if (causal) {
    Lengths distances;
    for (std::size_t b = 0; b < x->keys.size(); ++b) {
      distances.push_back(x->keys[b] - x->queries[b]);
    }
    contend(heed::causal(), heed::causal(std::move(distances)) && lens);
  } else {
    contend(heed::no_mask(), lens);
  }
  return c;
}

void add_all() {
  const auto same = [](const char* name, const Lengths& lengths) {
    return Mixture{name, lengths, lengths};
  };
  const std::vector<Mixture> mixtures = {
      same("64x16", repeated(64, 16)),
      same("8x128", repeated(8, 128)),
      same("32x1..16", uniform(32, 16, 5)),
      same("16x1..128", uniform(16, 128, 6)),
      same("1x512+63x16", together(repeated(63, 16), {512})),
      {"decode_16x1..512", repeated(16, 1), uniform(16, 512, 7)},
      {"decode_15x256+prefill_256", together(repeated(15, 1), {256}), repeated(16, 256)},
  };
  for (const int threads : {1, 2}) {
    for (const bool causal : {false, true}) {
      for (const Rival rival : {Rival::one_by_one, Rival::padding}) {
        for (const Mixture& mixture : mixtures) {
          const bool alone = rival == Rival::one_by_one;
          add(join("ragged/", threads == 1 ? "" : "2_threads/", causal ? "causal/" : "",
                   alone ? "one_by_one/" : "padded/", mixture.name),
              [=](const std::string& name) { return make(name, mixture, causal, threads, rival); });
        }
      }
    }
  }
}

const Suite suite(add_all);

}  // namespace
}  // namespace heed_bench
