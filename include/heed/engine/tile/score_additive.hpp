#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "heed/engine/tile/score.hpp"
#include "heed/simd/math.hpp"

namespace heed::detail {

/// sum over h of w_h tanh(q_h + k_h).
template <class S>
concept SumOfTanh = score_traits<S>.terms == Terms::weighted_tanh;

/// With x the sum q + k, negated where w is negative, and a = e^2x,
///   w tanh(q + k) = |w| tanh x = |w| - 2 |w| / (1 + a) = 1 / u - 2 / (u + u a),  u = 1 / |w|.
/// u a = (u e^2q) e^2k is a product of exponentials that are taken once for a query and once for a
/// key, so that a feature of a pair costs one multiply-add, A = u + u a, and its share of a
/// division, which four features have in common:
///   1/A + 1/B + 1/C + 1/D = (((A + B) C + A B) D + A B C) / (A B C D).
/// Nothing is negative, so nothing cancels. What the four would be for x = 0, the sum of 1 / (2 u),
/// is taken off each time, and the sums stay as small as those of tanh. The error is absolute, some
/// units of rounding of the largest |w|.
///
/// Range: u is in units of `tiny` / max |w|, where tiny is the fourth root of the smallest normal
/// number, so that u >= tiny and a product of four is normal. Where it overflows below a finite
/// numerator, the quotient is less than 1, which is `tiny` of the largest |w|, and 0 does for it.
/// Where the numerator overflows as well, and with features beyond `limit`, the quotient is NaN or
/// infinite, and the pair is computed again by tanh itself. So a pair's score depends on the pair
/// alone.
template <class Number, SumOfTanh Similarity>
class Scorer<Number, Similarity> {
  using L = Lanes<Number>;
  using Limits = std::numeric_limits<Number>;
  /// Features that the exponentials of a key have side by side: [chunk][key][feature of the chunk].
  static constexpr Index chunk = std::max<Index>(L::size, 4);

 public:
  /// `kept_keys`: of as many the exponentials are kept, all keys of a head or those of a tile.
  Scorer(const Similarity& similarity, Index, Index dim, Index lanes, Index kept_keys)
      : similarity_(similarity),
        dim_(dim),
        padded_(padded(dim, 4)),
        lanes_(lanes),
        kept_keys_(kept_keys) {}

  void lay(Layout& layout) {
    const Index chunked = padded(dim_, chunk);
    query_ = layout.take<Number>(dim_ * lanes_);
    query_exp_ = layout.take<Number>(padded_ * lanes_);
    key_exp_ = layout.take<Number>(kept_keys_ * chunked);
    twice_ = layout.take<Number>(chunked);
    u_ = layout.take<Number>(padded_);
    slope_ = layout.take<Number>(padded_);
    middle_ = layout.take<Number>(padded_ / 4);
  }
  void start() { take_weights(); }

  template <class Query>
  void pack(const Slab<const Query>& query, Index first, Index count, Index lanes) {
    pack_lanes(query, first, count, dim_, lanes, query_);
    for (Index h = 0; h < dim_; ++h) {
      for (Index at = h * lanes; at < (h + 1) * lanes; at += L::size) {
        (exponential(L::load(query_ + at), L(twice_[h])) * L(slope_[h])).store(query_exp_ + at);
      }
    }
    std::fill(query_exp_ + dim_ * lanes, query_exp_ + padded_ * lanes, Number(0));
  }

  /// Exponentials of `count` keys, the rows of a head from `first` on. Those that panels before
  /// this one have seen are there already.
  void take_keys(const Rows<Number>& keys, Index head, Index first, Index count, Index all) {
    const Index origin = all <= kept_keys_ ? 0 : first;
    if (head != head_ || origin != origin_ || first < begin_ || first > end_) {
      head_ = head, origin_ = origin;
      begin_ = end_ = first;
    }
    for (; end_ < first + count; ++end_) {
      const Number* from = keys[end_ - first];
      Number* to = key_exp_ + (end_ - origin) * chunk;
      Index h = 0;
      for (; h + chunk <= dim_; h += chunk) exponentials(from + h, h, to + h * kept_keys_);
      if (h == dim_) continue;
      alignas(64) Number rest[length(chunk)] = {};
      std::copy(from + h, from + dim_, rest);
      exponentials(rest, h, to + h * kept_keys_);
    }
    tile_exp_ = key_exp_ + (first - origin) * chunk;
  }

  template <int Vectors, int From = 0>
  EIGEN_DONT_INLINE void score(const Rows<Number>& keys, Index first, Index last, Number* scores,
                               Number* largest) const {
    constexpr Index lanes = Vectors * L::size;
    std::fill(scores + first * lanes, scores + last * lanes, Number(0));
    // The sums are in memory: the division leaves time to load and store them, and the registers
    // are needed within the step.
    for (Index h = 0; h < padded_; h += 4) {
      const L u0(u_[h]), u1(u_[h + 1]), u2(u_[h + 2]), u3(u_[h + 3]), middle(middle_[h / 4]);
      const Number* query = query_exp_ + h * lanes;
      const Number* key = tile_exp_ + h / chunk * chunk * kept_keys_ + h % chunk;
      for (Index j = first; j < last; ++j) {
        const Number* k = key + j * chunk;
        const L k0(k[0]), k1(k[1]), k2(k[2]), k3(k[3]);
#pragma GCC unroll 16
        for (Index lane = 0; lane < lanes; lane += L::size) {
          const Number* q = query + lane;
          const L a = fma(L::load(q), k0, u0), b = fma(L::load(q + lanes), k1, u1);
          const L c = fma(L::load(q + 2 * lanes), k2, u2);
          const L d = fma(L::load(q + 3 * lanes), k3, u3);
          const L ab = a * b, abc = ab * c;
          const L four = fma(fma(a + b, c, ab), d, abc) / (abc * d);
          Number* sum = scores + j * lanes + lane;
          (L::load(sum) + (four - middle)).store(sum);
        }
      }
    }
    L most[length(Vectors)], not_finite[length(Vectors)];
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) {
      most[v] = L::load(largest + v * L::size);
      not_finite[v] = L(0);
    }
    for (Index j = first; j < last; ++j) {
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) {
        Number* at = scores + (j * Vectors + v) * L::size;
        const L score = L::load(at) * L(-2 * tiny()) * L(factor_);
        score.store(at);
        most[v] = max(most[v], score);
        not_finite[v] = fma(score, L(0), not_finite[v]);
      }
    }
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) {
      if (any(not_finite[v] != L(0))) {
        most[v] = recompute<Vectors>(keys, first, last, v, scores, L::load(largest + v * L::size));
      }
      most[v].store(largest + v * L::size);
    }
  }

 private:
  static Index padded(Index dim, Index step) { return (dim + step - 1) / step * step; }

  static Number tiny() { return std::ldexp(Number(1), Limits::min_exponent / 4); }

  /// Features up to this have exponentials that are normal numbers, also with `tiny` and with the
  /// inverse of the smallest weight: 2 * limit = .74 log(max) leaves a quarter of the range.
  static Number limit() { return std::log(Limits::max()) * Number(.37); }

  void take_weights() {
    Number largest = 0;
    bool finite = true;
    for (Index h = 0; h < dim_; ++h) {
      const auto w = static_cast<Number>(similarity_.weight(h));
      finite = finite && std::isfinite(w);
      largest = std::max(largest, std::abs(w));
    }
    // Any score would be NaN, and all are computed again.
    if (!finite) largest = Limits::quiet_NaN();
    if (largest == 0) largest = 1;
    std::fill(twice_, twice_ + padded(dim_, chunk), Number(2));
    for (Index h = 0; h < padded_; ++h) {
      const auto w = h < dim_ ? static_cast<Number>(similarity_.weight(h)) : Number(0);
      const Number size = std::abs(w) / largest;
      // Below that a weight is as good as 0: u would pass 1.
      const bool counts = !(size < tiny());
      if (w < 0) twice_[h] = -2;
      u_[h] = counts ? tiny() / size : 1;
      slope_[h] = counts ? u_[h] : 0;
    }
    for (Index h = 0; h < padded_; h += 4) {
      middle_[h / 4] = 0;
      for (Index i = h; i < h + 4; ++i) middle_[h / 4] += 1 / (u_[i] + slope_[i]);
    }
    factor_ = largest * similarity_.scale;
  }

  /// e^(twice x), NaN beyond the limit.
  EIGEN_ALWAYS_INLINE static L exponential(L x, L twice) {
    return select(abs(x) <= L(limit()), exp_normal(x * twice), L(Limits::quiet_NaN()));
  }

  /// Of a chunk of a key's features from h on.
  EIGEN_ALWAYS_INLINE void exponentials(const Number* from, Index h, Number* to) const {
#pragma GCC unroll 16
    for (Index i = 0; i < chunk; i += L::size) {
      exponential(L::load(from + i), L::load(twice_ + h + i)).store(to + i);
    }
  }

  static bool any(LaneMask<Number> mask) {
    alignas(64) Number lanes[L::size];
    select(mask, L(1), L(0)).store(lanes);
    return std::find(lanes, lanes + L::size, Number(1)) != lanes + L::size;
  }

  /// The scores of vector v that are not finite, by tanh; returns `most` raised to all of them.
  template <int Vectors>
  EIGEN_DONT_INLINE L recompute(const Rows<Number>& keys, Index first, Index last, int v,
                                Number* scores, L most) const {
    for (Index j = first; j < last; ++j) {
      Number* at = scores + (j * Vectors + v) * L::size;
      L score = L::load(at);
      const auto wrong = score - score != L(0);
      if (any(wrong)) {
        L sum(0);
        for (Index h = 0; h < dim_; ++h) {
          const L query = L::load(query_ + (h * Vectors + v) * L::size);
          sum = similarity_.step(sum, query, L(keys[j][h]), h);
        }
        score = select(wrong, similarity_.finish(sum), score);
        score.store(at);
      }
      most = max(most, score);
    }
    return most;
  }

  const Similarity& similarity_;
  Index dim_, padded_;  // features, and as many rounded up to fours
  Index lanes_, kept_keys_;
  Number *query_ = nullptr, *query_exp_ = nullptr, *key_exp_ = nullptr;
  Number *twice_ = nullptr, *u_ = nullptr, *slope_ = nullptr;  // of a feature: 2 or -2, u, u
  Number* middle_ = nullptr;                                   // of four: what x = 0 gives
  Number factor_ = 0;

  Index head_ = -1;                         // whose exponentials are there,
  Index origin_ = 0, begin_ = 0, end_ = 0;  // of keys begin .. end-1, the first row that of origin
  const Number* tile_exp_ = nullptr;
};

}  // namespace heed::detail
