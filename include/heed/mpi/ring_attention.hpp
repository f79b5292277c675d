#pragma once

#include <mpi.h>
#include <cstddef>
#include <type_traits>

#include "heed/core/scratch.hpp"
#include "heed/core/view.hpp"
#include "heed/engine/call.hpp"
#include "heed/mpi/layout.hpp"
#include "heed/mpi/ring.hpp"
#include "heed/mpi/running_merge.hpp"
#include "heed/mpi/shard.hpp"
#include "heed/operator/attention.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/mask/range.hpp"
#include "heed/policy/options.hpp"
#include "heed/policy/score/dot_product.hpp"

namespace heed {
namespace detail {

/// Gives the pass; the log-sum-exp is left empty unless it is wanted.
template <class Q, class K, class V, class S, class M>
auto ring_forward(const char* function, bool with_log_sum_exp, const Q& q, const K& k, const V& v,
                  MPI_Comm communicator, SequenceLayout layout, const S& score, const M& mask,
                  const AttentionOptions& options, RingReport* report) {
  check_types<Q, K, V, S, M>();
  using Ring = RingCall<Q, K, V, S, M>;
  using Number = typename Ring::Number;
  using Output = decltype(std::declval<typename Ring::Local&>().make_output());
  using LogSumExp = decltype(std::declval<typename Ring::Local&>().make_log_sum_exp());
  AttentionPass<Output, LogSumExp> pass;
  std::optional<RunningMerge<Number>> merged;
  Number *output = nullptr, *rows = nullptr;
  Ring ring(function, q, k, v, communicator, layout, score, mask, options,
            [&](Ring& of, Layout& to) {
              const Problem& p = of.local->problem;
              if (!merged) {
                pass.output = of.local->make_output();
                if (with_log_sum_exp) pass.log_sum_exp = of.local->make_log_sum_exp();
                merged.emplace(p.batch, p.heads, p.queries, p.value_dim);
              }
              merged->lay(to);
              rows = to.take<Number>(p.batch * p.heads * of.queries.rows);
              output = to.take<Number>(p.batch * p.heads * of.queries.rows * p.value_dim);
            });
  const Problem& p = ring.local->problem;
  const std::array<Index, 4> shape{p.batch, p.heads, ring.queries.rows, p.value_dim};
  const ForwardOutput<Number, Number> to{packed_view(output, shape),
                                         {rows,
                                          {p.batch, p.heads, ring.queries.rows},
                                          {p.heads * ring.queries.rows, ring.queries.rows, 1}}};
  merged->start();
  const auto nothing = [](Index) {};
  ring.run(
      nothing,
      [&](Index n, Index, std::byte* chunk) {
        ring.with_call(n, chunk, to, [&](const auto& call) {
          run_first_that_suits<Decode, Forward, Reference>(call, ring.pool);
        });
        merged->absorb(n * ring.queries.rows, to.output, to.log_sum_exp, ring.pool);
      },
      nothing);
  ring.agreement.attempt([&] {
    for_each_bound(ring.policies[0].definition, [&]<class Bound>(const Bound& bound) {
      if constexpr (requires { typename Bound::Whole; }) {
        if constexpr (modifier_traits<typename Bound::Whole>.is_sink) {
          for (Index b = 0; b < p.batch; ++b) {
            for (Index h = 0; h < p.heads; ++h) merged->absorb_sink(b, h, bound.logit(h));
          }
        }
      }
    });
    View<Number, 3> log_sum_exp{};
    if (with_log_sum_exp) log_sum_exp = ring.local->wide_rows(pass.log_sum_exp);
    merged->finish(ring.local->wide(pass.output), log_sum_exp);
  });
  ring.settle(report);
  return pass;
}

}  // namespace detail

/// Attention over sequences that no rank has as a whole. Every rank gives its piece of the queries'
/// and of the keys' sequence, all of one shape, and gets its piece of the output:
///
///   query (..., queries / R, query_dim), key (..., keys / R, key_dim), value (..., keys / R,
///   value_dim) of R ranks -> (..., queries / R, value_dim)
///
/// Keys and values go from rank to rank, one step a round, while what has arrived is computed; a
/// rank holds its own piece and two more of others' at a time. Chunks stop at the last rank that
/// may see any of theirs, and what a mask hides of a chunk is not computed. Number types, shapes
/// and what a score, mask, sink or dropout means are as in attention(), for the whole sequences:
///
///   positions  in scores, masks and dropout are those in the whole sequence
///   bias, allow  have the rows of the rank's queries, in the order of its piece, or of all
///                queries, and all keys
///   lengths, ids and offsets (valid_lens, segments, causal(offsets)) are those of the whole
///
/// and have to be the same on all ranks. Partial results are merged in the order of the rounds, in
/// the accumulator's type: the result has the same bits whatever the timing and the threads.
///
/// Collective: all ranks of the communicator take part, in one call at a time. Where a rank's
/// arguments do not fit, where ranks differ in shapes, layout or options, or a user's function
/// throws on some rank, all ranks throw and name that rank: std::invalid_argument for arguments,
/// else std::runtime_error, also for a message that MPI fails to send or to receive. An error of
/// one of MPI's collective operations, in which the ranks agree on all this, is std::runtime_error
/// where MPI tells of it; other ranks may wait, as they may for a rank that is gone. No thread but
/// the caller's calls MPI. (Liu, Zaharia and Abbeel, "Ring attention with blockwise transformers
/// for near-infinite context", 2023.)
template <class Q, class K, class V, class S = DotProduct, class M = NoMask>
auto ring_attention(const Q& q, const K& k, const V& v, MPI_Comm communicator,
                    SequenceLayout layout, const S& score = scaled_dot_product(),
                    const M& mask = no_mask(), const AttentionOptions& options = {},
                    RingReport* report = nullptr) {
  return detail::ring_forward("ring_attention", false, detail::piece_of(q), detail::piece_of(k),
                              detail::piece_of(v), communicator, layout, score, mask, options,
                              report)
      .output;
}

/// The same together with the log-sum-exp of each of the rank's queries, over all keys.
/// -> {output, log_sum_exp}
template <class Q, class K, class V, class S = DotProduct, class M = NoMask>
auto ring_attention_forward(const Q& q, const K& k, const V& v, MPI_Comm communicator,
                            SequenceLayout layout, const S& score = scaled_dot_product(),
                            const M& mask = no_mask(), const AttentionOptions& options = {},
                            RingReport* report = nullptr) {
  return detail::ring_forward("ring_attention_forward", true, detail::piece_of(q),
                              detail::piece_of(k), detail::piece_of(v), communicator, layout, score,
                              mask, options, report);
}

}  // namespace heed
