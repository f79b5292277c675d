#include "fuzz/mask.hpp"

#include "heed/mask.hpp"

namespace heed::fuzz {
namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

bool hashed(std::uint64_t seed, int share, Index b, Index h, Index i, Index j) {
  std::uint64_t x = seed;
  for (const Index n : {b, h, i, j}) x = (x ^ static_cast<std::uint64_t>(n)) * 0x9e3779b97f4a7c15;
  return static_cast<int>((x >> 40) % 8) < share;
}

template <int Capacity>
MaskDraw<Capacity> leaf(Draw& draw, const Positions& p) {
  using Any = AnyMask<Capacity>;
  const auto queries = p.queries, keys = p.keys;
  const Index batch = p.batch;
  const auto offset = [=](Align align, Index b) {
    return align == Align::bottom_right ? keys[at(b)] - queries[at(b)] : 0;
  };
  const auto within = [](Index position, Index left, Index right, Index j) {
    return (left < 0 || j >= position - left) && (right < 0 || j <= position + right);
  };
  const Align align = draw.one_of({Align::bottom_right, Align::top_left});
  const Index left = draw.integer(-1, 9) * draw.one_of<Index>({1, 1, 20});
  const Index right = draw.integer(-1, 9) * draw.one_of<Index>({1, 1, 20});
  const Index l = left < 0 ? -1 : left, r = right < 0 ? -1 : right;
  std::vector<int> offsets;
  for (Index b = 0; b < batch; ++b) {
    const auto most = static_cast<Index>(p.most_keys);
    offsets.push_back(static_cast<int>(draw.integer(-3, most + 3)));
  }
  switch (draw.integer(0, 11)) {
    case 0:
      return {Any::of(no_mask()), [](auto...) { return true; }};
    case 1:
      return {Any::of(causal(align)),
              [=](Index b, Index, Index i, Index j) { return j <= i + offset(align, b); }};
    case 2:
      return {Any::of(sliding_window(l, r, align)), [=](Index b, Index, Index i, Index j) {
                return within(i + offset(align, b), l, r, j);
              }};
    case 3: {
      std::vector<std::uint16_t> lens;
      for (Index b = 0; b < batch; ++b) {
        lens.push_back(static_cast<std::uint16_t>(draw.integer(0, p.most_keys + 2)));
      }
      return {Any::of(valid_lens(std::vector<std::uint16_t>(lens))),
              [lens](Index b, Index, Index, Index j) { return j < Index{lens[at(b)]}; }};
    }
    case 4: {
      const Index columns = draw.chance(30) ? 1 : p.most_queries;
      Eigen::Matrix<int, Eigen::Dynamic, Eigen::Dynamic> lens(batch, columns);
      for (Index n = 0; n < lens.size(); ++n) {
        lens(n) = static_cast<int>(static_cast<Index>(draw.word() >> 8) % (p.most_keys + 2));
      }
      return {Any::of(valid_lens(Eigen::Matrix<int, Eigen::Dynamic, Eigen::Dynamic>(lens))),
              [lens, columns](Index b, Index, Index i, Index j) {
                return j < Index{lens(b, columns == 1 ? 0 : i)};
              }};
    }
    case 5:
      return {Any::of(causal(std::vector<int>(offsets))),
              [=](Index b, Index, Index i, Index j) { return j <= i + offsets[at(b)]; }};
    case 6:
      return {
          Any::of(sliding_window(l, r, std::vector<int>(offsets))),
          [=](Index b, Index, Index i, Index j) { return within(i + offsets[at(b)], l, r, j); }};
    case 7: {
      const Index n = draw.integer(0, p.most_keys + 1);
      return {Any::of(prefix(n)), [n](Index, Index, Index, Index j) { return j < n; }};
    }
    case 8: {
      // Documents, one after the other or strewn about.
      const bool sorted = draw.chance(60), shared = draw.chance(50);
      const Index documents = draw.integer(1, 5);
      const auto ids = [&](Index count) {
        Matrix<int> result(shared ? 1 : batch, count);
        for (Index b = 0; b < result.rows(); ++b) {
          for (Index n = 0; n < count; ++n) {
            result(b, n) =
                static_cast<int>(sorted ? n * documents / std::max<Index>(count, 1)
                                        : static_cast<Index>(draw.word() >> 8) % documents);
          }
        }
        return result;
      };
      const Matrix<int> query_ids = ids(p.most_queries), key_ids = ids(p.most_keys);
      return {Any::of(segments(Matrix<int>(query_ids), Matrix<int>(key_ids))),
              [=](Index b, Index, Index i, Index j) {
                return query_ids(shared ? 0 : b, i) == key_ids(shared ? 0 : b, j);
              }};
    }
    case 9: {
      Tensor<bool, 4> tensor(draw.chance(50) ? batch : 1, draw.chance(50) ? p.heads : 1,
                             draw.chance(70) ? p.most_queries : 1,
                             draw.chance(70) ? p.most_keys : 1);
      for (Index n = 0; n < tensor.size(); ++n) tensor.data()[n] = draw.word() % 3 != 0;
      return {Any::of(allow(Tensor<bool, 4>(tensor))),
              [tensor](Index b, Index h, Index i, Index j) {
                return tensor(tensor.dimension(0) == 1 ? 0 : b, tensor.dimension(1) == 1 ? 0 : h,
                              tensor.dimension(2) == 1 ? 0 : i, tensor.dimension(3) == 1 ? 0 : j);
              }};
    }
    default: {
      const auto seed = static_cast<std::uint64_t>(draw.integer(0, 255));
      const auto share = static_cast<int>(draw.integer(1, 7));
      const auto pairs = [=](Index b, Index h, Index i, Index j) {
        return hashed(seed, share, b, h, i, j);
      };
      return {Any::of(mask_if(pairs)), pairs};
    }
  }
}

}  // namespace

template <int Capacity>
MaskDraw<Capacity> draw_mask(Draw& draw, const Positions& positions, int depth) {
  using Any = AnyMask<Capacity>;
  if (depth == 0 || draw.chance(45)) return leaf<Capacity>(draw, positions);
  const auto a = draw_mask<Capacity>(draw, positions, depth - 1);
  const Pairs x = a.allowed;
  switch (draw.integer(0, 2)) {
    case 0:
      return {Any::of(!a.mask), [x](Index b, Index h, Index i, Index j) { return !x(b, h, i, j); }};
    case 1: {
      const auto c = draw_mask<Capacity>(draw, positions, depth - 1);
      const Pairs y = c.allowed;
      return {Any::of(a.mask && c.mask), [x, y](Index b, Index h, Index i, Index j) {
                return x(b, h, i, j) && y(b, h, i, j);
              }};
    }
    default: {
      const auto c = draw_mask<Capacity>(draw, positions, depth - 1);
      const Pairs y = c.allowed;
      return {Any::of(a.mask || c.mask), [x, y](Index b, Index h, Index i, Index j) {
                return x(b, h, i, j) || y(b, h, i, j);
              }};
    }
  }
}

template MaskDraw<1> draw_mask<1>(Draw&, const Positions&, int);
template MaskDraw<3> draw_mask<3>(Draw&, const Positions&, int);

}  // namespace heed::fuzz
