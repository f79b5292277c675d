#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <type_traits>

#include "heed/detail/lanes.hpp"
#include "heed/detail/masking.hpp"
#include "heed/detail/math.hpp"
#include "heed/detail/online_softmax.hpp"
#include "heed/detail/pack.hpp"
#include "heed/detail/parallel.hpp"
#include "heed/detail/problem.hpp"
#include "heed/detail/tile.hpp"
#include "heed/detail/widen.hpp"

namespace heed::detail {

/// Similarities whose step is the same for every feature, so that a vector may hold several.
template <class Similarity>
concept FeaturesAlike = !requires(const Similarity& s) {
  s.weight;
}
&&!requires(const Similarity& s) { s.width; };

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // of a vector type as template argument
/// Lane i of the result is the sum of the lanes of x[i].
template <class Scalar>
EIGEN_ALWAYS_INLINE Lanes<Scalar> sums_across(const Lanes<Scalar> (&x)[Lanes<Scalar>::size]) {
  using L = Lanes<Scalar>;
  constexpr Index n = L::size;
  if constexpr (n == 1) {
    return x[0];
  } else {
    Eigen::internal::PacketBlock<typename L::Packet, static_cast<int>(n)> block;
#pragma GCC unroll 16
    for (Index i = 0; i < n; ++i) block.packet[i] = x[i].packet;
    Eigen::internal::ptranspose(block);
    // In pairs, then pairs of pairs: a chain of additions would be as long as there are lanes.
#pragma GCC unroll 16
    for (Index step = 1; step < n; step *= 2) {
#pragma GCC unroll 16
      for (Index i = 0; i < n; i += 2 * step) {
        block.packet[i] = Eigen::internal::padd(block.packet[i], block.packet[i + step]);
      }
    }
    return L::of(block.packet[0]);
  }
}
#pragma GCC diagnostic pop

/// Attention of few queries to many keys, as in decoding, where time is what it takes to read the
/// keys and values from memory:
///
///   for each head of keys, and each chunk of them
///     for each tile of keys that the mask lets some query see
///       for each group of rows (a row is one query of one query head that reads these keys)
///         scores = similarity(rows, keys)     lanes over features, summed across
///         modifiers, mask, running softmax    -> weights
///         output = faded output + weights x values   lanes over features
///   merge the chunks
///
/// Chunks have a fixed length and are merged in order, so that the result does not depend on who
/// computed them.
template <class Accumulator, class In, class Score, class BoundMask, class Out, class DropoutPolicy>
class Decode {
  using L = Lanes<Accumulator>;
  using Set = std::remove_cvref_t<decltype(std::declval<const BoundMask&>().row(0, 0, 0))>;
  using Key = typename decltype(In::key)::Scalar;
  using Value = typename decltype(In::value)::Scalar;
  using Units = std::conditional_t<Score::modified, NaturalUnits, BinaryUnits>;
  static constexpr Index n = L::size;
  static constexpr Accumulator infinity = std::numeric_limits<Accumulator>::infinity();
  static constexpr Index chunk_keys = 1024;
  static constexpr Index tile_keys = 64;
  template <class T>
  static constexpr Index line_of = 64 / static_cast<Index>(sizeof(T));  // of cache
  /// Sums in registers: enough to hide the latency of the multiply-add.
  static constexpr int sums = accumulator_registers / 3 * 2;
  static constexpr int largest_group = static_cast<int>(std::min<Index>(n, 4));

 public:
  /// Whether this loop is the faster one.
  static bool suits(const Problem& problem) { return problem.queries <= 4; }

  Decode(const Problem& problem, const In& in, const Score& score, const BoundMask& mask,
         const DropoutPolicy& dropout, const View<Out, 4>& out,
         const View<Accumulator, 3>& log_sum_exp)
      : problem_(problem),
        in_(in),
        score_(score),
        mask_(mask),
        dropout_(dropout),
        out_(out),
        log_sum_exp_(log_sum_exp),
        key_in_place_(readable_in_place<Key>(in.key) && problem.key_dim >= n),
        value_in_place_(readable_in_place<Value>(in.value) && problem.value_dim >= n),
        rows_(problem.kv_heads == 0 ? 0 : problem.heads / problem.kv_heads * problem.queries),
        chunks_(std::max<Index>(1, (problem.keys + chunk_keys - 1) / chunk_keys)),
        query_stride_(round_up(problem.key_dim)),
        output_stride_(round_up(problem.value_dim)) {}

  void run(Eigen::ThreadPoolInterface* pool) const {
    if (rows_ > 0) run_in_groups<1>(pool);
  }

 private:
  static Index round_up(Index count) { return (count + n - 1) / n * n; }
  /// Where vector v of a row of `width` numbers begins. The last one ends with the row and so may
  /// overlap the one before.
  static Index place(Index v, Index width) {
    return std::max<Index>(0, std::min(v * n, width - n));
  }

  /// A row's place in the problem.
  struct Row {
    Index batch, head, query;
  };
  /// Rows from the last one on repeat it, so that they hold ordinary numbers.
  Row row(Index batch, Index kv_head, Index r) const {
    const Index at = std::min(r, rows_ - 1);
    return {batch, kv_head * (problem_.heads / problem_.kv_heads) + at / problem_.queries,
            at % problem_.queries};
  }

  /// What a group has summed up over some keys: lane i of `largest` and `sum` belongs to row
  /// i % Group, and holds the largest score and a part of the sum of e^(score - largest).
  template <int Group>
  struct Partial {
    Accumulator *largest, *sum, *output;  // n, n, Group x output_stride
    Partial(Accumulator* at) : largest(at), sum(at + n), output(at + 2 * n) {}
  };
  template <int Group>
  Index partial_size() const {
    return 2 * n + Group * output_stride_;
  }

  template <int Group>
  struct Workspace {
    explicit Workspace(const Decode& d)
        : groups((d.rows_ + Group - 1) / Group),
          scratch(
              Scratch::bytes<Set>(d.rows_) +
              Scratch::bytes<Accumulator>(groups * Group * d.query_stride_) +
              Scratch::bytes<Accumulator>(tile_keys * Group) +
              2 * Scratch::bytes<Accumulator>(groups * d.template partial_size<Group>()) +
              Scratch::bytes<Key>(d.key_in_place_ ? 0 : tile_keys * d.problem_.key_dim + n) +
              Scratch::bytes<Value>(d.value_in_place_ ? 0 : tile_keys * d.problem_.value_dim + n)),
          sets(scratch.take<Set>(d.rows_)),
          query(scratch.take<Accumulator>(groups * Group * d.query_stride_)),
          scores(scratch.take<Accumulator>(tile_keys * Group)),
          total(scratch.take<Accumulator>(groups * d.template partial_size<Group>())),
          part(scratch.take<Accumulator>(groups * d.template partial_size<Group>())),
          keys(scratch.take<Key>(d.key_in_place_ ? 0 : tile_keys * d.problem_.key_dim + n)),
          values(
              scratch.take<Value>(d.value_in_place_ ? 0 : tile_keys * d.problem_.value_dim + n)) {}
    Index groups;
    Scratch scratch;
    Set* sets;
    Accumulator *query, *scores, *total, *part;
    Key* keys;
    Value* values;
  };

  template <int Group>
  void run_in_groups(Eigen::ThreadPoolInterface* pool) const {
    if constexpr (2 * Group <= largest_group) {
      if (rows_ > Group) return run_in_groups<2 * Group>(pool);
    }
    const Index heads = problem_.batch * problem_.kv_heads;
    const Index size = (rows_ + Group - 1) / Group * partial_size<Group>();
    // With heads enough for the threads a head stays with one, which needs no more memory.
    if (!pool || chunks_ == 1 || heads >= 4 * pool->NumThreads()) {
      parallel_for(pool, heads, [this](Index first, Index last) {
        Workspace<Group> space(*this);
        for (Index head = first; head < last; ++head) {
          attend<Group>(space, head, 0, space.total);
          for (Index chunk = 1; chunk < chunks_; ++chunk) {
            attend<Group>(space, head, chunk, space.part);
            merge<Group>(space.total, space.part);
          }
          finish<Group>(head, space.total);
        }
      });
      return;
    }
    Scratch scratch(Scratch::bytes<Accumulator>(heads * chunks_ * size));
    auto* const parts = scratch.take<Accumulator>(heads * chunks_ * size);
    parallel_for(pool, heads * chunks_, [this, parts, size](Index first, Index last) {
      Workspace<Group> space(*this);
      for (Index item = first; item < last; ++item) {
        attend<Group>(space, item / chunks_, item % chunks_, parts + item * size);
      }
    });
    for (Index head = 0; head < heads; ++head) {
      Accumulator* const total = parts + head * chunks_ * size;
      for (Index chunk = 1; chunk < chunks_; ++chunk) merge<Group>(total, total + chunk * size);
      finish<Group>(head, total);
    }
  }

  template <int Group>
  EIGEN_DONT_INLINE void attend(Workspace<Group>& space, Index kv, Index chunk,
                                Accumulator* parts) const {
    const Index batch = kv / problem_.kv_heads, kv_head = kv % problem_.kv_heads;
    const auto key = slab(in_.key, batch, kv_head);
    const auto value = slab(in_.value, batch, kv_head);
    const Index size = partial_size<Group>();
    for (Index g = 0; g < space.groups; ++g) {
      Accumulator* const part = parts + g * size;
      std::fill(part, part + n, -infinity);
      std::fill(part + n, part + size, Accumulator(0));
    }
    Index begin = problem_.keys, end = 0;
    for (Index r = 0; r < rows_; ++r) {
      const Row at = row(batch, kv_head, r);
      Set& set = space.sets[r] = mask_.row(at.batch, at.head, at.query);
      if (set.count == 0) continue;
      begin = std::min(begin, set[0].begin);
      end = std::max(end, set[set.count - 1].end);
    }
    begin = std::max(begin, chunk * chunk_keys);
    end = std::min(end, (chunk + 1) * chunk_keys);
    if (begin >= end) return;
    for (Index r = 0; r < space.groups * Group; ++r) {
      pack(row(batch, kv_head, r), space.query + r * query_stride_);
    }

    for (Index k = begin; k < end; k += tile_keys) {
      const Index keys = std::min(tile_keys, end - k);
      const Coverage coverage = look(space.sets, k, keys);
      if (coverage == Coverage::empty) continue;
      const auto key_rows = rows_of(key, k, keys, problem_.key_dim, key_in_place_, space.keys);
      const auto value_rows =
          rows_of(value, k, keys, problem_.value_dim, value_in_place_, space.values);
      // A hidden pair has weight 0, but 0 times NaN or infinity is NaN.
      const bool safe = coverage == Coverage::full || all_finite(value_rows, keys);
      for (Index g = 0; g < space.groups; ++g) {
        const Partial<Group> part(parts + g * size);
        const Set* const sets = space.sets + g * Group;
        const Index rows = std::min<Index>(Group, rows_ - g * Group);
        const auto at = [&](Index r) { return row(batch, kv_head, g * Group + r); };
        score<Group>(space.query + g * Group * query_stride_, key_rows, keys, space.scores);
        modify<Group>(space.scores, at, k, keys);
        if (coverage == Coverage::partial) {
          for (Index r = 0; r < rows; ++r) {
            for (Index j = 0; j < keys; ++j) {
              if (!sees(sets[r], at(r), k + j)) space.scores[j * Group + r] = -infinity;
            }
          }
        }
        alignas(64) Accumulator fade[n];
        absorb<Group>(space.scores, keys, part, fade);
        if (dropout_.active()) drop<Group>(space.scores, at, k, keys);
        if (safe) {
          add_values<Group>(space.scores, value_rows, keys, fade, part.output);
        } else {
          for (Index r = 0; r < rows; ++r) {
            const auto visible = [&](Index j) { return sees(sets[r], at(r), k + j); };
            add_visible<Group>(space.scores, r, value_rows, keys, visible, fade, part.output);
          }
        }
      }
    }
  }

  /// The features of one query as the similarity wants them.
  void pack(const Row& at, Accumulator* to) const {
    const auto& similarity = score_.similarity;
    const auto query = [&](Index c) {
      return static_cast<Accumulator>(in_.query(at.batch, at.head, at.query, c));
    };
    if constexpr (requires { similarity.transform; }) {
      std::fill(to, to + problem_.key_dim, Accumulator(0));
      for (Index r = 0; r < problem_.query_dim; ++r) {
        for (Index c = 0; c < problem_.key_dim; ++c) {
          to[c] += query(r) * static_cast<Accumulator>(similarity.transform(r, c));
        }
      }
    } else {
      for (Index c = 0; c < problem_.key_dim; ++c) to[c] = query(c);
    }
    for (Index c = 0; c < problem_.key_dim; ++c) to[c] *= similarity.query_factor;
  }

  /// What the mask says of keys first .. first + count-1 to all rows.
  Coverage look(const Set* sets, Index first, Index count) const {
    bool any = false, all = true;
    for (Index r = 0; r < rows_; ++r) {
      Index seen = 0;
      for (int i = 0; i < sets[r].count; ++i) {
        const KeyRange range = sets[r][i];
        seen +=
            std::max<Index>(0, std::min(range.end, first + count) - std::max(range.begin, first));
      }
      any = any || seen > 0;
      all = all && seen == count && sets[r].exact;
    }
    return all ? Coverage::full : any ? Coverage::partial : Coverage::empty;
  }

  bool sees(const Set& set, const Row& at, Index key) const {
    for (int i = 0; i < set.count; ++i) {
      if (set[i].begin <= key && key < set[i].end) {
        return set.exact || mask_.allows(at.batch, at.head, at.query, key);
      }
    }
    return false;
  }

  /// scores[key][row]: a vector of them has n / Group keys. Past the last key they are -infinity.
  template <int Group>
  EIGEN_DONT_INLINE void score(const Accumulator* query, const Rows<Key>& keys, Index count,
                               Accumulator* scores) const {
    constexpr Index at_once = n / Group, together = std::min<Index>(2, at_once);
    const Index width = problem_.key_dim, whole = width / n * n;
    const Index ahead = key_in_place_ ? tile_keys * keys.stride : 0;
    const auto& similarity = score_.similarity;
    for (Index j = 0; j < count; j += at_once) {
      L sum[n];
#pragma GCC unroll 16
      for (Index k = 0; k < at_once; k += together) {
        const Key* key[together];
        L part[together][Group];
#pragma GCC unroll 16
        for (Index i = 0; i < together; ++i) {
          key[i] = keys[std::min(j + k + i, count - 1)];
          prefetch_row(key[i] + ahead, width);
#pragma GCC unroll 16
          for (L& s : part[i]) s = L(0);
        }
        const auto add = [&](Index c, const auto& result) __attribute__((always_inline)) {
          L feature[together];
#pragma GCC unroll 16
          for (Index i = 0; i < together; ++i) {
            feature[i] = load_widened<Accumulator>(key[i] + c).pinned();
          }
#pragma GCC unroll 16
          for (int r = 0; r < Group; ++r) {
            const L q = L::load(query + r * query_stride_ + c).pinned();
#pragma GCC unroll 16
            for (Index i = 0; i < together; ++i) {
              part[i][r] = result(part[i][r], similarity.step(part[i][r], q, feature[i], c));
            }
          }
        };
        for (Index c = 0; c < whole; c += n) {
          add(c, [](L, L after) __attribute__((always_inline)) { return after; });
        }
        if (whole < width) {  // only the lanes that have not been added
          const Index last = std::max<Index>(0, width - n);
          const L lane = L::counting(last);
          const auto rest = (lane >= L(whole)) & (lane < L(width));
          add(last, [rest](L before, L after)
                        __attribute__((always_inline)) { return select(rest, after, before); });
        }
#pragma GCC unroll 16
        for (Index i = 0; i < together; ++i) {
#pragma GCC unroll 16
          for (int r = 0; r < Group; ++r) sum[(k + i) * Group + r] = part[i][r];
        }
      }
      similarity.finish(sums_across(sum)).store(scores + j * Group);
    }
    std::fill(scores + count * Group, scores + round_up(count * Group), -infinity);
  }

  template <class T>
  EIGEN_ALWAYS_INLINE static void prefetch_row(const T* row, Index width) {
    for (Index c = 0; c < width; c += line_of<T>) __builtin_prefetch(row + c);
  }

  template <int Group>
  void modify(Accumulator* scores, const auto& at, Index first, Index keys) const {
    const auto apply = [&](const auto& modifier) {
      if constexpr (requires(L s) { modifier.apply(s); }) {
        for (Index i = 0; i < keys * Group; i += n) {
          modifier.apply(L::load(scores + i)).store(scores + i);
        }
      } else {
        for (Index r = 0; r < Group; ++r) {
          const Row row = at(r);
          for (Index j = 0; j < keys; ++j) {
            Accumulator& s = scores[j * Group + r];
            s = modifier(s, row.batch, row.head, row.query, first + j);
          }
        }
      }
    };
    std::apply([&](const auto&... modifier) { (apply(modifier), ...); }, score_.modifiers);
    if constexpr (Score::modified) {
      std::fill(scores + keys * Group, scores + round_up(keys * Group), -infinity);
    }
  }

  /// Online softmax: turns scores into e^(score - largest); what was summed before is due `fade`.
  template <int Group>
  EIGEN_DONT_INLINE void absorb(Accumulator* scores, Index keys, const Partial<Group>& part,
                                Accumulator* fade) const {
    const Index vectors = round_up(keys * Group) / n;
    L most(-infinity);
    for (Index v = 0; v < vectors; ++v) most = max(most, L::load(scores + v * n));
    alignas(64) Accumulator row_most[n];
    most.store(row_most);
    for (Index lane = Group; lane < n; ++lane) {
      row_most[lane % Group] = std::max(row_most[lane % Group], row_most[lane]);
    }
    for (Index lane = Group; lane < n; ++lane) row_most[lane] = row_most[lane % Group];
    const L before = L::load(part.largest), after = max(before, L::load(row_most));
    // -inf - (-inf) is NaN, so a row that has seen no key subtracts 0.
    const L shift = select(after == L(-infinity), L(0), after);
    const L factor = exp2_nonpositive((before - shift) * L(Units::binary));
    after.store(part.largest);
    factor.store(fade);
    L total = factor * L::load(part.sum);
    for_each_tile<4>(
        vectors, [&]<int Vectors>(Index v) __attribute__((always_inline)) {
          L weight[Vectors];
#pragma GCC unroll 16
          for (int i = 0; i < Vectors; ++i) {
            weight[i] = L::load(scores + (v + i) * n) - shift;
            if constexpr (Units::binary != 1) weight[i] *= L(Units::binary);
          }
          exp2_nonpositive(weight);
#pragma GCC unroll 16
          for (int i = 0; i < Vectors; ++i) {
            weight[i].store(scores + (v + i) * n);
            total += weight[i];
          }
        });
    total.store(part.sum);
  }

  template <int Group>
  void drop(Accumulator* weights, const auto& at, Index first, Index keys) const {
    for (Index r = 0; r < Group; ++r) {
      const Row row = at(r);
      const auto counter = dropout_.row(row.batch, row.head, row.query);
      for (Index j = 0; j < keys; ++j) {
        if (!dropout_.keeps(counter, first + j)) weights[j * Group + r] = 0;
      }
    }
  }

  bool all_finite(const Rows<Value>& values, Index count) const {
    L zero(0);
    for (Index j = 0; j < count; ++j) {
      for (Index at = 0; at < output_stride_; at += n) {
        zero =
            fma(load_widened<Accumulator>(values[j] + place(at / n, problem_.value_dim)), L(0), zero);
      }
    }
    alignas(64) Accumulator lanes[n];
    zero.store(lanes);
    return std::all_of(lanes, lanes + n, [](Accumulator z) { return z == 0; });  // not for NaN
  }

  /// output[row] = fade[row] * output[row] + sum over keys of weight x value.
  template <int Group>
  EIGEN_DONT_INLINE void add_values(const Accumulator* weights, const Rows<Value>& values,
                                    Index count, const Accumulator* fade,
                                    Accumulator* output) const {
    const Index width = problem_.value_dim;
    const Index ahead = value_in_place_ ? tile_keys * values.stride : 0;
    for_each_tile<sums / Group>(
        output_stride_ / n, [&]<int Vectors>(Index v) __attribute__((always_inline)) {
          L sum[Group][Vectors];
#pragma GCC unroll 16
          for (int r = 0; r < Group; ++r) {
#pragma GCC unroll 16
            for (int i = 0; i < Vectors; ++i) {
              sum[r][i] = L(fade[r]) * L::load(output + r * output_stride_ + (v + i) * n);
            }
          }
          const Index first = place(v, width);
          const Index last = place(v + Vectors - 1, width);
          for (Index j = 0; j < count; ++j) {
            const Value* const from = values[j];
            if (v == 0) prefetch_row(from + ahead, width);
            L weight[Group];
#pragma GCC unroll 16
            for (int r = 0; r < Group; ++r) weight[r] = L(weights[j * Group + r]);
#pragma GCC unroll 16
            for (int i = 0; i < Vectors; ++i) {
              const L feature =
                  load_widened<Accumulator>(from + (i == Vectors - 1 ? last : first + i * n))
                      .pinned();
#pragma GCC unroll 16
              for (int r = 0; r < Group; ++r) sum[r][i] = fma(weight[r], feature, sum[r][i]);
            }
          }
#pragma GCC unroll 16
          for (int r = 0; r < Group; ++r) {
#pragma GCC unroll 16
            for (int i = 0; i < Vectors; ++i) {
              sum[r][i].store(output + r * output_stride_ + (v + i) * n);
            }
          }
        });
  }

  /// The same for one row, over the keys that it sees.
  template <int Group>
  EIGEN_DONT_INLINE void add_visible(const Accumulator* weights, Index r, const Rows<Value>& values,
                                     Index count, const auto& visible, const Accumulator* fade,
                                     Accumulator* output) const {
    for (Index at = 0; at < output_stride_; at += n) {
      Accumulator* const to = output + r * output_stride_ + at;
      L sum = L(fade[r]) * L::load(to);
      for (Index j = 0; j < count; ++j) {
        if (!visible(j)) continue;
        const L feature = load_widened<Accumulator>(values[j] + place(at / n, problem_.value_dim));
        sum = fma(L(weights[j * Group + r]), feature, sum);
      }
      sum.store(to);
    }
  }

  /// Adds sums over other keys, each faded to the larger of the two largest scores.
  template <int Group>
  void merge(Accumulator* into, Accumulator* from) const {
    const Index size = partial_size<Group>();
    for (Index g = 0; g * Group < rows_; ++g) {
      const Partial<Group> a(into + g * size), b(from + g * size);
      const L largest = max(L::load(a.largest), L::load(b.largest));
      const L shift = select(largest == L(-infinity), L(0), largest);
      const L fade_a = exp2_nonpositive((L::load(a.largest) - shift) * L(Units::binary));
      const L fade_b = exp2_nonpositive((L::load(b.largest) - shift) * L(Units::binary));
      largest.store(a.largest);
      fma(fade_b, L::load(b.sum), fade_a * L::load(a.sum)).store(a.sum);
      alignas(64) Accumulator of_a[n], of_b[n];
      fade_a.store(of_a);
      fade_b.store(of_b);
      for (Index i = 0; i < Group * output_stride_; i += n) {
        const Index r = i / output_stride_;
        fma(L(of_b[r]), L::load(b.output + i), L(of_a[r]) * L::load(a.output + i))
            .store(a.output + i);
      }
    }
  }

  template <int Group>
  void finish(Index kv, Accumulator* parts) const {
    const Index width = problem_.value_dim;
    for (Index r = 0; r < rows_; ++r) {
      const Row at = row(kv / problem_.kv_heads, kv % problem_.kv_heads, r);
      const Partial<Group> part(parts + r / Group * partial_size<Group>());
      Accumulator sum = 0;
      for (Index lane = r % Group; lane < n; lane += Group) sum += part.sum[lane];
      const Accumulator factor = sum == 0 ? 0 : static_cast<Accumulator>(dropout_.scale()) / sum;
      const Accumulator* const output = part.output + r % Group * output_stride_;
      for (Index i = 0; i < output_stride_; ++i) {
        const Index c = place(i / n, width) + i % n;
        if (c < width) {
          out_(at.batch, at.head, at.query, c) = static_cast<Out>(output[i] * factor);
        }
      }
      if (!log_sum_exp_.data) continue;
      log_sum_exp_(at.batch, at.head, at.query) =
          sum == 0 ? -infinity
                   : part.largest[r % Group] * static_cast<Accumulator>(ln_2 * Units::binary) +
                         std::log(sum);
    }
  }

  const Problem& problem_;
  const In& in_;
  const Score& score_;
  const BoundMask& mask_;
  const DropoutPolicy& dropout_;
  const View<Out, 4>& out_;
  const View<Accumulator, 3>& log_sum_exp_;  // of nothing where it is not wanted
  bool key_in_place_, value_in_place_;
  Index rows_, chunks_, query_stride_, output_stride_;
};

}  // namespace heed::detail
