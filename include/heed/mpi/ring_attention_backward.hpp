#pragma once

#include <mpi.h>
#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/core/unit.hpp"
#include "heed/core/view.hpp"
#include "heed/engine/call.hpp"
#include "heed/engine/dispatch.hpp"
#include "heed/mpi/layout.hpp"
#include "heed/mpi/ring.hpp"
#include "heed/mpi/shard.hpp"
#include "heed/mpi/trained.hpp"
#include "heed/operator/attention_backward.hpp"
#include "heed/policy/contract.hpp"
#include "heed/policy/mask/range.hpp"
#include "heed/policy/options.hpp"
#include "heed/policy/score/dot_product.hpp"

namespace heed {
namespace detail {

/// to += from, or to = from.
template <class Number>
void add_numbers(Number* to, const Number* from, Index count, bool first,
                 Eigen::ThreadPoolInterface* pool) {
  constexpr Index run = Index(1) << 16;
  parallel_for(pool, (count + run - 1) / run, [&](Index begin, Index end) {
    const Index last = std::min(end * run, count);
    if (first) {
      std::copy(from + begin * run, from + last, to + begin * run);
    } else {
      for (Index n = begin * run; n < last; ++n) to[n] += from[n];
    }
  });
}

/// The gradients of keys and values, on their way round with the keys and values. What a round's
/// pairs give is added to what has arrived from the rank before, and sent on while the next round
/// is computed; the last rank on the way sends it home.
template <class Ring>
class TravellingGradients {
  using Number = typename Ring::Number;

 public:
  explicit TravellingGradients(Ring& ring) : ring_(ring), home_traffic_(ring.ranks) {}

  void lay(Layout& to) {
    memory_ = {ring_.memory.key_shape, ring_.memory.value_shape};
    const Index bytes = ring_.keys.of_rank() * memory_.bytes();
    for (auto& buffer : sums_) buffer = to.take<std::byte>(bytes);
    round_ = to.take<std::byte>(bytes);
    home_ = to.take<std::byte>(bytes);
    pair_ = to.take<std::byte>(memory_.bytes());
  }

  const ChunkMemory<Number, Number>& memory() const { return memory_; }
  /// Where a pair's gradients go, and at the end those of the rank's own chunks.
  std::byte* pair() const { return pair_; }
  std::byte* home(Index n) const { return home_ + n * memory_.bytes(); }

  void before(Index round) {
    const Index rank = ring_.ranks.rank(), owner = ring_.travel->owner_in(round);
    for (Index n = 0; n < ring_.keys.of_rank(); ++n) {
      fresh_[n] = true;
      if (round == 0 && hops(rank, n) > 0) {
        home_traffic_.receive(home(n), memory_.bytes(), ring_.travel->after(rank, hops(rank, n)),
                              home_tag(n));
      }
      if (round > 0 && hops(owner, n) >= round) {
        ring_.traffic.receive(at(sums_[round % 2], n), memory_.bytes(), ring_.travel->previous(),
                              next_tag(n));
      }
    }
  }

  /// A pair has left its gradients for chunk n of the round.
  void add_pair(Index n) {
    add(at(round_, n), pair_, fresh_[n]);
    fresh_[n] = false;
  }

  void after(Index round) {
    const Index owner = ring_.travel->owner_in(round);
    for (Index n = 0; n < ring_.keys.of_rank(); ++n) {
      const Index last = hops(owner, n);
      if (last < round && round > 0) continue;
      std::byte* const sums = at(sums_[round % 2], n);
      if (round == 0 && fresh_[n]) std::fill(sums, sums + memory_.bytes(), std::byte(0));
      if (!fresh_[n]) add(sums, at(round_, n), round == 0);
      if (last > round) {
        ring_.traffic.send(sums, memory_.bytes(), ring_.travel->next(), next_tag(n));
      } else if (round > 0) {
        ring_.traffic.send(sums, memory_.bytes(), owner, home_tag(n));
      } else {
        std::copy(sums, sums + memory_.bytes(), home(n));
      }
    }
  }

  void wait() {
    ring_.traffic.wait();
    ring_.traffic.count_waiting(home_traffic_.wait());
    ring_.agreement.attempt([&] {
      ring_.traffic.check();
      home_traffic_.check();
    });
  }

 private:
  static int next_tag(Index n) { return 2 + static_cast<int>(n); }
  static int home_tag(Index n) { return 4 + static_cast<int>(n); }
  std::byte* at(std::byte* buffer, Index n) const { return buffer + n * memory_.bytes(); }
  Index hops(Index owner, Index n) const { return ring_.travel->hops(ring_.keys.number(owner, n)); }
  void add(std::byte* to, const std::byte* from, bool first) const {
    add_numbers(reinterpret_cast<Number*>(to), reinterpret_cast<const Number*>(from),
                memory_.bytes() / static_cast<Index>(sizeof(Number)), first, ring_.pool);
  }

  Ring& ring_;
  Traffic home_traffic_;
  ChunkMemory<Number, Number> memory_{};
  std::byte *sums_[2] = {}, *round_ = nullptr, *home_ = nullptr, *pair_ = nullptr;
  bool fresh_[2] = {};
};

/// Adds the gradients of sinks, as add_sink_gradients does, which is given the modifiers as they
/// are for all keys.
template <class Number_, class Definition, class Output>
void add_sinks(const Problem& problem, const Definition& definition, const Output& output) {
  const auto whole = [](const auto&... modifier) {
    return std::tuple<const typename std::remove_cvref_t<decltype(modifier)>::Whole&...>(
        modifier...);
  };
  using Modifiers = decltype(std::apply(whole, definition.modifiers));
  struct Score {
    Modifiers modifiers;
  };
  struct Call {
    using Number [[maybe_unused]] = Number_;
    const Problem& problem;
    const Output& output;
    Score definition;
  };
  add_sink_gradients(Call{problem, output, {std::apply(whole, definition.modifiers)}});
}

}  // namespace detail

/// The gradients of ring_attention, each rank's of its piece, for the rank's piece of grad_output:
///
///   pass         the rank's, of ring_attention_forward for the same arguments
///   grad_output  (..., queries / R, value_dim)
///   -> {query, key, value}, each of the shape and the number type of the rank's input
///
/// Gradients of keys and values travel with their keys and values, in the accumulator's type, and
/// home from the last rank that saw them. To parameters that were given with a place for their
/// gradient the sum over all ranks, taken in their order, is added on every rank; a gradient of a
/// bias that has the rows of the rank's queries gets those. Nothing is added where a rank fails.
/// Collective, as ring_attention is; see attention_backward.
template <class Q, class K, class V, class Pass, class G, class S = DotProduct, class M = NoMask>
auto ring_attention_backward(const Q& q, const K& k, const V& v, const Pass& pass,
                             const G& grad_output, MPI_Comm communicator, SequenceLayout layout,
                             const S& score = scaled_dot_product(), const M& mask = no_mask(),
                             const AttentionOptions& options = {}, RingReport* report = nullptr) {
  using namespace detail;
  constexpr const char* function = "ring_attention_backward";
  const auto& query = piece_of(q);
  const auto& key = piece_of(k);
  const auto& value = piece_of(v);
  const auto& grad = piece_of(grad_output);
  using Query = std::remove_cvref_t<decltype(query)>;
  using Key = std::remove_cvref_t<decltype(key)>;
  using Value = std::remove_cvref_t<decltype(value)>;
  check_types<Query, Key, Value, S, M>();
  using Ring = RingCall<Query, Key, Value, S, M>;
  using Number = typename Ring::Number;
  using Definition = decltype(bind_score<Number, NaturalUnit>(score, std::declval<Problem&>()));
  using Views = decltype(pass_views(std::declval<typename Ring::Local&>(), pass, grad));

  AttentionGradients<decltype(make_like(query)), decltype(make_like(key)),
                     decltype(make_like(value))>
      gradients;
  std::optional<Views> views;
  std::optional<Definition> definition;
  std::optional<TrainedGradients<Definition>> trained_gradients;
  std::optional<TravellingGradients<Ring>> travelling;
  Number *d_query = nullptr, *pair_d_query = nullptr;
  Ring ring(function, query, key, value, communicator, layout, score, mask, options,
            [&](Ring& of, Layout& to) {
              const Problem& p = of.local->problem;
              if (!travelling) {
                views.emplace(pass_views(*of.local, pass, grad));
                definition.emplace(bind_score<Number, NaturalUnit>(score, of.whole));
                gradients = {make_like(query), make_like(key), make_like(value)};
                check_gradients(*of.local, *definition, mask, *views,
                                views->with(rank4(gradients.query), rank4(gradients.key),
                                            rank4(gradients.value)));
                trained_gradients.emplace(*definition, of.whole);
                for (auto& of_chunk : of.policies) {
                  trained_gradients->redirect(of_chunk.definition);
                }
                travelling.emplace(of);
              }
              travelling->lay(to);
              d_query = to.take<Number>(p.batch * p.heads * p.queries * p.query_dim);
              pair_d_query = to.take<Number>(p.batch * p.heads * of.queries.rows * p.query_dim);
            });
  const Problem& p = ring.local->problem;
  const Index rows = ring.queries.rows, heads = p.batch * p.heads;
  std::fill(d_query, d_query + heads * p.queries * p.query_dim, Number(0));
  ring.run([&](Index round) { travelling->before(round); },
           [&](Index n, Index m, std::byte* chunk) {
             const Index first = n * rows;
             const View<const typename decltype(views->log_sum_exp)::Scalar, 3> log_sum_exp =
                 row_range(views->log_sum_exp, first, rows);
             const PassViews<typename decltype(views->output)::Scalar,
                             typename decltype(views->log_sum_exp)::Scalar,
                             typename decltype(views->grad_output)::Scalar>
                 of_chunk{row_range(views->output, first, rows), log_sum_exp,
                          row_range(views->grad_output, first, rows)};
             const auto to =
                 of_chunk.with(packed_view(pair_d_query, {p.batch, p.heads, rows, p.query_dim}),
                               travelling->memory().keys(travelling->pair()),
                               travelling->memory().values(travelling->pair()));
             ring.with_call(n, chunk, to, [&](const auto& call) {
               run_first_that_suits<Backward, ReferenceBackward>(call, ring.pool);
             });
             for (Index head = 0; head < heads; ++head) {
               add_numbers(d_query + (head * p.queries + first) * p.query_dim,
                           pair_d_query + head * rows * p.query_dim, rows * p.query_dim, false,
                           ring.pool);
             }
             travelling->add_pair(m);
           },
           [&](Index round) { travelling->after(round); });
  travelling->wait();
  ring.agreement.attempt([&] {
    const auto to =
        views->with(rank4(gradients.query), rank4(gradients.key), rank4(gradients.value));
    copy_tensor(packed_view<const Number>(d_query, {p.batch, p.heads, p.queries, p.query_dim}),
                to.query);
    for (Index n = 0; n < ring.keys.of_rank(); ++n) {
      const Index first = n * ring.keys.rows;
      const auto& memory = travelling->memory();
      const View<const Number, 4> d_key = memory.keys(travelling->home(n)),
                                  d_value = memory.values(travelling->home(n));
      copy_tensor(d_key, row_range(to.key, first, ring.keys.rows));
      copy_tensor(d_value, row_range(to.value, first, ring.keys.rows));
    }
    add_sinks<Number>(p, ring.policies[0].definition, to);
  });
  ring.settle(report);
  trained_gradients->add(ring.ranks);
  return gradients;
}

}  // namespace heed
