#include <unistd.h>
#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "fuzz/layers.hpp"
#include "heed/safetensors.hpp"

namespace heed::fuzz {
namespace {

std::filesystem::path path_of(const char* name) {
  return std::filesystem::temp_directory_path() /
         ("heed_fuzz_" + std::to_string(::getpid()) + name + ".safetensors");
}
std::string read_all(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void write_all(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

/// A name of letters, quotes, escapes and other alphabets.
std::string draw_name(Draw& draw, Index n) {
  std::string name = std::to_string(n);
  for (Index letters = draw.integer(0, 4); letters-- > 0;) {
    name += draw.one_of({"a", ".", "\"", "\\", "/", " ", "\n", "\xC3\xA9", "\xF0\x9F\x98\x80"});
  }
  return name;
}

/// Elements of any bits, with strides of any order and sign, and a check that a file has them.
struct Saved {
  std::vector<std::int64_t> memory;
  std::vector<NamedTensor> tensor;
  std::function<void(const SafeTensors&)> check;
};

template <class Scalar, int Rank>
void fill(Draw& draw, const std::string& name, Saved& saved) {
  constexpr auto rank = static_cast<std::size_t>(Rank);
  std::array<std::size_t, rank> order{};
  for (std::size_t axis = 0; axis < rank; ++axis) order[axis] = axis;
  if (draw.chance(50)) std::reverse(order.begin(), order.end());
  View<Scalar, Rank> x;
  Index stride = draw.integer(1, 2), last = 0;
  for (const std::size_t axis : order) {
    x.shape[axis] = draw.integer(draw.chance(10) ? 0 : 1, 6);
    x.strides[axis] = stride;
    if (x.shape[axis] > 0) last += (x.shape[axis] - 1) * stride;
    stride *= std::max<Index>(x.shape[axis], 1);
  }
  saved.memory.resize(static_cast<std::size_t>(last) * sizeof(Scalar) / 8 + 1);
  for (auto& word : saved.memory) word = static_cast<std::int64_t>(draw.word());
  x.data = reinterpret_cast<Scalar*>(saved.memory.data());
  if (const std::size_t axis = order[0]; x.shape[axis] > 0 && draw.chance(30)) {
    x.data += (x.shape[axis] - 1) * x.strides[axis];
    x.strides[axis] = -x.strides[axis];
  }
  saved.tensor.emplace_back(name, x);
  saved.check = [name, x](const SafeTensors& file) {
    const auto y = file.view<Scalar, Rank>(name);
    if (y.shape != x.shape) found("another shape of ", name);
    std::array<Index, rank> at{};
    for (Index n = 0; n < x.size(); ++n) {
      Index rest = n;
      for (std::size_t axis = rank; axis-- > 0; rest /= x.shape[axis]) {
        at[axis] = rest % x.shape[axis];
      }
      const auto place = [&](const auto& v) {
        Index offset = 0;
        for (std::size_t axis = 0; axis < rank; ++axis) offset += at[axis] * v.strides[axis];
        return v.data + offset;
      };
      if (std::memcmp(place(x), place(y), sizeof(Scalar)) != 0) found("element ", n, " of ", name);
    }
  };
}

template <class Scalar>
void fill(Draw& draw, const std::string& name, Saved& saved) {
  switch (draw.integer(1, 4)) {
    case 1:
      return fill<Scalar, 1>(draw, name, saved);
    case 2:
      return fill<Scalar, 2>(draw, name, saved);
    case 3:
      return fill<Scalar, 3>(draw, name, saved);
    default:
      return fill<Scalar, 4>(draw, name, saved);
  }
}

/// The file with one byte changed, cut, longer, or with another length of its header.
std::string edited(Draw& draw, std::string bytes) {
  const auto header = static_cast<std::size_t>(bytes.find('}') + 1);
  const auto anywhere = [&](std::size_t end) {
    return static_cast<std::size_t>(draw.word()) % std::max<std::size_t>(end, 1);
  };
  switch (draw.integer(0, 5)) {
    case 0:
      bytes[anywhere(bytes.size())] = static_cast<char>(draw.integer(0, 255));
      break;
    case 1:
    case 2:
      bytes[anywhere(header)] = static_cast<char>(draw.integer(0, 255));
      break;
    case 3:
      bytes.resize(anywhere(bytes.size()));
      break;
    case 4:
      bytes.append(static_cast<std::size_t>(draw.integer(1, 20)), '\0');
      break;
    default:
      const auto length = draw.one_of<std::uint64_t>(
          {0, 1, bytes.size() - 8, bytes.size() - 7, bytes.size(), 1ULL << 31, 1ULL << 32,
           100000001, (1ULL << 63) - 8, (1ULL << 63) - 1, 1ULL << 63, ~0ULL - 7, ~0ULL});
      for (std::size_t n = 0; n < 8; ++n) bytes[n] = static_cast<char>(length >> 8 * n & 0xFF);
  }
  return bytes;
}

/// Whatever opens can be read to its last byte.
void read_everything(const SafeTensors& file, std::size_t size) {
  std::size_t bytes = 0, sum = 0;
  for (const auto& name : file.names()) {
    Index elements = 1;
    for (const Index extent : file.shape(name)) elements *= extent;
    if (elements < 0) found("a negative shape of ", name);
    for (const char c : file.bytes(name)) {
      ++bytes;
      sum += static_cast<unsigned char>(c);
    }
  }
  if (bytes + 8 > size) found("more bytes than the file has, of sum ", sum);
}

void save_tensors(Draw& draw) {
  std::vector<Saved> all(static_cast<std::size_t>(draw.integer(0, 5)));
  std::vector<NamedTensor> tensors;
  for (std::size_t n = 0; n < all.size(); ++n) {
    const std::string name = draw_name(draw, static_cast<Index>(n));
    switch (draw.integer(0, 3)) {
      case 0:
        fill<float>(draw, name, all[n]);
        break;
      case 1:
        fill<double>(draw, name, all[n]);
        break;
      case 2:
        fill<Eigen::bfloat16>(draw, name, all[n]);
        break;
      default:
        fill<std::int8_t>(draw, name, all[n]);
    }
    tensors.push_back(all[n].tensor[0]);
  }
  std::map<std::string, std::string> texts;
  if (draw.chance(50)) texts[draw_name(draw, 0)] = draw_name(draw, 1);
  const auto path = path_of("tensors");
  save(tensors, path, texts);
  {
    const SafeTensors file(path);
    if (file.names().size() != all.size()) found("tensors are missing");
    for (const auto& one : all) one.check(file);
  }
  const std::string bytes = edited(draw, read_all(path));
  write_all(path, bytes);
  try {
    read_everything(SafeTensors(path), bytes.size());
  } catch (const std::invalid_argument&) {
  }
}

bool same(const Mlp<float>& a, const Mlp<float>& b) {
  bool equal = true;
  for_each_parameter(a, b, [&](const auto& x, const auto& y) {
    const auto size = static_cast<std::size_t>(x.size()) * sizeof(float);
    equal = equal && x.rows() == y.rows() && x.cols() == y.cols() &&
            (size == 0 || std::memcmp(x.data(), y.data(), size) == 0);
  });
  return equal;
}

void save_module(Draw& draw) {
  const MlpConfig config{.dim = draw.integer(1, 5),
                         .hidden_dim = draw.integer(1, 5),
                         .gated = draw.chance(50),
                         .bias = draw.chance(50)};
  const Mlp<float> saved(config, 1), other(config, 2);
  const auto path = path_of("module");
  save(saved, path);
  Mlp<float> loaded = other;
  load(loaded, SafeTensors(path));
  if (!same(loaded, saved)) found("a module is loaded with other bits");
  const std::string bytes = edited(draw, read_all(path));
  write_all(path, bytes);
  loaded = other;
  try {
    load(loaded, SafeTensors(path));
  } catch (const std::invalid_argument&) {
    if (!same(loaded, other)) found("a file that is refused has been read into the module");
  }
}

}  // namespace

/// What is saved is loaded with the same bits, and a file that has been edited since is refused
/// with a message or can be read to its end.
void save_files(Draw& draw) {
  about().clear();
  draw.chance(60) ? save_tensors(draw) : save_module(draw);
}

}  // namespace heed::fuzz
