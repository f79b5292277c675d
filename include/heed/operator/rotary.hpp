#pragma once

#include <algorithm>
#include <array>
#include <bitset>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <limits>
#include <ranges>
#include <type_traits>

#include "heed/core/alias.hpp"
#include "heed/core/error.hpp"
#include "heed/core/parallel.hpp"
#include "heed/core/scratch.hpp"
#include "heed/core/view.hpp"
#include "heed/kernel/rotary.hpp"
#include "heed/operator/rotary_config.hpp"

namespace heed {

namespace detail {

/// Positions of one call: counted from a first one, or read from integers in memory.
template <class Integer>
struct RotaryPositions {
  double first = 0;
  View<const Integer, 3> given{};  // (batch or 1, seq, axes); without data, counted
  bool batched = false;

  double operator()(Index b, Index i, Index axis) const {
    if (!given.data) return first + static_cast<double>(i);
    return static_cast<double>(given(batched ? b : 0, i, axis));
  }
};

template <class T>
concept RotaryInteger = std::integral<T> && !std::same_as<T, bool>;

template <class P>
concept RotaryList =
    std::ranges::contiguous_range<const P> && !EigenDense<P> && !EigenTensorLike<P> && !is_view<P>;

/// Positions of rank 1 to 3 as a View; vectors of Eigen's and lists have rank 1.
template <class P>
auto rotary_positions_view(const P& positions) {
  if constexpr (RotaryList<P>) {
    using Integer = std::ranges::range_value_t<const P>;
    return View<const Integer, 1>{
        std::ranges::data(positions), {static_cast<Index>(std::ranges::size(positions))}, {1}};
  } else if constexpr (EigenDense<P>) {
    const auto x = view(positions);
    using Integer = typename decltype(x)::Scalar;
    if constexpr (P::ColsAtCompileTime == 1) {
      return View<const Integer, 1>{x.data, {x.shape[0]}, {x.strides[0]}};
    } else if constexpr (P::RowsAtCompileTime == 1) {
      return View<const Integer, 1>{x.data, {x.shape[1]}, {x.strides[1]}};
    } else {
      return View<const Integer, 2>(x);
    }
  } else {
    const auto x = view(positions);
    using Seen = std::remove_cv_t<decltype(x)>;
    return View<const typename Seen::Scalar, Seen::Rank>(x);
  }
}

/// The positions of rows of shape (batch, heads, seq, dim), or std::invalid_argument.
template <class P>
auto rotary_positions(const char* function, const P& positions, const std::array<Index, 4>& shape,
                      Index axes) {
  if constexpr (std::integral<P>) {
    static_assert(RotaryInteger<P>, "heed: positions are integers, not bool");
    if (axes != 1) {
      fail(function, "a first position counts along one axis, but the configuration has ", axes,
           "; give positions (seq, ", axes, ")");
    }
    return RotaryPositions<P>{static_cast<double>(positions)};
  } else {
    const auto x = rotary_positions_view(positions);
    using Seen = std::remove_cv_t<decltype(x)>;
    using Integer = typename Seen::Scalar;
    static_assert(RotaryInteger<Integer>, "heed: positions are integers");
    static_assert(Seen::Rank <= 3,
                  "heed: positions are (seq) or (batch, seq), with one more axis for images");
    const Index rank = Seen::Rank - (axes == 1 ? 0 : 1);
    if (rank != 1 && rank != 2) {
      fail(function, "positions of shape ", x.shape, " do not fit a configuration of ", axes,
           axes == 1 ? " axis: they are (seq) or (batch, seq)"
                     : " axes: they are (seq, 2) or (batch, seq, 2)");
    }
    RotaryPositions<Integer> result;
    result.batched = rank == 2;
    std::size_t axis = 0;
    result.given.data = x.data;
    result.given.shape = {result.batched ? shape[0] : 1, shape[2], axes};
    for (std::size_t to = result.batched ? 0 : 1; axis < Seen::Rank; ++to, ++axis) {
      if (x.shape[axis] != result.given.shape[to]) {
        fail(function, "positions have ", x.shape[axis], " in axis ", static_cast<Index>(axis),
             " and not ", result.given.shape[to], "; they are ", x.shape, ", rows are ", shape,
             " (batch, heads, seq, dim)");
      }
      result.given.strides[to] = x.strides[axis];
    }
    return result;
  }
}

/// How many of `width` features are rotated, or std::invalid_argument.
inline Index rotated_width(const char* function, const RotaryConfig& config, Index width) {
  if (config.layout != RotaryLayout::half && config.layout != RotaryLayout::interleaved) {
    fail(function, "there is no layout number ",
         static_cast<Index>(static_cast<RotaryLayout>(config.layout)));
  }
  if (config.axes != 1 && config.axes != 2) {
    fail(function, "positions have 1 or 2 axes, not ", config.axes);
  }
  if (!(config.base > 1 && std::isfinite(config.base))) {
    fail(function, "the base has to be a finite number above 1, not ", config.base);
  }
  if (config.dim < 0) fail(function, "a negative number of rotated features, ", config.dim);
  if (config.dim > width) {
    fail(function, config.dim, " features are to be rotated, but the last axis has ", width);
  }
  const Index dim = config.dim == 0 ? width : config.dim;
  if (dim % (2 * config.axes) != 0) {
    fail(function, "the number of rotated features, ", dim, ", has to be a multiple of ",
         2 * config.axes, " for pairs along ", config.axes, config.axes == 1 ? " axis" : " axes",
         "; the last axis has ", width);
  }
  return dim;
}

/// Sines and cosines in double of the angles of a coordinate p, as those of 32 floor(p / 32) turned
/// on by those of the rest: neighbours share the first, and the second are a table. What comes out
/// depends on p alone, so that a token rotated by itself is the one rotated among others, and
/// differs from the exact value by the rounding of a product and a sum.
class RotaryAngles {
 public:
  static constexpr Index period = 32;

  static double origin_of(double p) { return std::floor(p / period) * period; }
  static std::size_t rest_of(double p) { return static_cast<std::size_t>(p - origin_of(p)); }

  /// Room for `frequencies` and for the table.
  void take(Layout& layout, Index count) {
    count_ = count;
    frequencies_ = layout.take<double>(count);
    table_ = layout.take<double>(2 * period * count);
  }
  template <class Frequency>
  void fill(const std::bitset<length(period)>& rests, const Frequency& frequency) {
    for (Index c = 0; c < count_; ++c) frequencies_[c] = frequency(c);
    for (Index r = 0; r < period; ++r) {
      if (rests[length(r)]) point(static_cast<double>(r), table_ + 2 * r * count_);
    }
  }
  /// Cosines and, behind them, sines of a coordinate.
  void point(double p, double* to) const {
    for (Index c = 0; c < count_; ++c) {
      const double angle = p * frequencies_[c];
      to[c] = std::cos(angle);
      to[count_ + c] = std::sin(angle);
    }
  }
  const double* rest(double p) const {
    return table_ + 2 * static_cast<Index>(rest_of(p)) * count_;
  }
  Index count() const { return count_; }

 private:
  Index count_ = 0;
  double *frequencies_ = nullptr, *table_ = nullptr;
};

/// The tables of one position after another, as rotate_halves or rotate_neighbours reads them.
template <class Number>
class RotaryTables {
 public:
  /// `origins` has room for two numbers for each pair.
  RotaryTables(const RotaryAngles& angles, double* origins) : angles_(&angles), origins_(origins) {
    at_.fill(std::numeric_limits<double>::quiet_NaN());
  }

  /// Of coordinate p along an axis, whose pairs are those from axis * count() on.
  EIGEN_ALWAYS_INLINE void write(double p, Index axis, bool interleaved, double amplitude,
                                 double direction, Number* cosine, Number* sine) {
    const Index count = angles_->count();
    double* const origin = origins_ + 2 * axis * count;
    double& at = at_[static_cast<std::size_t>(axis)];
    if (const double wanted = RotaryAngles::origin_of(p); !(at == wanted)) {
      angles_->point(wanted, origin);
      for (Index c = 0; c < 2 * count; ++c) origin[c] *= amplitude;
      at = wanted;
    }
    const double* const rest = angles_->rest(p);
    const double *const cos_a = origin, *const sin_a = origin + count;
    const double *const cos_b = rest, *const sin_b = rest + count;
    if (interleaved) {
      cosine += 2 * axis * count;
      sine += 2 * axis * count;
      for (Index c = 0; c < count; ++c) {
        const auto cos = static_cast<Number>(cos_a[c] * cos_b[c] - sin_a[c] * sin_b[c]);
        const auto sin =
            static_cast<Number>(direction * (sin_a[c] * cos_b[c] + cos_a[c] * sin_b[c]));
        cosine[2 * c] = cosine[2 * c + 1] = cos;
        sine[2 * c] = -sin;
        sine[2 * c + 1] = sin;
      }
    } else {
      cosine += axis * count;
      sine += axis * count;
      for (Index c = 0; c < count; ++c) {
        cosine[c] = static_cast<Number>(cos_a[c] * cos_b[c] - sin_a[c] * sin_b[c]);
        sine[c] = static_cast<Number>(direction * (sin_a[c] * cos_b[c] + cos_a[c] * sin_b[c]));
      }
    }
  }

 private:
  const RotaryAngles* angles_;
  double* origins_;
  std::array<double, 2> at_;
};

/// out = x rotated by the positions' angles, or by their negatives (direction -1), times the
/// scaling's amplitude.
template <class Scalar, class Positions>
void rotate(const View<Scalar, 4>& out, const View<const Scalar, 4>& x, const Positions& positions,
            const RotaryConfig& config, Index dim, double direction,
            Eigen::ThreadPoolInterface* pool) {
  using Number = Accumulator<Scalar>;
  if (x.size() == 0) return;
  const Index batch = x.shape[0], heads = x.shape[1], seq = x.shape[2], width = x.shape[3];
  const bool in_place = same_elements(out, x), interleaved = config.layout != RotaryLayout::half;
  const bool contiguous = x.strides[3] == 1 && out.strides[3] == 1;
  const Index pairs = dim / 2, axes = config.axes, entries = interleaved ? dim : pairs;
  const double amplitude = config.scaling.amplitude();

  std::bitset<length(RotaryAngles::period)> rests;
  double largest = -1;
  const Index sequences = positions.batched ? batch : 1;
  for (Index b = 0; b < sequences; ++b) {
    for (Index i = 0; i < seq; ++i) {
      for (Index axis = 0; axis < axes; ++axis) {
        const double p = positions(b, i, axis);
        rests.set(RotaryAngles::rest_of(p));
        largest = std::max(largest, p);
      }
    }
  }
  RotaryAngles angles;
  const Scratch table([&](Layout& layout) { angles.take(layout, pairs / axes); });
  const RotarySpectrum spectrum{dim / axes, config.base, largest + 1};
  angles.fill(rests, [&](Index c) { return config.scaling.frequency(spectrum, c); });

  // The tables of a block of positions serve all heads (and all batches, where positions are
  // shared) from the first cache.
  const Index threads = pool ? pool->NumThreads() : 1;
  const Index block = std::clamp<Index>(seq / (2 * threads), 1, 16);
  const Index blocks = (seq + block - 1) / block;
  parallel_for(pool, sequences * blocks, [&](Index first, Index last) {
    Number *cosine = nullptr, *sine = nullptr, *row = nullptr;
    double* origins = nullptr;
    const Scratch scratch([&](Layout& layout) {
      cosine = layout.take<Number>(block * entries);
      sine = layout.take<Number>(block * entries);
      row = layout.take<Number>(dim);
      origins = layout.take<double>(2 * pairs);
    });
    RotaryTables<Number> tables(angles, origins);
    for (Index item = first; item < last; ++item) {
      const Index sequence = item / blocks, begin = item % blocks * block,
                  end = std::min(begin + block, seq);
      for (Index i = begin; i < end; ++i) {
        for (Index axis = 0; axis < axes; ++axis) {
          tables.write(positions(sequence, i, axis), axis, interleaved, amplitude, direction,
                       cosine + (i - begin) * entries, sine + (i - begin) * entries);
        }
      }
      const Index first_batch = positions.batched ? sequence : 0,
                  last_batch = positions.batched ? sequence + 1 : batch;
      const auto turn = [&](const auto* from, auto* to, Index i) {
        const Number *const cos = cosine + (i - begin) * entries, *const sin =
                                                                      sine + (i - begin) * entries;
        if (interleaved) {
          rotate_neighbours(from, to, cos, sin, pairs);
        } else {
          rotate_halves(from, to, cos, sin, pairs);
        }
      };
      for (Index b = first_batch; b < last_batch; ++b) {
        for (Index h = 0; h < heads; ++h) {
          for (Index i = begin; i < end; ++i) {
            const Scalar* const from = &x(b, h, i, 0);
            Scalar* const to = &out(b, h, i, 0);
            if (contiguous) {
              turn(from, to, i);
              if (!in_place) std::copy(from + dim, from + width, to + dim);
              continue;
            }
            for (Index c = 0; c < dim; ++c) row[c] = static_cast<Number>(from[c * x.strides[3]]);
            turn(static_cast<const Number*>(row), row, i);
            for (Index c = 0; c < dim; ++c) to[c * out.strides[3]] = static_cast<Scalar>(row[c]);
            if (in_place) continue;
            for (Index c = dim; c < width; ++c) to[c * out.strides[3]] = from[c * x.strides[3]];
          }
        }
      }
    }
  });
}

template <class X>
constexpr void check_rotary_type() {
  static_assert(rank_of<X> >= 2 && rank_of<X> <= 4,
                "heed: what is rotated has a rank from 2 to 4: (..., seq, dim)");
  check_not_integers<X>();
  static_assert(Laned<Accumulator<ScalarOf<X>>>,
                "heed: rotary positions are for float, double, half and bfloat16");
}

template <class X, class P>
auto rotary(const char* function, const X& x, const P& positions, const RotaryConfig& config,
            double direction, Eigen::ThreadPoolInterface* pool) {
  check_rotary_type<X>();
  using Scalar = ScalarOf<X>;
  const auto seen = view(x);
  check_extents(function, "the input", seen.shape);
  const View<const Scalar, 4> from = rank4(seen);
  const Index dim = rotated_width(function, config, from.shape[3]);
  const auto where = rotary_positions(function, positions, from.shape, config.axes);
  auto result = make_result<Scalar, X>(seen.shape);
  rotate<Scalar>(rank4(result), from, where, config, dim, direction, pool);
  return result;
}

template <class Out, class X, class P>
void rotary_into(const char* function, Out& out, const X& x, const P& positions,
                 const RotaryConfig& config, double direction, Eigen::ThreadPoolInterface* pool) {
  check_rotary_type<X>();
  using Scalar = ScalarOf<X>;
  const auto target = view(out);
  using Element = std::remove_pointer_t<decltype(target.data)>;
  static_assert(!std::is_const_v<Element>, "heed: the output cannot be written to");
  static_assert(std::is_same_v<Element, Scalar>, "heed: the output has the input's number type");
  static_assert(decltype(target)::Rank == rank_of<X>, "heed: the output has the input's rank");
  const auto seen = view(x);
  check_extents(function, "the input", seen.shape);
  if (target.shape != seen.shape) {
    fail(function, "the output has shape ", target.shape, ", the input ", seen.shape);
  }
  const View<const Scalar, 4> from = rank4(seen);
  const auto to = rank4(target);
  const Index dim = rotated_width(function, config, from.shape[3]);
  const auto where = rotary_positions(function, positions, from.shape, config.axes);
  check_writable(function, to, "the output");
  if (!same_elements(to, from)) check_not_aliased(function, to, from, "the input");
  if constexpr (!std::integral<P>) {
    check_not_aliased(function, to, spread(rotary_positions_view(positions)), "the positions");
  }
  rotate<Scalar>(to, from, where, config, dim, direction, pool);
}

}  // namespace detail

/// x (..., seq, dim) of rank 2 to 4 with its pairs of features turned by the angles of their
/// positions (Su et al., "RoFormer", 2021), so that products of rotated queries and keys depend on
/// the differences of their positions; features from config.dim on are copied. `positions`: an
/// integer, the position of the first of seq, or integers (seq) or (batch, seq), with one more axis
/// of 2 where config.axes is 2. Angles are computed in double. The result has the storage order of
/// x. std::invalid_argument where the configuration or the positions do not fit.
template <class X, class P>
auto rotary(const X& x, const P& positions, const RotaryConfig& config,
            Eigen::ThreadPoolInterface* pool = nullptr) {
  return detail::rotary("rotary", x, positions, config, 1, pool);
}

/// Writes rotary(x, positions, config) into out, which is x itself or shares no elements with it,
/// and none with the positions. A
/// second call of one shape allocates nothing.
template <class Out, class X, class P>
void rotary_into(Out&& out, const X& x, const P& positions, const RotaryConfig& config,
                 Eigen::ThreadPoolInterface* pool = nullptr) {
  detail::rotary_into("rotary_into", out, x, positions, config, 1, pool);
}

/// Gradient of x from that of rotary(x, positions, config): a rotation back, times the scaling's
/// attention factor.
template <class G, class P>
auto rotary_backward(const G& grad, const P& positions, const RotaryConfig& config,
                     Eigen::ThreadPoolInterface* pool = nullptr) {
  return detail::rotary("rotary_backward", grad, positions, config, -1, pool);
}

/// Writes that gradient into out, which is grad itself or shares no elements with it.
template <class Out, class G, class P>
void rotary_backward_into(Out&& out, const G& grad, const P& positions, const RotaryConfig& config,
                          Eigen::ThreadPoolInterface* pool = nullptr) {
  detail::rotary_into("rotary_backward_into", out, grad, positions, config, -1, pool);
}

}  // namespace heed
