#include "heed/safetensors.hpp"

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "heed/linear.hpp"
#include "support.hpp"

namespace heed::test {
namespace {

std::string scratch_path() {
  return ::testing::TempDir() + "heed_" +
         ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".safetensors";
}

std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file << bytes;
}

std::string little_endian(std::uint64_t n) {
  std::string bytes;
  for (int byte = 0; byte < 8; ++byte) bytes += static_cast<char>(n >> (8 * byte) & 0xFF);
  return bytes;
}

/// A file of this header and as many bytes of data.
std::string file_of(const std::string& header, std::size_t data) {
  return little_endian(header.size()) + header + std::string(data, '\1');
}

// ---------------------------------------------------------------- what the format says

TEST(SafeTensors, AreReadAsTheFormatSays) {
  // 2 x 2 floats 1, 2, 3, 4 in bytes 0 to 15; three signed bytes -1, 0, 1 behind them.
  const std::string path = scratch_path();
  const std::string header =
      R"({"b":{"dtype":"I8","shape":[3],"data_offsets":[16,19]},)"
      R"("a":{"data_offsets":[0,16],"shape":[2,2],"dtype":"F32"},"__metadata__":{"k":"v"}})";
  // Spaces, so that the floats begin at a multiple of 4.
  std::string bytes = file_of(header + std::string((4 - header.size() % 4) % 4, ' '), 0);
  for (const char* number : {"\0\0\x80\x3f", "\0\0\0\x40", "\0\0\x40\x40", "\0\0\x80\x40"}) {
    bytes.append(number, 4);
  }
  write(path, bytes + "\xff" + std::string(1, '\0') + "\x01");

  const SafeTensors file(path);
  EXPECT_EQ(file.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(file.shape("a"), (std::vector<Index>{2, 2}));
  EXPECT_EQ(file.shape("b"), (std::vector<Index>{3}));
  EXPECT_EQ(file.type("a"), "F32");
  EXPECT_EQ(file.metadata().at("k"), "v");
  EXPECT_TRUE(file.contains("b"));
  EXPECT_FALSE(file.contains("__metadata__"));
  const View<const std::int8_t, 1> b = file.view<std::int8_t, 1>("b");
  EXPECT_EQ(b(0), -1);
  EXPECT_EQ(b(1), 0);
  EXPECT_EQ(b(2), 1);
  const auto a = file.view<float, 2>("a");
  EXPECT_EQ(a(0, 0), 1);
  EXPECT_EQ(a(0, 1), 2);
  EXPECT_EQ(a(1, 0), 3);
  EXPECT_EQ(a(1, 1), 4);
  const SafeTensors copy = file;
  EXPECT_EQ((copy.view<float, 2>("a").data), a.data);
}

template <class File>
concept Viewable = requires(File&& file) {
  std::forward<File>(file).template view<float, 2>("a");
  std::forward<File>(file).bytes("a");
};
static_assert(Viewable<const SafeTensors&>);
static_assert(!Viewable<SafeTensors> && !Viewable<const SafeTensors>);

TEST(SafeTensors, RefuseAViewThatDoesNotFit) {
  const std::string path = scratch_path();
  const std::string header = R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[1,17]},)"
                             R"("c":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}})";
  std::string bytes = file_of(header + std::string((64 - header.size() % 64) % 64, ' '), 17);
  bytes[bytes.size() - 17] = 2;
  write(path, bytes);
  const SafeTensors file(path);
  EXPECT_TRUE(refuses([&] { file.view<double, 2>("a"); }, {path, "'a'", "F32", "F64"}));
  EXPECT_TRUE(refuses([&] { file.view<float, 1>("a"); }, {path, "'a'", "(2, 2)", "rank 1"}));
  EXPECT_TRUE(
      refuses([&] { file.view<float, 2>("b"); }, {path, "'b'", "'c'", "no tensor of the 2"}));
  EXPECT_TRUE(refuses([&] { file.view<float, 2>("a"); }, {path, "'a'", "without a copy"}));
  EXPECT_TRUE(refuses([&] { file.view<bool, 1>("c"); }, {path, "'c'", "neither 0 nor 1"}));
  EXPECT_TRUE(refuses([&] { file.shape("nothing"); }, {path, "'nothing'"}));
  // Loading copies, and does not mind where the elements lie.
  Linear<float> layer{Matrix<float>(2, 2), {}};
  load(layer, file, [](std::string_view) { return "a"; });
  float expected = 0;
  std::memcpy(&expected, "\1\1\1\1", 4);
  EXPECT_EQ(layer.weight(1, 1), expected);
}

struct Hostile {
  std::string what, bytes;
  std::vector<std::string> message;
};

std::string entry(const std::string& inside) { return "{\"weight\":{" + inside + "}}"; }

std::vector<Hostile> hostile_files() {
  const std::string good = entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])");
  const auto shaped = [](const std::string& shape, const std::string& offsets) {
    return entry(R"("dtype":"F32","shape":)" + shape + R"(,"data_offsets":)" + offsets);
  };
  const auto two = [](const std::string& first, const std::string& second) {
    return R"({"weight":{"dtype":"U8","shape":[4],"data_offsets":)" + first +
           R"(},"other":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
  };
  std::string deep = "{\"weight\":";
  for (int n = 0; n < 1000000; ++n) deep += "[";
  std::string deep_objects;
  for (int n = 0; n < 200000; ++n) deep_objects += "{\"a\":";
  return {
      {"nothing", "", {"0 bytes"}},
      {"seven bytes", "\1\0\0\0\0\0\0", {"bytes"}},
      {"a length and no header", little_endian(2), {"8 bytes"}},
      {"a header longer than the file", little_endian(200) + good, {"200", "cut off"}},
      {"the longest header there is",
       little_endian(~std::uint64_t{0}) + good,
       {"18446744073709551615"}},
      {"a length that wraps around", little_endian(~std::uint64_t{0} - 7) + good, {"cut off"}},
      {"an empty header", file_of("", 8), {"begin with '{'"}},
      {"a header that is a list", file_of("[]", 0), {"begin with '{'"}},
      {"a header that begins with a space", file_of(" " + good, 8), {"begin with '{'"}},
      {"a header cut in two", file_of(good.substr(0, 30), 8), {"no JSON"}},
      {"two headers", file_of(good + good, 8), {"no JSON"}},
      {"a zero byte in the header", file_of(good + std::string(1, '\0'), 8), {"no JSON"}},
      {"bytes that are not UTF-8", file_of("{\"\xff\xfe\":{}}", 0), {"no JSON"}},
      {"lists in lists", file_of(deep, 0), {"'weight'", "list where none"}},
      {"objects in objects", file_of(deep_objects, 0), {"'a'"}},
      {"a tensor that is a number", file_of(R"({"weight":1})", 0), {"'weight'", "number"}},
      {"a tensor that is a text", file_of(R"({"weight":"x"})", 0), {"'weight'", "text"}},
      {"a tensor that is null", file_of(R"({"weight":null})", 0), {"'weight'", "null"}},
      {"no dtype",
       file_of(entry(R"("shape":[2],"data_offsets":[0,8])"), 8),
       {"'weight'", "no dtype"}},
      {"no shape",
       file_of(entry(R"("dtype":"F32","data_offsets":[0,8])"), 8),
       {"'weight'", "no shape"}},
      {"no offsets",
       file_of(entry(R"("dtype":"F32","shape":[2])"), 8),
       {"'weight'", "no data_offsets"}},
      {"an unknown dtype",
       file_of(entry(R"("dtype":"F31","shape":[2],"data_offsets":[0,8])"), 8),
       {"'weight'", "'F31'"}},
      {"an empty dtype",
       file_of(entry(R"("dtype":"","shape":[2],"data_offsets":[0,8])"), 8),
       {"'weight'", "dtype"}},
      {"a dtype that is a number",
       file_of(entry(R"("dtype":4,"shape":[2])"), 8),
       {"'weight'", "number"}},
      {"an unknown key",
       file_of(entry(R"("dtype":"F32","color":[2])"), 8),
       {"'weight'", "'color'"}},
      {"two dtypes",
       file_of(entry(R"("dtype":"F32","dtype":"F32")"), 8),
       {"'weight'", "two values of 'dtype'"}},
      {"two shapes",
       file_of(entry(R"("shape":[2],"shape":[2])"), 8),
       {"'weight'", "two values of 'shape'"}},
      {"two entries of a name",
       file_of(R"({"weight":{"dtype":"U8","shape":[1],)"
               R"("data_offsets":[0,1]},"weight":{"dtype":"U8",)"
               R"("shape":[1],"data_offsets":[1,2]}})",
               2),
       {"'weight'", "two entries"}},
      {"a negative extent", file_of(shaped("[-2]", "[0,8]"), 8), {"'weight'", "'shape'", "-2"}},
      {"half an element", file_of(shaped("[1.5]", "[0,6]"), 8), {"'weight'", "1.5"}},
      {"an extent beyond every integer",
       file_of(shaped("[1e99]", "[0,8]"), 8),
       {"'weight'", "1e99"}},
      {"an extent of 2^63",
       file_of(shaped("[9223372036854775808]", "[0,8]"), 8),
       {"'weight'", "9223372036854775808"}},
      {"a list in the shape", file_of(shaped("[[2]]", "[0,8]"), 8), {"'weight'", "list"}},
      {"a text in the shape", file_of(shaped("[\"2\"]", "[0,8]"), 8), {"'weight'", "text"}},
      {"a product of 2^64",
       file_of(shaped("[4294967296,4294967296]", "[0,0]"), 0),
       {"'weight'", "(4294967296, 4294967296)", "too many"}},
      {"bytes of 2^64",
       file_of(shaped("[4611686018427387904]", "[0,0]"), 0),
       {"'weight'", "too many"}},
      {"a product that is huge but for a 0",
       file_of(shaped("[0,4294967296,4294967296]", "[0,0]"), 0),
       {"'weight'", "too many"}},
      {"one offset", file_of(shaped("[2]", "[8]"), 8), {"'weight'", "1 data_offsets"}},
      {"three offsets", file_of(shaped("[2]", "[0,8,8]"), 8), {"'weight'", "3 data_offsets"}},
      {"offsets that are an object", file_of(shaped("[2]", "{}"), 8), {"'weight'", "object"}},
      {"offsets the wrong way round",
       file_of(shaped("[2]", "[8,0]"), 8),
       {"'weight'", "before it begins"}},
      {"a negative offset", file_of(shaped("[2]", "[-8,0]"), 8), {"'weight'", "-8"}},
      {"too few bytes for the shape",
       file_of(shaped("[3]", "[0,8]"), 8),
       {"'weight'", "12", "(3)"}},
      {"too many bytes for the shape", file_of(shaped("[]", "[0,8]"), 8), {"'weight'", "8", "()"}},
      {"an end beyond the file",
       file_of(shaped("[4]", "[0,16]"), 15),
       {"'weight'", "16", "15", "cut off"}},
      {"an end beyond every file",
       file_of(shaped("[2305843009213693951]", "[0,9223372036854775804]"), 8),
       {"'weight'", "9223372036854775804"}},
      {"an overlap", file_of(two("[0,4]", "[2,6]"), 6), {"'other'", "within another"}},
      {"the same bytes twice", file_of(two("[0,4]", "[0,4]"), 4), {"within another"}},
      {"a hole", file_of(two("[0,4]", "[5,9]"), 9), {"'other'", "hole"}},
      {"a hole at the beginning", file_of(two("[1,5]", "[5,9]"), 9), {"'weight'", "hole"}},
      {"bytes at the end", file_of(good, 9), {"8", "9"}},
      {"bytes without a tensor", file_of("{}", 1), {"0", "1"}},
      {"an empty tensor within another",
       file_of(R"({"weight":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
               R"("other":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}})",
               4),
       {"'other'", "within another"}},
      {"metadata of numbers", file_of(R"({"__metadata__":{"a":1}})", 0), {"'__metadata__'"}},
      {"metadata in metadata", file_of(R"({"__metadata__":{"a":{}}})", 0), {"'__metadata__'"}},
      {"metadata twice",
       file_of(R"({"__metadata__":{},"__metadata__":{}})", 0),
       {"'__metadata__'", "two entries"}},
      {"a name that would break the message",
       file_of("{\"a\\n" + std::string(5000, 'b') + "\":1}", 0),
       {"'a?bbb", "...'"}},
  };
}

TEST(SafeTensors, RefuseHostileFiles) {
  const std::string path = scratch_path();
  for (const Hostile& hostile : hostile_files()) {
    SCOPED_TRACE(hostile.what);
    write(path, hostile.bytes);
    EXPECT_TRUE(refuses([&] { const SafeTensors file(path); }, {path}));
    for (const std::string& part : hostile.message) {
      EXPECT_TRUE(refuses([&] { const SafeTensors file(path); }, {part}));
    }
  }
}

TEST(SafeTensors, EveryPrefixOfAFileIsRefused) {
  const std::string path = scratch_path();
  const Matrix<float> x = Matrix<float>::Ones(3, 5);
  save({{"x", x}}, path);
  const std::string whole = content(path);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    write(path, whole.substr(0, size));
    EXPECT_TRUE(refuses([&] { const SafeTensors file(path); }, {path})) << size;
  }
}

TEST(SafeTensors, AChangedByteIsRefusedOrReadable) {
  const std::string path = scratch_path();
  const Matrix<float> x = Matrix<float>::Ones(3, 5);
  const Vector<std::int16_t> y = Vector<std::int16_t>::Ones(4);
  save({{"x", x}, {"y", y}}, path, {{"a", "b"}});
  const std::string whole = content(path);
  const std::size_t header = whole.size() - 60 - 8;
  std::mt19937 random(5);
  int refused = 0, opened = 0;
  for (int n = 0; n < 3000; ++n) {
    std::string changed = whole;
    for (auto times = random() % 3; times < 3; ++times) {
      changed[random() % header] = static_cast<char>("\"{}[],:0129 x\xff"[random() % 14]);
    }
    try {
      const auto read = detail::read_safetensors_header(changed, path);
      for (const auto& [name, tensor] : read.tensors) {
        EXPECT_LE(read.data + tensor.end, whole.size()) << changed;
      }
      ++opened;
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(opened, 10);
}

TEST(SafeTensors, AFileThatCannotBeReadIsNamed) {
  for (const std::string& path : {::testing::TempDir() + "no such file", ::testing::TempDir()}) {
    try {
      const SafeTensors file(path);
      FAIL() << path;
    } catch (const std::runtime_error& error) {
      EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
    }
  }
}

// ---------------------------------------------------------------- there and back

template <class Scalar>
Matrix<Scalar> bits_of_all_kinds(Index rows, Index columns) {
  Matrix<Scalar> x(rows, columns);
  std::mt19937 random(7);
  for (Index n = 0; n < x.size(); ++n) {
    std::array<unsigned char, sizeof(Scalar)> bytes;
    for (auto& byte : bytes) byte = static_cast<unsigned char>(random() & 0xFF);
    if constexpr (std::is_same_v<Scalar, bool>) bytes[0] &= 1;
    std::memcpy(static_cast<void*>(x.data() + n), bytes.data(), sizeof(Scalar));
  }
  return x;
}

template <class Scalar>
bool same_bits(const View<const Scalar, 2>& a, const Matrix<Scalar>& b) {
  if (a.shape != std::array{b.rows(), b.cols()}) return false;
  return b.size() == 0 ||
         std::memcmp(static_cast<const void*>(a.data), static_cast<const void*>(b.data()),
                     static_cast<std::size_t>(b.size()) * sizeof(Scalar)) == 0;
}

TEST(SafeTensors, SavedTensorsOfEveryTypeComeBackBitForBit) {
  const auto all =
      std::tuple(bits_of_all_kinds<bool>(3, 1), bits_of_all_kinds<std::int8_t>(3, 5),
                 bits_of_all_kinds<std::int16_t>(3, 5), bits_of_all_kinds<std::int32_t>(3, 5),
                 bits_of_all_kinds<std::int64_t>(3, 5), bits_of_all_kinds<std::uint8_t>(1, 7),
                 bits_of_all_kinds<std::uint16_t>(3, 5), bits_of_all_kinds<std::uint32_t>(3, 5),
                 bits_of_all_kinds<std::uint64_t>(3, 5), bits_of_all_kinds<Eigen::half>(3, 5),
                 bits_of_all_kinds<Eigen::bfloat16>(3, 5), bits_of_all_kinds<float>(3, 5),
                 bits_of_all_kinds<double>(3, 5), bits_of_all_kinds<float>(0, 4));
  std::vector<NamedTensor> tensors;
  std::apply(
      [&](const auto&... x) {
        (tensors.emplace_back("tensor \"" + std::to_string(tensors.size()) + "\" \xC3\xA9", x),
         ...);
      },
      all);
  const std::string path = scratch_path();
  save(tensors, path, {{"two\nlines", "\\"}});
  const SafeTensors file(path);
  EXPECT_EQ(file.names().size(), 14U);
  EXPECT_EQ(file.metadata().at("two\nlines"), "\\");
  std::size_t n = 0;
  const auto expect_back = [&](const auto& x) {
    using Scalar = typename std::decay_t<decltype(x)>::Scalar;
    EXPECT_TRUE((same_bits(file.view<Scalar, 2>(tensors[n].name), x))) << tensors[n].name;
    ++n;
  };
  std::apply([&](const auto&... x) { (expect_back(x), ...); }, all);
}

TEST(SafeTensors, TensorsOfEveryRankAndStride) {
  const std::string path = scratch_path();
  const Reference x = random({2, 3, 4, 5}, 1);
  Scattered<float> scattered(x, {1, 3});
  const Eigen::Tensor<double, 3> columns =
      make<double, 3, Eigen::ColMajor>(random({2, 1, 4, 5}, 2));
  const Vector<float> vector = make<float, 2>(random({1, 1, 6, 1}, 3)).col(0);
  const auto scattered_view = scattered.view();
  save({{"scattered", scattered_view}, {"columns", columns}, {"vector", vector}}, path);
  const SafeTensors file(path);
  EXPECT_TRUE(same(reference(file.view<float, 4>("scattered")), x));
  EXPECT_EQ(file.shape("columns"), (std::vector<Index>{2, 4, 5}));
  const auto three = file.view<double, 3>("columns");
  for (Index b = 0; b < 2; ++b) {
    for (Index i = 0; i < 4; ++i) {
      for (Index j = 0; j < 5; ++j) EXPECT_EQ(three(b, i, j), columns(b, i, j));
    }
  }
  EXPECT_EQ(file.shape("vector"), (std::vector<Index>{6}));
  EXPECT_EQ((file.view<float, 1>("vector")(5)), vector(5));
}

using Attention = MultiHeadAttention<float>;

template <class A, class B>
bool same_parameters(const A& a, const B& b) {
  bool same = true;
  for_each_parameter(a, b, [&](const auto& x, const auto& y) {
    same =
        same && std::memcmp(static_cast<const void*>(x.data()), static_cast<const void*>(y.data()),
                            static_cast<std::size_t>(x.size()) * sizeof(x(0, 0))) == 0;
  });
  return same;
}

TEST(SafeTensors, AModuleComesBackBitForBit) {
  const std::string path = scratch_path();
  const MultiHeadConfig config{.embed_dim = 12, .num_heads = 4, .num_kv_heads = 2, .bias = true};
  const Attention module(config, 1);
  save(module, path);
  Attention loaded(config, 2);
  ASSERT_FALSE(same_parameters(module, loaded));
  {
    const SafeTensors file(path);
    EXPECT_EQ(file.names().size(), 8U);
    load(loaded, file);
  }
  EXPECT_TRUE(same_parameters(module, loaded));
  const auto x = make<float, 3>(random({2, 1, 5, 12}, 3));
  EXPECT_TRUE(same(reference(module(x, x, x)), reference(loaded(x, x, x))));
}

TEST(SafeTensors, LoadRenamesAndConverts) {
  const std::string path = scratch_path();
  Matrix<double> weight(2, 3);
  weight << 1.0 / 3, -2, 1e-9, 4, 1e30, .1;
  Vector<Eigen::bfloat16> bias(2);
  bias << Eigen::bfloat16(1.5F), Eigen::bfloat16(-.25F);
  save({{"model.w", weight}, {"model.b", bias}}, path);
  const SafeTensors file(path);
  const auto rename = [](const std::string& name) { return "model." + name.substr(0, 1); };

  Linear<float> as_float{Matrix<float>(2, 3), Vector<float>(2)};
  load(as_float, file, rename);
  EXPECT_TRUE(as_float.weight == weight.cast<float>());
  EXPECT_EQ(as_float.bias(0), 1.5F);
  EXPECT_EQ(as_float.bias(1), -.25F);
  Linear<double> as_double{Matrix<double>(2, 3), Vector<double>(2)};
  load(as_double, file, rename);
  EXPECT_TRUE(as_double.weight == weight);
  Linear<Eigen::bfloat16> as_bfloat16{Matrix<Eigen::bfloat16>(2, 3), Vector<Eigen::bfloat16>(2)};
  load(as_bfloat16, file, rename);
  // 1/3 = 1.0101 0101|0101...b / 4: seven digits behind the point are kept, and the eighth is a 0.
  EXPECT_EQ(static_cast<float>(as_bfloat16.weight(0, 0)), 0.333984375F);
  EXPECT_EQ(static_cast<float>(as_bfloat16.bias(1)), -.25F);
  Linear<Eigen::half> as_half{Matrix<Eigen::half>(2, 3), Vector<Eigen::half>(2)};
  load(as_half, file, rename);
  EXPECT_EQ(static_cast<float>(as_half.weight(0, 1)), -2.F);
  EXPECT_TRUE(std::isinf(static_cast<float>(as_half.weight(1, 1))));
}

TEST(SafeTensors, LoadRefusesBeforeItWrites) {
  const std::string path = scratch_path();
  const Linear<float> before{make<float, 2>(random({1, 1, 2, 3}, 1)), Vector<float>::Ones(2)};
  Linear<float> module = before;
  const auto expect_refusal = [&](const std::vector<NamedTensor>& tensors,
                                  std::initializer_list<std::string> parts) {
    save(tensors, path);
    const SafeTensors file(path);
    EXPECT_TRUE(refuses([&] { load(module, file); }, parts));
    EXPECT_TRUE(module.weight == before.weight && module.bias == before.bias);
  };
  const Matrix<float> weight = Matrix<float>::Zero(2, 3), turned = Matrix<float>::Zero(3, 2);
  const Vector<float> bias = Vector<float>::Zero(2), longer = Vector<float>::Zero(3);
  const Matrix<float> bias_column = Matrix<float>::Zero(2, 1);
  const Vector<int> integers = Vector<int>::Zero(2);
  const std::string name = path;
  expect_refusal({{"weight", weight}}, {name, "'bias'", "no tensor"});
  expect_refusal({{"weight", weight}, {"bias", longer}}, {name, "'bias'", "(3)", "(2)"});
  expect_refusal({{"weight", weight}, {"bias", bias_column}}, {name, "'bias'", "(2, 1)", "(2)"});
  expect_refusal({{"weight", weight}, {"bias", integers}}, {name, "'bias'", "I32"});
  expect_refusal({{"weight", turned}, {"bias", bias}}, {name, "'weight'", "(3, 2)", "(2, 3)"});
  save({{"weight", weight}, {"bias", bias}, {"more", bias}}, path);
  const SafeTensors file(path);
  load(module, file);
  EXPECT_TRUE(module.weight == weight && module.bias == bias);
  Linear<float> empty;
  EXPECT_TRUE(refuses([&] { load(empty, file); }, {"no parameters"}));
}

TEST(SafeTensors, SaveRefusesAndLeavesWhatIsThere) {
  const std::string path = scratch_path();
  const Matrix<float> x = Matrix<float>::Ones(2, 3);
  save({{"x", x}}, path);
  const std::string before = content(path);
  EXPECT_TRUE(refuses([&] { save({{"y", x}, {"y", x}}, path); }, {"'y'"}));
  EXPECT_TRUE(refuses([&] { save({{"__metadata__", x}}, path); }, {"'__metadata__'"}));
  EXPECT_TRUE(refuses([&] { save({{"\xff", x}}, path); }, {path, "UTF-8"}));
  EXPECT_TRUE(refuses([&] { save({{"y", x}}, path, {{"\xff", ""}}); }, {path, "UTF-8"}));
  EXPECT_TRUE(refuses([&] { save(Linear<float>(), path); }, {"no parameters"}));
  EXPECT_EQ(content(path), before);
  EXPECT_FALSE(std::filesystem::exists(path + ".part"));
  EXPECT_THROW(save({{"y", x}}, ::testing::TempDir()), std::runtime_error);
  EXPECT_THROW(save({{"y", x}}, ::testing::TempDir() + "no/such/directory"), std::runtime_error);
  // A file that is open is replaced under its reader, which keeps what it sees.
  const SafeTensors file(path);
  const Matrix<float> y = Matrix<float>::Zero(20, 30);
  save({{"y", y}}, path);
  EXPECT_TRUE(same_bits(file.view<float, 2>("x"), x));
  EXPECT_EQ(SafeTensors(path).names(), (std::vector<std::string>{"y"}));
}

TEST(SafeTensors, NothingIsAFileToo) {
  const std::string path = scratch_path();
  save(std::vector<NamedTensor>(), path);
  EXPECT_TRUE(SafeTensors(path).names().empty());
}

// ---------------------------------------------------------------- a file of another program's

/// Written by tests/data/make_tiny.py with safetensors for Python; outputs computed by numpy.
const SafeTensors& tiny() {
  static const SafeTensors file(std::filesystem::path(__FILE__).parent_path() /
                                "data/tiny.safetensors");
  return file;
}

template <class Scalar>
void expect_ramp(const std::string& name, int first) {
  const auto x = tiny().view<Scalar, 2>("type." + name);
  for (Index n = 0; n < 6; ++n) {
    EXPECT_EQ(number(x(n / 3, n % 3)), static_cast<double>(first + n)) << name;
  }
}

TEST(TinyModel, TypesOfAnotherProgram) {
  EXPECT_EQ(tiny().metadata().at("made by"), "make_tiny.py");
  expect_ramp<Eigen::half>("float16", -2);
  expect_ramp<double>("float64", -2);
  expect_ramp<std::int8_t>("int8", -2);
  expect_ramp<std::int16_t>("int16", -2);
  expect_ramp<std::int32_t>("int32", -2);
  expect_ramp<std::int64_t>("int64", -2);
  expect_ramp<std::uint8_t>("uint8", 0);
  expect_ramp<std::uint16_t>("uint16", 0);
  expect_ramp<std::uint32_t>("uint32", 0);
  expect_ramp<std::uint64_t>("uint64", 0);
  const auto even = tiny().view<bool, 2>("type.bool");
  for (Index n = 0; n < 6; ++n) EXPECT_EQ(even(n / 3, n % 3), n % 2 == 0);
  EXPECT_TRUE(tiny().shape("scalar").empty());
  EXPECT_EQ(tiny().shape("empty"), (std::vector<Index>{0, 4}));
  EXPECT_EQ((tiny().view<float, 2>("empty").size()), 0);
}

TEST(TinyModel, AttentionWithStackedProjections) {
  const auto x = tiny().view<float, 3>("x");
  const Reference expected =
      reference(make<float, 3>(generate({2, 1, 5, 8}, [&](Index b, Index, Index i, Index j) {
        return number(tiny().view<float, 3>("stacked.output")(b, i, j));
      })));
  for (const char* prefix : {"stacked", "stacked."}) {
    Attention module({.embed_dim = 8, .num_heads = 2, .bias = true});
    load_torch(module, tiny(), prefix);
    EXPECT_TRUE(near(reference(module(x, x, x)), expected, 2e-6));
  }
}

TEST(TinyModel, AttentionWithSeparateProjections) {
  MultiHeadAttention<double> module({.embed_dim = 8, .num_heads = 2, .key_dim = 3, .value_dim = 6});
  load_torch(module, tiny(), "separate");
  const auto as_double = [](const View<const float, 3>& from) {
    return make<double, 3>(
        generate({from.shape[0], 1, from.shape[1], from.shape[2]},
                 [&](Index b, Index, Index i, Index j) { return number(from(b, i, j)); }));
  };
  const auto output =
      module(as_double(tiny().view<float, 3>("x")), as_double(tiny().view<float, 3>("key")),
             as_double(tiny().view<float, 3>("value")));
  EXPECT_TRUE(near(reference(output),
                   reference(as_double(tiny().view<float, 3>("separate.output"))), 1e-6));
}

TEST(TinyModel, LayersOfTheirOwnNames) {
  // Names as in "q_proj.weight", of a module with fewer heads of keys.
  const std::string path = scratch_path();
  const Attention module({.embed_dim = 8, .num_heads = 4, .num_kv_heads = 2, .bias = true}, 1);
  std::vector<NamedTensor> tensors;
  for_each_parameter(module, [&](std::string_view name, const auto& value) {
    const std::string kind(name.substr(0, name.find('_')));
    tensors.emplace_back("a." + (kind == "output" ? "out" : kind.substr(0, 1)) + "_proj" +
                             std::string(name.substr(name.find('.'))),
                         value);
  });
  save(tensors, path);
  Attention loaded(module.config(), 2);
  load_torch(loaded, SafeTensors(path), "a");
  EXPECT_TRUE(same_parameters(module, loaded));
}

TEST(TinyModel, LoadTorchRefusesBeforeItWrites) {
  const auto expect_refusal = [](const MultiHeadConfig& config, const SafeTensors& file,
                                 const char* prefix, std::initializer_list<std::string> parts) {
    const Attention before(config, 4);
    Attention module = before;
    EXPECT_TRUE(refuses([&] { load_torch(module, file, prefix); }, parts));
    EXPECT_TRUE(same_parameters(module, before));
  };
  expect_refusal({.embed_dim = 8, .num_heads = 2}, tiny(), "stacked",
                 {"'stacked.in_proj_bias'", "no bias"});
  expect_refusal({.embed_dim = 8, .num_heads = 2, .key_dim = 3, .value_dim = 6, .bias = true},
                 tiny(), "separate", {"'separate.in_proj_bias'", "missing"});
  expect_refusal({.embed_dim = 8, .num_heads = 2, .bias = true}, tiny(), "other",
                 {"'other.q_proj_weight'"});
  expect_refusal({.embed_dim = 12, .num_heads = 2, .bias = true}, tiny(), "stacked",
                 {"'stacked.in_proj_weight'", "(24, 8)", "(36, 12)"});
  const std::string path = scratch_path();
  const Matrix<float> stacked = Matrix<float>::Ones(24, 8), extra = Matrix<float>::Ones(1, 8);
  save({{"in_proj_weight", stacked}}, path);
  expect_refusal({.embed_dim = 8, .num_heads = 2}, SafeTensors(path), "", {"'out_proj.weight'"});
  save({{"in_proj_weight", stacked}, {"bias_k", extra}}, path);
  expect_refusal({.embed_dim = 8, .num_heads = 2}, SafeTensors(path), "", {"'bias_k'"});
  Attention empty;
  EXPECT_TRUE(refuses([&] { load_torch(empty, tiny(), "stacked"); }, {"no parameters"}));
}

}  // namespace
}  // namespace heed::test
