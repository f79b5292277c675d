#include "heed/additive_attention.hpp"
#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/embedding.hpp"
#include "heed/linear.hpp"
#include "heed/matmul.hpp"
#include "heed/ragged.hpp"
#include "heed/rotary.hpp"
#include "heed/transformer_block.hpp"
#include "score_support.hpp"

namespace heed::test {
namespace {

using detail::ByteBox;

/// Every byte of every element, as often as elements have it.
std::vector<std::intptr_t> bytes_of(const ByteBox& x) {
  std::vector<std::intptr_t> result;
  for_each_index(x.shape, [&](Index b, Index h, Index i, Index j) {
    const Index offset = b * x.strides[0] + h * x.strides[1] + i * x.strides[2] + j * x.strides[3];
    for (Index byte = 0; byte < x.size; ++byte) result.push_back(x.base + offset + byte);
  });
  std::sort(result.begin(), result.end());
  return result;
}

bool really_share(const ByteBox& a, const ByteBox& b) {
  const auto x = bytes_of(a), y = bytes_of(b);
  std::vector<std::intptr_t> both;
  std::set_intersection(x.begin(), x.end(), y.begin(), y.end(), std::back_inserter(both));
  return !both.empty();
}

bool really_overlaps_itself(const ByteBox& x) {
  const auto bytes = bytes_of(x);
  return std::adjacent_find(bytes.begin(), bytes.end()) != bytes.end();
}

class RandomBoxes {
 public:
  explicit RandomBoxes(std::uint64_t seed) : engine_(seed) {}

  /// Strides without any order; with elements of 1 to 8 bytes, maybe empty.
  ByteBox any() {
    ByteBox x{below(100), {}, {}, Index(1) << below(4)};
    for (std::size_t axis = 0; axis < 4; ++axis) {
      x.shape[axis] = below(20) == 0 ? 0 : 1 + below(4);
      x.strides[axis] = below(60) - 30;
    }
    return x;
  }
  /// A block of a tensor of `outer`, whose last axis is contiguous, with axes in any order and in
  /// steps of one or two, some of them backwards.
  ByteBox block(const Shape& outer, Index size) {
    ByteBox x{1000, {}, {}, size};
    Index stride = size;
    for (std::size_t axis = 4; axis-- > 0;) {
      const Index step = 1 + below(2), first = below(outer[axis]);
      x.shape[axis] = 1 + below((outer[axis] - first + step - 1) / step);
      x.strides[axis] = stride * step;
      x.base += first * stride;
      if (below(4) == 0) {
        x.base += (x.shape[axis] - 1) * x.strides[axis];
        x.strides[axis] = -x.strides[axis];
      }
      stride *= outer[axis];
    }
    for (std::size_t axis = 3; axis > 0; --axis) {
      const auto other = static_cast<std::size_t>(below(static_cast<Index>(axis) + 1));
      std::swap(x.shape[axis], x.shape[other]);
      std::swap(x.strides[axis], x.strides[other]);
    }
    return x;
  }

 private:
  Index below(Index n) { return static_cast<Index>(engine_() % static_cast<std::uint64_t>(n)); }

  std::mt19937_64 engine_;
};

struct Tally {
  int yes = 0, no = 0;
  void count(bool answer) { ++(answer ? yes : no); }
  /// Both answers occur often enough to have been tested.
  void expect_both() const {
    EXPECT_GT(yes, 500);
    EXPECT_GT(no, 500);
  }
};

std::string text(const ByteBox& x) {
  return std::to_string(x.base) + ": " + test::text(x.shape) + " by " + test::text(x.strides) +
         " of " + std::to_string(x.size) + " bytes";
}

TEST(Alias, SharedBytesAreThoseFoundOneByOne) {
  RandomBoxes random(1);
  Tally any, blocks;
  for (int trial = 0; trial < 10000; ++trial) {
    const ByteBox a = random.any(), b = random.any();
    const bool expected = really_share(a, b);
    ASSERT_EQ(detail::share_bytes(a, b), expected) << text(a) << " and " << text(b);
    ASSERT_EQ(detail::share_bytes(b, a), expected) << text(b) << " and " << text(a);
    any.count(expected);
  }
  for (int trial = 0; trial < 10000; ++trial) {
    const Index size = trial % 3 == 0 ? 2 : 4;
    const ByteBox a = random.block({3, 4, 5, 7}, 4), b = random.block({3, 4, 5, 28 / size}, size);
    const bool expected = really_share(a, b);
    ASSERT_EQ(detail::share_bytes(a, b), expected) << text(a) << " and " << text(b);
    blocks.count(expected);
  }
  any.expect_both();
  blocks.expect_both();
}

TEST(Alias, ElementsThatOverlapAreThoseFoundOneByOne) {
  RandomBoxes random(2);
  Tally any;
  for (int trial = 0; trial < 20000; ++trial) {
    const ByteBox x = random.any();
    const bool expected = really_overlaps_itself(x);
    ASSERT_EQ(detail::overlaps_itself(x), expected) << text(x);
    any.count(expected);
    const ByteBox block = random.block({3, 4, 5, 7}, 4);
    ASSERT_FALSE(detail::overlaps_itself(block)) << text(block);
  }
  any.expect_both();
}

// Interleaved slots of one packed projection, and strides that are nested in nothing, at sizes
// where no enumeration would end.
TEST(Alias, AnswersForTensorsOfAnySize) {
  const Index seq = 1 << 20, dim = 128, heads = 64, width = 3 * heads * dim;
  const auto slot = [&](Index s, Index first, Index shift) {
    return ByteBox{4 * (s * heads * dim + first * width + shift),
                   {16, heads, seq / 16, dim},
                   {4 * (seq / 16) * width, 4 * dim, 4 * width, 4},
                   4};
  };
  EXPECT_FALSE(detail::share_bytes(slot(0, 0, 0), slot(1, 0, 0)));
  EXPECT_FALSE(detail::share_bytes(slot(2, 0, 0), slot(1, 5, 0)));
  EXPECT_TRUE(detail::share_bytes(slot(1, 3, 0), slot(1, 0, 0)));
  EXPECT_TRUE(detail::share_bytes(slot(0, 0, 1), slot(1, 0, 0)));
  EXPECT_FALSE(detail::overlaps_itself(slot(0, 0, 0)));
  const Index primes[] = {1000003, 999983, 1000033, 999979, 1000037, 999961, 1000039, 999959};
  const ByteBox a{0, {50, 50, 50, 50}, {primes[0], primes[1], primes[2], primes[3]}, 1};
  const ByteBox b{1, {50, 50, 50, 50}, {primes[4], primes[5], primes[6], primes[7]}, 1};
  EXPECT_TRUE(detail::share_bytes(a, b));
}

// ---------------------------------------------------------------- what writes refuses

/// Calls f on blocks of one matrix that are given as (row, column, rows, columns).
struct Blocks {
  Matrix<float> memory = make<float, 2>(random({1, 1, 200, 200}, 1));
  auto operator()(Index row, Index column, Index rows, Index columns) {
    return memory.block(row, column, rows, columns);
  }
};

/// f throws, names its function and both tensors, and has written nothing.
template <class F>
void expect_refused(Blocks& m, const F& f, std::initializer_list<std::string> parts) {
  const Matrix<float> before = m.memory;
  EXPECT_TRUE(refuses(f, parts));
  EXPECT_EQ(m.memory, before);
}

TEST(Alias, BlocksThatOverlapInTheMiddle) {
  Blocks m;
  const auto q = make<float, 2>(random({1, 1, 40, 20}, 2)), k = q, b = q;
  expect_refused(m, [&] { attention_into(m(0, 10, 40, 20), q, k, m(20, 0, 40, 20)); },
                 {"heed::attention_into", "the output", "value"});
  expect_refused(m, [&] { attention_into(m(20, 0, 40, 20), q, m(0, 10, 40, 20), k); },
                 {"heed::attention_into", "the output", "key"});
  expect_refused(m, [&] { attention_into(m(39, 0, 40, 20), m(0, 19, 40, 20), q, k); },
                 {"heed::attention_into", "the output", "query"});
  // Corner to corner they share nothing.
  EXPECT_NO_THROW(attention_into(m(40, 0, 40, 20), m(0, 19, 40, 20), q, k));
  EXPECT_NO_THROW(attention_into(m(39, 0, 40, 20), m(0, 20, 40, 20), q, k));

  const auto square = make<float, 2>(random({1, 1, 100, 100}, 2));
  expect_refused(m, [&] { batched_matmul_into(m(0, 50, 100, 100), m(50, 0, 100, 100), square); },
                 {"heed::batched_matmul_into", "the first factor"});
  expect_refused(m, [&] { batched_matmul_into(m(0, 50, 100, 100), square, m(50, 0, 100, 100)); },
                 {"heed::batched_matmul_into", "the second factor"});
  expect_refused(
      m, [&] { batched_matmul_into(m(0, 50, 100, 100), square, m(50, 0, 100, 100).transpose()); },
      {"heed::batched_matmul_into", "the second factor"});
}

TEST(Alias, OfTheBackwardPass) {
  Blocks m;
  const auto x = make<float, 2>(random({1, 1, 40, 20}, 2));
  auto dq = x, dk = x, dv = x;
  const auto pass = attention_forward(x, x, x);
  const auto run = [&](auto query, auto key, auto value, auto given_query, auto output,
                       auto log_sum_exp, auto grad) {
    const AttentionPass<decltype(output), decltype(log_sum_exp)> given{output, log_sum_exp};
    attention_backward_into(
        AttentionGradients<decltype(query), decltype(key), decltype(value)>{query, key, value},
        given_query, x, x, given, grad);
  };
  const auto out = view(pass.output), in = view(x);
  const View<const float, 1> rows = detail::result_view(pass.log_sum_exp);
  const auto a = [&] { return view(m(0, 10, 40, 20)); };
  const auto b = [&] { return view(m(20, 0, 40, 20)); };
  const std::string function = "heed::attention_backward_into";
  expect_refused(m, [&] { run(a(), b(), view(dv), in, out, rows, in); },
                 {function, "gradients.query", "gradients.key"});
  expect_refused(m, [&] { run(view(dq), a(), b(), in, out, rows, in); },
                 {function, "gradients.key", "gradients.value"});
  expect_refused(m, [&] { run(a(), view(dk), b(), in, out, rows, in); },
                 {function, "gradients.query", "gradients.value"});
  expect_refused(m, [&] { run(view(dq), view(dk), a(), b(), out, rows, in); },
                 {function, "gradients.value", " query"});
  expect_refused(m, [&] { run(view(dq), a(), view(dv), in, b(), rows, in); },
                 {function, "gradients.key", "pass.output"});
  expect_refused(m, [&] { run(a(), view(dk), view(dv), in, out, rows, b()); },
                 {function, "gradients.query", "grad_output"});
  // A column of the block that one gradient goes to.
  const View<float, 1> column{&m.memory(0, 29), {40}, {200}};
  expect_refused(m, [&] { run(a(), view(dk), view(dv), in, out, column, in); },
                 {function, "gradients.query", "pass.log_sum_exp"});
  const View<float, 2> repeated{m.memory.data(), {40, 20}, {0, 1}};
  expect_refused(m, [&] { run(view(dq), repeated, view(dv), in, out, rows, in); },
                 {function, "gradients.key", "(0, 0, 0, 1)"});
  EXPECT_NO_THROW(run(a(), view(m(0, 30, 40, 20)), view(dv), in, out, rows, in));
}

TEST(Alias, OutputsThatRepeatAnElement) {
  Blocks m;
  const auto x = make<float, 2>(random({1, 1, 9, 9}, 2));
  float* const data = m.memory.data();
  const View<float, 2> all_one{data, {9, 9}, {0, 0}}, one_row{data, {9, 9}, {0, 1}},
      one_column{data, {9, 9}, {1, 0}}, sliding{data, {9, 9}, {3, 1}};
  Linear<float> layer{x, {}};
  for (const auto& out : {all_one, one_row, one_column, sliding}) {
    expect_refused(m, [&] { attention_into(out, x, x, x); }, {"heed::attention_into", "overlap"});
    expect_refused(m, [&] { batched_matmul_into(out, x, x); },
                   {"heed::batched_matmul_into", "overlap"});
    expect_refused(m, [&] { layer.into(out, x); }, {"heed::Linear", "overlap"});
    Linear<float> parameters;
    expect_refused(m, [&] { layer.backward_into(out, parameters, x, x); },
                   {"heed::Linear", "overlap"});
    EXPECT_EQ(parameters.weight.size(), 0);
  }
  // An axis of one element may have any stride, and an order of axes may be any.
  const auto row = make<float, 2>(random({1, 1, 1, 9}, 2));
  EXPECT_NO_THROW(attention_into(View<float, 2>{data, {1, 9}, {0, 1}}, row, x, x));
  EXPECT_NO_THROW(attention_into(View<float, 2>{data + 8, {9, 9}, {9, -1}}, x, x, x));
  EXPECT_NO_THROW(attention_into(View<float, 2>{data, {9, 9}, {2, 18}}, x, x, x));
}

TEST(Alias, OfALinearLayer) {
  auto x = make<float, 2>(random({1, 1, 6, 6}, 1)), grad = make<float, 2>(random({1, 1, 6, 6}, 2));
  Linear<float> layer{make<float, 2>(random({1, 1, 6, 6}, 3)), Vector<float>::Ones(6)}, parameters;
  const Matrix<float> x_before = x, weight_before = layer.weight, grad_before = grad;
  const std::string function = "heed::Linear";
  EXPECT_TRUE(refuses([&] { layer.into(x, x); }, {function, "the output", " x"}));
  EXPECT_TRUE(refuses([&] { layer.into(transposed(x), x); }, {function, "the output", " x"}));
  EXPECT_TRUE(refuses([&] { layer.into(layer.weight, x); }, {function, "the weight"}));
  EXPECT_TRUE(
      refuses([&] { layer.into(View<float, 2>{layer.bias.data(), {1, 6}, {6, 1}}, x.topRows(1)); },
              {function, "the bias"}));
  const auto backward = [&](auto&& grad_x, Linear<float>& to, const auto& given, const auto& dy) {
    layer.backward_into(grad_x, to, given, dy);
  };
  EXPECT_TRUE(refuses([&] { backward(x, parameters, x, grad); }, {function, "of x", " x"}));
  EXPECT_TRUE(refuses([&] { backward(grad, parameters, x, grad); }, {function, "of y"}));
  EXPECT_TRUE(
      refuses([&] { backward(layer.weight, parameters, x, grad); }, {function, "the weight"}));
  Matrix<float> dx(6, 6);
  dx.setZero();
  EXPECT_TRUE(refuses([&] { backward(dx, layer, x, grad); },
                      {function, "the gradient of the weight", "the weight"}));
  parameters = layer;
  EXPECT_TRUE(refuses([&] { backward(parameters.weight, parameters, x, grad); },
                      {function, "the gradient of x"}));
  EXPECT_TRUE(refuses([&] { backward(dx, parameters, parameters.weight, grad); },
                      {function, "the gradient of the weight", " x"}));
  EXPECT_TRUE(refuses([&] { backward(dx, parameters, x, parameters.weight); },
                      {function, "the gradient of the weight", "of y"}));
  EXPECT_EQ(parameters.weight, weight_before);
  EXPECT_EQ(layer.weight, weight_before);
  EXPECT_EQ(layer.bias, Vector<float>(Vector<float>::Ones(6)));
  EXPECT_EQ(x, x_before);
  EXPECT_EQ(grad, grad_before);
  EXPECT_TRUE(dx.isZero());
}

// ---------------------------------------------------------------- policies

/// Memory that a tensor of floats and one of another type may share.
struct Shared {
  alignas(64) std::array<float, 64> memory{};

  Shared() { memory.fill(0); }  // the integer 0, and false, as well
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(memory.data());
  }
  View<float, 2> out() { return {memory.data(), {4, 4}, {4, 1}}; }
  View<float, 4> wide() { return {memory.data(), {1, 1, 4, 4}, {16, 16, 4, 1}}; }
  bool untouched() const {
    return std::all_of(memory.begin(), memory.end(), [](float x) { return x == 0; });
  }
};

/// A user's mask, which says what it refers to.
struct Listed : MaskPolicy {
  View<const int, 1> keys;

  explicit Listed(const View<const int, 1>& k) : keys(k) {}
  void for_each_tensor(const auto& visit) const { visit(keys, "the list of keys"); }
  struct Bound {
    View<const int, 1> keys;
    bool allows(Index, Index, Index, Index j) const { return keys(j) != 0; }
  };
  auto bind(const Problem&) const { return Bound{keys}; }
};

/// Calls f(mask, its name) with each mask that refers to tensors, over 4 queries and keys; bytes
/// of these and of the memory's are the same.
void for_each_mask(Shared& m, const auto& f) {
  const View<const bool, 2> pairs{m.as<bool>(), {4, 4}, {4, 1}};
  const View<const int, 1> four{m.as<int>(), {4}, {1}}, one{m.as<int>(), {1}, {1}};
  const std::vector<int> ids(4, 0);
  f(allow(pairs), "allow");
  f(valid_lens(one), "valid_lens");
  f(segments(four, ids), "query ids of segments");
  f(segments(ids, four), "key ids of segments");
  f(causal(one), "offsets");
  f(causal() && !(prefix(1) || allow(pairs)), "allow");
  f(Listed(four), "the list of keys");
}

TEST(Alias, AnOutputIsNoTensorOfAPolicy) {
  Shared m;
  const Matrix<float> x = Matrix<float>::Random(4, 4);
  const auto refused = [&](const auto& f, const std::string& what) {
    EXPECT_TRUE(refuses(f, {"shares elements with", what}));
    EXPECT_TRUE(m.untouched()) << what;
  };
  for_each_mask(m, [&](const auto& mask, const std::string& name) {
    refused([&] { attention_into(m.out(), x, x, x, dot_product(), mask); }, name);
  });
  const View<const float, 2> table = m.out(), row{m.memory.data(), {1, 4}, {4, 1}};
  const View<const float, 1> one{m.memory.data(), {1}, {1}}, four{m.memory.data(), {4}, {1}};
  const auto dot = dot_product();
  refused([&] { attention_into(m.out(), x, x, x, dot | bias(table)); }, "bias");
  refused([&] { attention_into(m.out(), x, x, x, dot | bias(row)); }, "bias");
  refused([&] { attention_into(m.out(), x, x, x, dot | softcap(1) | alibi(one)); }, "alibi");
  refused([&] { attention_into(m.out(), x, x, x, dot | sink(one)); }, "sink");
  refused([&] { attention_into(m.out(), x, x, x, additive(four)); }, "additive");
  refused([&] { attention_into(m.out(), x, x, x, bilinear(table)); }, "bilinear");
  const auto bucket = [](Index) { return Index(0); };
  refused([&] { attention_into(m.out(), x, x, x, dot | relative_bias(row, bucket)); }, "table");
}

TEST(Alias, WeightsAreNoTensorOfAPolicy) {
  Shared m;
  const Matrix<float> x = Matrix<float>::Random(4, 4);
  Matrix<float> out(4, 4);
  const View<const bool, 2> pairs{m.as<bool>(), {4, 4}, {4, 1}};
  EXPECT_TRUE(refuses(
      [&] { attention_with_weights_into(out, m.out(), x, x, x, dot_product(), allow(pairs)); },
      {"the weights shares elements with", "allow"}));
  EXPECT_TRUE(m.untouched());
}

TEST(Alias, AnOutputOverACacheIsNoTensorOfAPolicy) {
  Shared m;
  KeyValueCache<float> cache({.key_dim = 4, .value_dim = 4, .capacity = 4});
  const auto x = make<float, 4>(random({1, 1, 4, 4}, 1));
  cache.append(x, x);
  const View<const bool, 2> pairs{m.as<bool>(), {4, 4}, {4, 1}};
  EXPECT_TRUE(refuses([&] { attention_into(m.wide(), x, cache, dot_product(), allow(pairs)); },
                      {"heed::attention_into", "allow"}));
  const View<const float, 2> table = m.out();
  EXPECT_TRUE(refuses([&] { attention_into(m.wide(), x, cache, dot_product() | bias(table)); },
                      {"heed::attention_into", "bias"}));
  EXPECT_TRUE(m.untouched());
}

TEST(Alias, OfRaggedBatches) {
  const Matrix<double> x = Matrix<double>::Random(4, 4);
  const std::vector<Index> offsets{0, 0, 4};
  alignas(64) std::array<Index, 16> memory{0, 0, 4};
  const auto before = memory;
  const View<const Index, 1> own{memory.data(), {3}, {1}};
  const View<double, 2> out{reinterpret_cast<double*>(memory.data()), {4, 4}, {4, 1}};
  const auto call = [&](const auto& of_query, const auto& of_key, const auto& of_value) {
    attention_into(out, ragged(x, of_query), ragged(x, of_key), ragged(x, of_value));
  };
  EXPECT_TRUE(refuses([&] { call(own, offsets, offsets); }, {"the offsets of query"}));
  EXPECT_TRUE(refuses([&] { call(offsets, own, offsets); }, {"the offsets of key"}));
  EXPECT_TRUE(refuses([&] { call(offsets, offsets, own); }, {"the offsets of value"}));
  // Two sequences without tokens, which may have a length each.
  const View<const Index, 1> lens{memory.data(), {2}, {1}};
  const auto packed = ragged(x, offsets);
  EXPECT_TRUE(
      refuses([&] { attention_into(out, packed, packed, packed, dot_product(), valid_lens(lens)); },
              {"the lengths of valid_lens"}));
  EXPECT_EQ(memory, before);
}

TEST(Alias, GradientsAreNoTensorOfAPolicy) {
  Shared m;
  const Matrix<float> x = Matrix<float>::Random(4, 4);
  Matrix<float> a(4, 4), b(4, 4);
  const auto run = [&](auto to, int which, const auto& score, const auto& mask) {
    const auto pass = attention_forward(x, x, x, score, mask);
    attention_backward_into(
        AttentionGradients<View<float, 2>, View<float, 2>, View<float, 2>>{
            which == 0 ? to : view(a), which == 1 ? to : view(which == 0 ? a : b),
            which == 2 ? to : view(b)},
        x, x, x, pass, x, score, mask);
  };
  const View<const bool, 2> pairs{m.as<bool>(), {4, 4}, {4, 1}};
  const View<const float, 2> table = m.out();
  const char* const names[] = {"gradients.query", "gradients.key", "gradients.value"};
  for (const int which : {0, 1, 2}) {
    EXPECT_TRUE(refuses([&] { run(m.out(), which, dot_product(), allow(pairs)); },
                        {names[which], "the tensor of allow"}));
    EXPECT_TRUE(refuses([&] { run(m.out(), which, dot_product() | bias(table), no_mask()); },
                        {names[which], "the tensor of bias"}));
  }
  EXPECT_TRUE(m.untouched());
}

TEST(Alias, GradientsOfParametersStandApart) {
  Shared m;
  const Matrix<float> x = Matrix<float>::Random(4, 4);
  const View<float, 2> own = m.out();
  const View<const float, 2> table = own;
  const View<const bool, 2> pairs{m.as<bool>(), {4, 4}, {4, 1}};
  Matrix<float> other = Matrix<float>::Random(4, 4);
  const auto refused = [&](const auto& score, const auto& mask, const std::string& what) {
    auto pass = attention_forward(x, x, x);
    const AttentionPass<Matrix<float>, View<float, 1>> read{
        pass.output, View<float, 1>{m.memory.data() + 8, {4}, {1}}};
    EXPECT_TRUE(refuses(
        [&] {
          if (what == "pass.log_sum_exp") {
            attention_backward(x, x, x, read, x, score, mask);
          } else {
            attention_backward(x, x, x, pass, x, score, mask);
          }
        },
        {"share", what}));
    EXPECT_TRUE(m.untouched());
  };
  const auto dot = dot_product();
  refused(dot | bias(other, own), allow(pairs), "the tensor of allow");
  refused(dot | bias(other, own) | bias(table), no_mask(), "the tensor of bias");
  refused(dot | bias(table) | bias(other, own), no_mask(), "the tensor of bias");
  refused(dot | bias(other, own) | bias(other, own), no_mask(), "another parameter");
  refused(dot | bias(other, own), no_mask(), "pass.log_sum_exp");
}

TEST(Alias, OfModulesAndMasks) {
  Shared m;
  const Matrix<float> x = Matrix<float>::Random(4, 4);
  const auto batch = make<float, 3>(random({1, 1, 4, 4}, 1));
  const View<float, 3> wide{m.memory.data(), {1, 4, 4}, {16, 4, 1}};
  const View<const bool, 2> pairs{m.as<bool>(), {4, 4}, {4, 1}};
  const auto mask = allow(pairs);
  const auto refused = [&](const auto& f, const std::string& what = "the tensor of allow") {
    EXPECT_TRUE(refuses(f, {"the output shares elements with", what}));
    EXPECT_TRUE(m.untouched());
  };
  const MultiHeadAttention<float> heads({.embed_dim = 4, .num_heads = 2});
  refused([&] { heads.into(m.out(), x, x, x, mask); });
  KeyValueCache<float> cache({.kv_heads = 2, .key_dim = 2, .value_dim = 2, .capacity = 8});
  heads.remember(cache, batch, batch);
  refused([&] { heads.cross_into(wide, batch, cache, mask); });
  const AdditiveAttention<float> additive_attention(4, 4, 3);
  refused([&] { additive_attention.into(m.out(), x, x, x, mask); });

  BlockConfig config{.attention = {.embed_dim = 4, .num_heads = 2}, .mlp = {.dim = 4}};
  const TransformerBlock<float> block(config);
  refused([&] { block.into(m.out(), x, mask); });
  config.cross = true;
  const TransformerBlock<float> decoder(config);
  refused([&] { decoder.into(m.out(), x, x, mask); });
  refused([&] { decoder.into(m.out(), x, x, no_mask(), mask); });
  KeyValueCache<float> own = cache;
  own.clear();
  refused([&] { decoder.into(wide, batch, own, cache, mask); });
  EXPECT_EQ(own.length(), 0);
}

TEST(Alias, OfIntegersThatAreRead) {
  Shared m;
  const Matrix<float> x = Matrix<float>::Random(4, 4);
  const View<const int, 1> four{m.as<int>(), {4}, {1}};
  const RotaryConfig config{.layout = RotaryLayout::half};
  EXPECT_TRUE(refuses([&] { rotary_into(m.out(), x, four, config); },
                      {"heed::rotary_into", "the positions"}));
  EXPECT_TRUE(refuses([&] { rotary_into(m.out(), m.out(), four, config); },
                      {"heed::rotary_into", "the positions"}));
  EXPECT_TRUE(refuses([&] { rotary_backward_into(m.out(), x, four, config); },
                      {"heed::rotary_backward_into", "the positions"}));
  const Embedding<float> embedding(3, 4);
  EXPECT_TRUE(refuses([&] { embedding.into(m.out(), four); }, {"heed::Embedding", "the ids"}));
  EXPECT_TRUE(m.untouched());
}

TEST(Alias, AGradientOfParametersThatRepeatsIsRefused) {
  const Matrix<float> q = Matrix<float>::Random(4, 8);
  const Vector<float> w = Vector<float>::Ones(8);
  float number = 0;
  const View<float, 1> one_for_all{&number, {8}, {0}};
  const auto pass = attention_forward(q, q, q, additive(w));
  EXPECT_TRUE(
      refuses([&] { attention_backward(q, q, q, pass, pass.output, additive(w, one_for_all)); },
              {"the gradient of a parameter", "overlap"}));
  EXPECT_EQ(number, 0);
}

}  // namespace
}  // namespace heed::test
