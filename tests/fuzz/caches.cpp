#include "heed/cache.hpp"

#include "fuzz/attention.hpp"
#include "heed/modifier.hpp"

namespace heed::fuzz {
namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

struct Shape {
  Index batch, heads, kv_heads, key_dim, value_dim;
};

/// A sequence as it was appended, and the first position behind the sinks that is not overwritten.
struct Story {
  std::vector<std::vector<Real>> keys, values;  // of each token all heads, one after another
  Index lost = 0;
  Index length() const { return static_cast<Index>(keys.size()); }
};

/// A row of Quantised8: whole numbers of a 127th of the largest.
void quantise(Real* row, Index width) {
  Real largest = 0;
  for (Index c = 0; c < width; ++c) largest = std::max(largest, std::abs(row[c]));
  if (largest == 0) return;
  const Real unit = static_cast<Real>(static_cast<float>(largest / 127));
  for (Index c = 0; c < width; ++c) {
    row[c] = static_cast<Real>(
                 std::lrint(static_cast<double>(row[c]) * (127 / static_cast<double>(largest)))) *
             unit;
  }
}

/// A cache beside the stories of its sequences.
template <class Cache>
class Told {
  using Element = typename Cache::Element;
  static constexpr bool paged = requires(Cache& c) { c.fork(0, 0); };

 public:
  /// `window` 0: nothing is evicted.
  Told(Cache& cache, const Shape& shape, Index slots, Index window, Index sinks)
      : cache_(cache),
        shape_(shape),
        slots_(slots),
        window_(window),
        sinks_(sinks),
        stories_(at(shape.batch)) {
    for (auto& story : stories_) story.lost = sinks;
  }

  void act(Draw& draw) {
    const Index sequences = shape_.batch;
    const Index b = draw.integer(0, std::max<Index>(0, sequences - 1));
    const Index other = draw.integer(0, std::max<Index>(0, sequences - 1));
    const auto decision = draw.integer(0, 19);
    if (sequences == 0) return append(draw, -1);
    if (decision < 6) return append(draw, -1);
    if (decision < 11) return append(draw, b);
    if (decision < 15) {
      const Index n = draw.integer(0, stories_[at(b)].length());
      cache_.truncate(b, n);
      cut(b, n);
    } else if (decision < 17) {
      std::vector<Index> order;
      for (Index n = 0; n < sequences; ++n) order.push_back(draw.integer(0, sequences - 1));
      cache_.reorder(order);
      const auto before = stories_;
      for (std::size_t n = 0; n < order.size(); ++n) stories_[n] = before[at(order[n])];
    } else if (decision < 19) {
      if constexpr (paged) {
        cache_.fork(b, other);
        stories_[at(other)] = stories_[at(b)];
      } else {
        attend(draw);
      }
    } else if (draw.chance(50)) {
      cache_.clear(b);
      cut(b, 0);
    } else {
      cache_.clear();
      for (Index n = 0; n < sequences; ++n) cut(n, 0);
    }
  }

  void attend(Draw& draw) {
    Sizes s{.batch = shape_.batch,
            .heads = shape_.heads,
            .kv_heads = shape_.kv_heads,
            .queries = draw.chance(70) ? draw.integer(0, 5) : draw.integer(0, 40),
            .keys = 0,
            .query_dim = shape_.key_dim,
            .key_dim = shape_.key_dim,
            .value_dim = shape_.value_dim};
    std::vector<Index> queries(at(s.batch), s.queries), keys;
    for (const Story& story : stories_) {
      keys.push_back(story.length());
      s.keys = std::max(s.keys, story.length());
    }
    Case<float> c(draw, s);
    for_each_place(c.attention.key.shape, [&](Index b, Index h, Index j, Index d) {
      const Story& story = stories_[at(b)];
      c.attention.key(b, h, j, d) =
          j < story.length() ? story.keys[at(j)][at(h * s.key_dim + d)] : Real(0);
    });
    for_each_place(c.attention.value.shape, [&](Index b, Index h, Index j, Index d) {
      const Story& story = stories_[at(b)];
      c.attention.value(b, h, j, d) =
          j < story.length() ? story.values[at(j)][at(h * s.value_dim + d)] : Real(0);
    });
    const Positions positions(s.heads, queries, keys);
    const auto mask = draw_mask<1>(draw, positions);
    const auto slopes = draw_vector(draw, s.heads, draw.one_of({0., .1}));
    c.attention.similarity = oracle::dot_product(s.key_dim, Real(.5));
    c.attention.modifiers = {oracle::alibi(reals(slopes))};
    c.attention.allowed = [&](Index b, Index h, Index i, Index j) {
      const Story& story = stories_[at(b)];
      const Index evicted = window_ > 0 ? story.length() - window_ : 0;
      return j < story.length() && (j < sinks_ || j >= std::max(story.lost, evicted)) &&
             mask.allowed(b, h, i, j);
    };
    c.place(draw);
    about() += ", window " + std::to_string(window_) + ", sinks " + std::to_string(sinks_);
    const Tolerance<float> tolerance(s);
    const auto forward = oracle::Evaluation(c.attention).forward();
    const auto size =
        row_magnitude(forward.output_magnitude, forward.score_magnitude, tolerance.epsilon);
    Placed<float> out(draw, forward.output.shape);
    attention_into(out.view(), std::as_const(*c.query).view(), cache_,
                   dot_product(.5) | alibi(slopes), mask.mask, c.options);
    compare("attention over a cache", out.view(), forward.output, size, tolerance);
    out.check_surroundings("the output");
  }

  void check_lengths() const {
    for (Index b = 0; b < shape_.batch; ++b) {
      if (cache_.length(b) != stories_[at(b)].length()) found("the length of sequence ", b);
    }
  }

 private:
  void cut(Index b, Index n) {
    Story& story = stories_[at(b)];
    story.keys.resize(at(n));
    story.values.resize(at(n));
    story.lost = std::max(sinks_, std::min(story.lost, n));
  }

  /// To sequence b, or to all of them.
  void append(Draw& draw, Index b) {
    const Index tokens = draw.chance(60) ? draw.integer(0, 4) : draw.integer(0, 40);
    const Index batch = b < 0 ? shape_.batch : 1;
    Numbers k = draw_numbers(draw, {batch, shape_.kv_heads, tokens, shape_.key_dim}, 1);
    Numbers v = draw_numbers(draw, {batch, shape_.kv_heads, tokens, shape_.value_dim}, 1);
    if (draw.chance(10)) {  // one token that is not a number
      for (Numbers* x : {&k, &v}) {
        if (!x->data.empty()) x->data.back() = std::numeric_limits<Real>::quiet_NaN();
      }
    }
    const Placed<float> key(draw, k), value(draw, v);
    const auto go = [&] {
      if (b < 0) {
        cache_.append(key.view(), value.view());
      } else {
        cache_.append(b, one(key.view()), one(value.view()));
      }
    };
    if constexpr (paged) {
      try {
        go();
      } catch (const std::length_error&) {
        return check_lengths();
      }
    } else {
      bool fits = true;
      for (Index n = 0; n < shape_.batch; ++n) {
        if (b < 0 || n == b) fits = fits && stories_[at(n)].length() + tokens <= slots_;
      }
      try {
        go();
      } catch (const std::invalid_argument&) {
        if (window_ > 0 || fits) found("room was refused");
        return check_lengths();
      }
      if (window_ == 0 && !fits) found("more tokens than there is room for");
    }
    for (Index n = 0; n < batch; ++n) {
      Story& story = stories_[at(b < 0 ? n : b)];
      for (Index t = 0; t < tokens; ++t) {
        story.keys.push_back(token(k, n, t));
        story.values.push_back(token(v, n, t));
      }
      if (window_ > 0) story.lost = std::max(story.lost, story.length() - (slots_ - sinks_));
    }
  }

  static View<const float, 3> one(const View<const float, 4>& x) {
    return {
        x.data, {x.shape[1], x.shape[2], x.shape[3]}, {x.strides[1], x.strides[2], x.strides[3]}};
  }
  static std::vector<Real> token(Numbers& x, Index b, Index t) {
    std::vector<Real> result;
    for (Index h = 0; h < x.shape[1]; ++h) {
      Real* const row = x.row(b, h, t);
      if constexpr (std::is_same_v<Element, Quantised8>) {
        bool finite = true;
        for (Index c = 0; c < x.shape[3]; ++c) finite = finite && std::isfinite(row[c]);
        if (finite) {
          quantise(row, x.shape[3]);
        } else {
          std::fill(row, row + x.shape[3], std::numeric_limits<Real>::quiet_NaN());
        }
      }
      result.insert(result.end(), row, row + x.shape[3]);
    }
    return result;
  }

  Cache& cache_;
  Shape shape_;
  Index slots_, window_, sinks_;
  std::vector<Story> stories_;
};

template <class Cache>
void use(Draw& draw, Told<Cache>& told) {
  for (Index n = draw.integer(1, 12); n-- > 0;) {
    told.act(draw);
    told.check_lengths();
    if (draw.chance(40)) told.attend(draw);
  }
  told.attend(draw);
}

Shape draw_shape(Draw& draw) {
  const Index kv_heads = draw.integer(1, 2);
  return {draw.integer(0, 3), kv_heads * draw.integer(1, 3), kv_heads, draw.length(20),
          draw.length(20)};
}

template <class Element>
void use_plain(Draw& draw) {
  const Shape s = draw_shape(draw);
  const Index window = draw.chance(50) ? draw.integer(1, 40) : 0;
  const Index sinks = window > 0 && draw.chance(60) ? draw.integer(0, 9) : 0;
  const Index capacity = draw.integer(0, 120);
  const Index slots = std::max(capacity, window + sinks);
  KeyValueCache<Element> cache({.batch = s.batch,
                                .kv_heads = s.kv_heads,
                                .key_dim = s.key_dim,
                                .value_dim = s.value_dim,
                                .capacity = capacity,
                                .window = window,
                                .sinks = sinks});
  Told<KeyValueCache<Element>> told(cache, s, slots, window, sinks);
  use(draw, told);
}

void use_paged(Draw& draw) {
  const Shape s = draw_shape(draw);
  PagePool<float> pool({.pages = draw.integer(0, 40),
                        .page_size = draw.integer(1, 17),
                        .kv_heads = s.kv_heads,
                        .key_dim = s.key_dim,
                        .value_dim = s.value_dim});
  {
    PagedKeyValueCache<float> cache(pool, s.batch);
    Told<PagedKeyValueCache<float>> told(cache, s, 0, 0, 0);
    use(draw, told);
  }
  if (pool.free_pages() != pool.config().pages) found("pages are not given back");
}

}  // namespace

/// Attention over a cache is attention over what has been appended to it, whatever came between.
void use_caches(Draw& draw) {
  switch (draw.integer(0, 2)) {
    case 0:
      return use_plain<float>(draw);
    case 1:
      return use_plain<Quantised8>(draw);
    default:
      return use_paged(draw);
  }
}

}  // namespace heed::fuzz
