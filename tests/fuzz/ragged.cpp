#include "heed/ragged.hpp"

#include "fuzz/attention.hpp"
#include "heed/modifier.hpp"

namespace heed::fuzz {
namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

std::vector<Index> offsets_of(const std::vector<Index>& lengths) {
  std::vector<Index> offsets{0};
  for (const Index n : lengths) offsets.push_back(offsets.back() + n);
  return offsets;
}

/// Sequences (batch, heads, longest, dim) one after another, as (total, heads, dim).
Tensor<float, 3> packed(const Numbers& x, const std::vector<Index>& lengths) {
  const auto offsets = offsets_of(lengths);
  Tensor<float, 3> result(offsets.back(), x.shape[1], x.shape[3]);
  for_each_place(x.shape, [&](Index b, Index h, Index i, Index c) {
    if (i < lengths[at(b)]) result(offsets[at(b)] + i, h, c) = static_cast<float>(x(b, h, i, c));
  });
  return result;
}

/// The inverse; what is not there is left as the oracle has it.
Tensor<float, 4> unpacked(const Tensor<float, 3>& x, const Numbers& expected,
                          const std::vector<Index>& lengths) {
  const auto offsets = offsets_of(lengths);
  Tensor<float, 4> result(expected.shape[0], expected.shape[1], expected.shape[2],
                          expected.shape[3]);
  for_each_place(expected.shape, [&](Index b, Index h, Index i, Index c) {
    result(b, h, i, c) =
        i < lengths[at(b)] ? x(offsets[at(b)] + i, h, c) : static_cast<float>(expected(b, h, i, c));
  });
  return result;
}

}  // namespace

/// Sequences without padding give what each gives alone.
void attend_ragged(Draw& draw) {
  std::vector<Index> q_lengths, k_lengths;
  Sizes s{};
  s.batch = draw.integer(0, 5);
  for (Index b = 0; b < s.batch; ++b) {
    q_lengths.push_back(draw.chance(30) ? draw.integer(0, 2) : draw.length(70));
    k_lengths.push_back(draw.chance(20) ? draw.integer(0, 2) : draw.length(100));
    s.queries = std::max(s.queries, q_lengths.back());
    s.keys = std::max(s.keys, k_lengths.back());
  }
  s.kv_heads = draw.integer(1, 2);
  s.heads = s.kv_heads * draw.integer(1, 2);
  s.query_dim = s.key_dim = draw.length(20);
  s.value_dim = draw.length(20);
  Case<float> c(draw, s);
  Positions positions(s.heads, q_lengths, k_lengths);
  const auto mask = draw_mask<1>(draw, positions);
  const auto slopes = draw_vector(draw, s.heads, draw.one_of({0., .1}));
  c.attention.similarity = oracle::dot_product(s.key_dim, Real(.5));
  c.attention.modifiers = {oracle::alibi(reals(slopes))};
  c.attention.allowed = [&](Index b, Index h, Index i, Index j) {
    return i < q_lengths[at(b)] && j < k_lengths[at(b)] && mask.allowed(b, h, i, j);
  };
  c.poison(draw);
  about() = c.text();
  const Tolerance<float> tolerance(s);
  const auto q = packed(c.attention.query, q_lengths), k = packed(c.attention.key, k_lengths),
             v = packed(c.attention.value, k_lengths);
  const auto q_offsets = offsets_of(q_lengths), k_offsets = offsets_of(k_lengths);
  const auto score = dot_product(.5) | alibi(slopes);
  const auto forward = oracle::Evaluation(c.attention).forward();
  const auto pass = attention_forward(ragged(q, q_offsets), ragged(k, k_offsets),
                                      ragged(v, k_offsets), score, mask.mask, c.options);
  const auto output = unpacked(pass.output, forward.output, q_lengths);
  compare("ragged attention", view(output), forward.output,
          row_magnitude(forward.output_magnitude, forward.score_magnitude, tolerance.epsilon),
          tolerance);
  if (!draw.chance(60)) return;
  const auto grad = rounded<float>(draw_numbers(draw, forward.output.shape, 1));
  const auto expected = oracle::Evaluation(c.attention).backward(forward, grad);
  const auto grad_tokens = packed(grad, q_lengths);
  const auto gradients =
      attention_backward(ragged(q, q_offsets), ragged(k, k_offsets), ragged(v, k_offsets), pass,
                         ragged(grad_tokens, q_offsets), score, mask.mask, c.options);
  if (!known<float>(forward)) return;
  auto twice = tolerance;
  twice.times *= 2;
  const auto check = [&](const char* what, const Tensor<float, 3>& actual, const Numbers& right,
                         const Numbers& size, const std::vector<Index>& lengths) {
    const auto padded = unpacked(actual, right, lengths);
    compare(what, view(padded), right, size, twice);
  };
  check("the ragged gradient of the query", gradients.query, expected.query,
        expected.query_magnitude, q_lengths);
  check("the ragged gradient of the key", gradients.key, expected.key, expected.key_magnitude,
        k_lengths);
  check("the ragged gradient of the value", gradients.value, expected.value,
        expected.value_magnitude, k_lengths);
}

}  // namespace heed::fuzz
