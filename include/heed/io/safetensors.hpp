#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/core/error.hpp"
#include "heed/core/view.hpp"
#include "heed/io/mapped_file.hpp"
#include "heed/io/replace_file.hpp"
#include "heed/io/safetensors_header.hpp"
#include "heed/module/parameters.hpp"

namespace heed {

/// A safetensors file (github.com/huggingface/safetensors): named tensors, memory-mapped, so that
/// opening one reads its header only. Everything the header says is checked when the file is
/// opened: whatever it holds, the file either opens or is refused with a message. Copies share the
/// mapping. A View of a tensor refers into the file and must not outlive its SafeTensors. The file
/// may be replaced meanwhile (as save does), but not shortened in place.
class SafeTensors {
  static_assert(std::endian::native == std::endian::little,
                "heed: safetensors files are little-endian, and read where they lie");

 public:
  /// std::runtime_error where the file cannot be read; std::invalid_argument, with its name, where
  /// it is not as the format prescribes.
  explicit SafeTensors(const std::filesystem::path& path)
      : path_(path.string()),
        file_(std::make_shared<const detail::MappedFile>("SafeTensors", path)),
        header_(detail::read_safetensors_header(file_->bytes(), path_)) {}

  /// In alphabetical order.
  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& tensor : header_.tensors) result.push_back(tensor.first);
    return result;
  }
  bool contains(std::string_view name) const { return header_.tensors.contains(name); }
  /// Empty for a single number. std::invalid_argument, here and below, where nothing has the name.
  std::vector<Index> shape(std::string_view name) const { return find(name).shape; }
  /// As the format spells it: F32, BF16, I64, ...
  std::string type(std::string_view name) const { return std::string(find(name).type.name); }
  /// The texts that the file has about itself.
  const std::map<std::string, std::string, std::less<>>& metadata() const& {
    return header_.metadata;
  }

  /// The tensor as it lies in the file, without a copy. Scalar is bool, an integer type,
  /// Eigen::half, Eigen::bfloat16, float or double. std::invalid_argument where type or rank
  /// differ, where the elements lie at an address that does not suit their type, and where a bool
  /// is neither 0 nor 1.
  template <class Scalar, int Rank>
  View<const Scalar, Rank> view(std::string_view name) const& {
    const detail::StoredTensor& tensor = find(name);
    if (tensor.type.name != detail::stored_name<Scalar>()) {
      refuse("SafeTensors::view", name, "it is of type ", std::string(tensor.type.name), ", not ",
             std::string(detail::stored_name<Scalar>()));
    }
    if (tensor.shape.size() != static_cast<std::size_t>(Rank)) {
      refuse("SafeTensors::view", name, "its shape ", detail::shape_text(tensor.shape),
             " is not of rank ", Index{Rank});
    }
    const char* const data = bytes(name).data();
    if (tensor.begin < tensor.end &&
        reinterpret_cast<std::uintptr_t>(data) % alignof(Scalar) != 0) {
      refuse("SafeTensors::view", name, "it begins at byte ",
             static_cast<Index>(header_.data + tensor.begin), " of the file, where no ",
             std::string(tensor.type.name), " can be read without a copy");
    }
    if constexpr (std::is_same_v<Scalar, bool>) {
      const std::string_view all = bytes(name);
      if (!std::all_of(all.begin(), all.end(), [](char c) { return c == 0 || c == 1; })) {
        refuse("SafeTensors::view", name, "it has bytes that are neither 0 nor 1");
      }
    }
    View<const Scalar, Rank> result{reinterpret_cast<const Scalar*>(data), {}, {}};
    Index stride = 1;
    for (std::size_t axis = Rank; axis-- > 0;) {
      result.shape[axis] = tensor.shape[axis];
      result.strides[axis] = stride;
      stride *= tensor.shape[axis];
    }
    return result;
  }

  /// The elements of a tensor, row-major.
  std::string_view bytes(std::string_view name) const& {
    const detail::StoredTensor& tensor = find(name);
    return file_->bytes().substr(header_.data + tensor.begin, tensor.end - tensor.begin);
  }

  // What refers into the file would outlive it.
  template <class Scalar, int Rank>
  View<const Scalar, Rank> view(std::string_view) const&& = delete;
  std::string_view bytes(std::string_view) const&& = delete;
  const std::map<std::string, std::string, std::less<>>& metadata() const&& = delete;

  /// Throws std::invalid_argument with the names of function, file and tensor before the parts.
  template <class... Parts>
  [[noreturn]] void refuse(const char* function, std::string_view name,
                           const Parts&... parts) const {
    detail::fail(function, path_, ": ", detail::quoted_name(name), ": ", parts...);
  }

 private:
  const detail::StoredTensor& find(std::string_view name) const {
    const auto at = header_.tensors.find(name);
    if (at != header_.tensors.end()) return at->second;
    const auto next = header_.tensors.lower_bound(name);
    refuse("SafeTensors", name, "no tensor of the ", static_cast<Index>(header_.tensors.size()),
           " in the file has this name",
           next == header_.tensors.end() ? "" : "; the next in the alphabet is ",
           next == header_.tensors.end() ? "" : detail::quoted_name(next->first));
  }

  std::string path_;
  std::shared_ptr<const detail::MappedFile> file_;
  detail::SafeTensorsHeader header_;
};

/// A tensor to be saved: it refers to the elements of x, an Eigen tensor, matrix, vector, map or
/// block, or a View of any strides. A vector has rank 1.
struct NamedTensor {
  std::string name;
  std::string_view type;
  std::size_t size;  ///< bytes of an element
  std::vector<Index> shape, strides;
  const void* data;

  template <class T>
  NamedTensor(std::string given, T&& x) : name(std::move(given)) {
    static_assert(!detail::OwningTemporary<T>,
                  "heed: a tensor to be saved is referred to; give the temporary a name");
    const auto elements = detail::result_view(x);
    using Scalar = std::remove_const_t<std::remove_pointer_t<decltype(elements.data)>>;
    type = detail::stored_name<Scalar>();
    size = sizeof(Scalar);
    shape.assign(elements.shape.begin(), elements.shape.end());
    strides.assign(elements.strides.begin(), elements.strides.end());
    data = elements.data;
  }
};

namespace detail {

/// Row-major elements of a tensor of any strides.
inline void write_elements(std::ostream& out, const NamedTensor& tensor) {
  const auto* const data = static_cast<const char*>(tensor.data);
  const auto element = static_cast<Index>(tensor.size);
  Index count = 1, packed = 1;
  bool contiguous = true;
  for (std::size_t axis = tensor.shape.size(); axis-- > 0;) {
    contiguous &= tensor.shape[axis] == 1 || tensor.strides[axis] == packed;
    packed *= tensor.shape[axis];
    count *= tensor.shape[axis];
  }
  if (contiguous) {
    out.write(data, count * element);
    return;
  }
  std::vector<char> buffer;
  for (Index n = 0; n < count; ++n) {
    Index at = 0, rest = n;
    for (std::size_t axis = tensor.shape.size(); axis-- > 0;) {
      at += rest % tensor.shape[axis] * tensor.strides[axis];
      rest /= tensor.shape[axis];
    }
    buffer.insert(buffer.end(), data + at * element, data + (at + 1) * element);
    if (buffer.size() >= 65536 || n + 1 == count) {
      out.write(buffer.data(), static_cast<std::streamsize>(buffer.size()));
      buffer.clear();
    }
  }
}

/// The types that load converts between.
inline bool is_real(std::string_view type) {
  return type == "F32" || type == "F64" || type == "F16" || type == "BF16";
}

/// Between two real types, one of which may be narrow: by way of float then.
template <class To, class From>
To converted(const From& x) {
  constexpr auto narrow = []<class T>(const T*) {
    return std::is_same_v<T, Eigen::half> || std::is_same_v<T, Eigen::bfloat16>;
  };
  constexpr const From* from = nullptr;
  constexpr const To* to = nullptr;
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else if constexpr (narrow(from) || narrow(to)) {
    return static_cast<To>(static_cast<float>(x));
  } else {
    return static_cast<To>(x);
  }
}

/// Row-major elements at any address into a tensor of any strides.
template <class From, class To>
void read_elements(const View<To, 4>& to, const char* from) {
  if (to.size() == 0) return;
  for_each_row(to.shape, [&](Index b, Index h, Index i) {
    const Index count = to.shape[3];
    if (std::is_same_v<From, To> && to.strides[3] == 1) {
      std::memcpy(static_cast<void*>(&to(b, h, i, 0)), from,
                  static_cast<std::size_t>(count) * sizeof(From));
      from += static_cast<std::size_t>(count) * sizeof(From);
      return;
    }
    for (Index c = 0; c < count; ++c, from += sizeof(From)) {
      From element;
      std::memcpy(static_cast<void*>(&element), from, sizeof(From));
      to(b, h, i, c) = converted<To>(element);
    }
  });
}

/// A parameter, and what of the file goes into it: rows of a tensor, from `first` on.
class Assignment {
 public:
  /// std::invalid_argument where the tensor is not there, not real, or has not `total` rows of the
  /// parameter's. `total` -1: as many as the parameter.
  template <class Value>
  Assignment(const char* function, const SafeTensors& file, std::string_view parameter,
             Value& value, const std::string& name, Index first = 0, Index total = -1) {
    const auto target = result_view(value);
    using To = std::remove_pointer_t<decltype(target.data)>;
    constexpr int rank = decltype(target)::Rank;
    std::vector<Index> expected(target.shape.begin(), target.shape.end());
    if (total >= 0) expected[0] = total;
    const std::vector<Index> shape = file.shape(name);
    const std::string type = file.type(name);
    if (!is_real(type)) {
      file.refuse(function, name, "it is of type ", type, ", which the parameter ",
                  quoted_name(parameter), " of real numbers cannot be loaded from");
    }
    if (shape != expected) {
      file.refuse(function, name, "its shape ", shape_text(shape), " does not fit the parameter ",
                  quoted_name(parameter), ", of ", shape_text(expected));
    }
    const std::string_view bytes = file.bytes(name);
    const Index row = shape[0] == 0 ? 0 : static_cast<Index>(bytes.size()) / shape[0];
    write_ = [to = expand < 4, rank == 1 ? 1 : 2 > (target), from = bytes.data() + first * row,
              type] {
      if (type == "F32") return read_elements<float, To>(to, from);
      if (type == "F64") return read_elements<double, To>(to, from);
      if (type == "F16") return read_elements<Eigen::half, To>(to, from);
      read_elements<Eigen::bfloat16, To>(to, from);
    };
  }

  void write() const { write_(); }

 private:
  std::function<void()> write_;
};

}  // namespace detail

/// Writes tensors into a safetensors file, larger elements first, so that each lies at an address
/// that suits its type, and texts about it. The file is replaced when the new one is whole: a
/// failure leaves the old one as it was, and whoever has it open keeps it. std::invalid_argument
/// where two tensors have one name, or a name is not UTF-8 or `__metadata__`, std::runtime_error
/// where the file cannot be written.
inline void save(const std::vector<NamedTensor>& tensors, const std::filesystem::path& path,
                 const std::map<std::string, std::string>& metadata = {}) {
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return a->size != b->size ? a->size > b->size : a < b;
  });
  nlohmann::json header = nlohmann::json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  Index end = 0;
  for (const NamedTensor* tensor : order) {
    const std::string name = detail::quoted_name(tensor->name);
    if (tensor->name == "__metadata__") {
      detail::fail("save", "the name ", name, " is the format's own");
    }
    if (header.contains(tensor->name)) detail::fail("save", "two tensors are called ", name);
    const Index begin = end;
    Index count = 1;
    for (const Index extent : tensor->shape) count *= extent;
    end += count * static_cast<Index>(tensor->size);
    header[tensor->name] = {{"dtype", std::string(tensor->type)},
                            {"shape", tensor->shape},
                            {"data_offsets", {begin, end}}};
  }
  std::string text;
#if defined(__cpp_exceptions)
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception& error) {
    detail::fail("save", "a name or text for ", path.string(),
                 " is not UTF-8: ", std::string(error.what()));
  }
#else
  text = header.dump();
#endif
  constexpr std::size_t prefix = 8, line = 64;  // the data begin with a line of the cache
  text.append((line - (prefix + text.size()) % line) % line, ' ');
  detail::replace_file("save", path, [&](std::ostream& out) {
    for (std::size_t byte = 0; byte < prefix; ++byte) {
      out.put(static_cast<char>(text.size() >> (8 * byte) & 0xFF));
    }
    out << text;
    for (const NamedTensor* tensor : order) detail::write_elements(out, *tensor);
  });
}

/// Writes the parameters of a module under the names that for_each_parameter gives them, each in
/// its own number type, so that load brings back the same bits; see save above.
template <class Module>
void save(const Module& module, const std::filesystem::path& path,
          const std::map<std::string, std::string>& metadata = {}) {
  std::vector<NamedTensor> tensors;
  for_each_parameter(module, [&](std::string_view name, const auto& value) {
    tensors.emplace_back(std::string(name), value);
  });
  if (tensors.empty()) detail::fail("save", "the module has no parameters");
  save(tensors, path, metadata);
}

/// Reads the parameters of a module of the right sizes out of a file: for each, the tensor called
/// rename(name of the parameter), of the same shape. The tensor may be of another real type (half,
/// bfloat16, float, double), and is rounded to the parameter's. Tensors that no parameter asks for
/// are left alone. std::invalid_argument, with the name, where a tensor is missing or does not fit;
/// the module is then as it was before.
template <class Module, class Rename = std::identity>
void load(Module& module, const SafeTensors& file, const Rename& rename = {}) {
  std::vector<detail::Assignment> assignments;
  for_each_parameter(module, [&](std::string_view name, auto& value) {
    const std::string ours(name);
    const std::string theirs(rename(ours));
    assignments.emplace_back("load", file, ours, value, theirs);
  });
  if (assignments.empty()) {
    detail::fail("load", "the module has no parameters; it needs its sizes before it is loaded");
  }
  for (const auto& assignment : assignments) assignment.write();
}

}  // namespace heed
