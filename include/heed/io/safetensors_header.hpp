#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/core/error.hpp"

namespace heed::detail {

/// The number types of the format, and their bytes. Those of one byte that C++ has no type for can
/// stand in a file, and be listed, but not be viewed.
struct StoredType {
  std::string_view name;
  std::size_t size;
};
inline constexpr std::array<StoredType, 17> kStoredTypes{{{"F32", 4},
                                                          {"F64", 8},
                                                          {"F16", 2},
                                                          {"BF16", 2},
                                                          {"I8", 1},
                                                          {"I16", 2},
                                                          {"I32", 4},
                                                          {"I64", 8},
                                                          {"U8", 1},
                                                          {"U16", 2},
                                                          {"U32", 4},
                                                          {"U64", 8},
                                                          {"BOOL", 1},
                                                          {"F8_E4M3", 1},
                                                          {"F8_E5M2", 1},
                                                          {"F8_E8M0", 1},
                                                          {"C64", 8}}};

/// What the format calls T.
template <class T>
constexpr std::string_view stored_name() {
  if constexpr (std::is_same_v<T, bool>) {
    return "BOOL";
  } else if constexpr (std::is_same_v<T, Eigen::half>) {
    return "F16";
  } else if constexpr (std::is_same_v<T, Eigen::bfloat16>) {
    return "BF16";
  } else if constexpr (std::is_same_v<T, float> || std::is_same_v<T, double>) {
    return sizeof(T) == 4 ? "F32" : "F64";
  } else {
    static_assert(std::is_integral_v<T> && sizeof(T) <= 8,
                  "heed: safetensors files hold bool, integers, half, bfloat16, float and double");
    constexpr std::array<std::string_view, 8> names{"I8", "I16", "I32", "I64",
                                                    "U8", "U16", "U32", "U64"};
    constexpr std::size_t log_size = sizeof(T) == 1   ? 0
                                     : sizeof(T) == 2 ? 1
                                     : sizeof(T) == 4 ? 2
                                                      : 3;
    return names[log_size + (std::is_unsigned_v<T> ? 4 : 0)];
  }
}

/// A name for a message: no longer than a line, and without what would break one.
inline std::string quoted_name(std::string_view name) {
  constexpr std::size_t longest = 100;
  std::string result = "'";
  for (const char c : name.substr(0, longest)) {
    result += static_cast<unsigned char>(c) < 0x20 || c == 0x7F ? '?' : c;
  }
  return result + (name.size() > longest ? "...'" : "'");
}

inline std::string shape_text(const std::vector<Index>& shape) {
  constexpr std::size_t longest = 8;
  std::string result = "(";
  for (std::size_t axis = 0; axis < std::min(shape.size(), longest); ++axis) {
    result += (axis ? ", " : "") + std::to_string(shape[axis]);
  }
  return result + (shape.size() > longest ? ", ...)" : ")");
}

/// One tensor of a file: row-major elements in bytes [begin, end) of the data.
struct StoredTensor {
  StoredType type{};
  std::vector<Index> shape{};
  std::size_t begin = 0, end = 0;
};

struct SafeTensorsHeader {
  std::map<std::string, StoredTensor, std::less<>> tensors{};
  std::map<std::string, std::string, std::less<>> metadata{};
  std::size_t data = 0;  ///< where in the file the data begin
};

/// Reads the header's JSON event by event: what is nested deeper than the format nests is refused
/// when it opens, and a number is seen before anything is made of it.
class SafeTensorsReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  SafeTensorsReader(SafeTensorsHeader& header, std::string file)
      : header_(header), file_(std::move(file)) {}

  bool start_object(std::size_t) override {
    switch (at_) {
      case At::beginning:
        at_ = At::file;
        return true;
      case At::tensor_or_metadata:
        at_ = is_metadata() ? At::metadata : At::tensor;
        return true;
      default:
        refuse("an object where none belongs");
    }
  }
  bool end_object() override {
    if (at_ == At::tensor) {
      if (type_.empty() || !shape_ || !offsets_) {
        refuse(type_.empty() ? "no dtype" : !shape_ ? "no shape" : "no data_offsets");
      }
      add_tensor();
      type_.clear();
      shape_.reset();
      offsets_.reset();
    }
    at_ = at_ == At::file ? At::end : At::file;
    return true;
  }
  bool key(string_t& key) override {
    if (at_ == At::file) {
      name_ = key;
      if (header_.tensors.contains(name_) || (is_metadata() && has_metadata_)) {
        refuse("two entries of this name");
      }
      has_metadata_ |= is_metadata();
      at_ = At::tensor_or_metadata;
    } else if (at_ == At::metadata) {
      key_ = key;
      if (header_.metadata.contains(key_)) refuse("two values of ", quoted_name(key_));
    } else {
      key_ = key;
      const bool again = (key_ == "dtype" && !type_.empty()) || (key_ == "shape" && shape_) ||
                         (key_ == "data_offsets" && offsets_);
      if (again) refuse("two values of ", quoted_name(key_));
      at_ = key_ == "dtype"   ? At::type
            : key_ == "shape" ? At::shape
            : key_ == "data_offsets"
                ? At::offsets
                : (refuse("the key ", quoted_name(key_), " is unknown"), At::end);
    }
    return true;
  }
  bool start_array(std::size_t) override {
    if (at_ == At::shape && !shape_) {
      shape_.emplace();
      in_array_ = true;
    } else if (at_ == At::offsets && !offsets_) {
      offsets_.emplace();
      in_array_ = true;
    } else {
      refuse("a list where none belongs");
    }
    return true;
  }
  bool end_array() override {
    if (at_ == At::offsets && offsets_->size() != 2) {
      refuse(static_cast<Index>(offsets_->size()), " data_offsets; there are two, begin and end");
    }
    in_array_ = false;
    at_ = At::tensor;
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (!in_array_) refuse("a number where none belongs");
    if (value > static_cast<std::uint64_t>(std::numeric_limits<Index>::max())) {
      refuse(quoted_name(key_), " has ", std::to_string(value), ", more than any file holds");
    }
    (at_ == At::shape ? *shape_ : *offsets_).push_back(static_cast<Index>(value));
    return true;
  }
  bool string(string_t& value) override {
    if (at_ == At::metadata) {
      header_.metadata.emplace(key_, value);
    } else if (at_ == At::type) {
      if (value.empty()) refuse("the dtype is empty");
      type_ = value;
      at_ = At::tensor;
    } else {
      refuse("the text ", quoted_name(value), " where none belongs");
    }
    return true;
  }
  bool number_integer(number_integer_t value) override {
    refuse(quoted_name(key_), " has a negative number, ", static_cast<Index>(value));
  }
  bool number_float(number_float_t, const string_t& digits) override {
    refuse(quoted_name(key_), " has ", quoted_name(digits), ", which is no size");
  }
  bool boolean(bool) override { refuse("true or false where neither belongs"); }
  bool null() override { refuse("null where it does not belong"); }
  bool binary(binary_t&) override { refuse("binary data where none belong"); }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    fail("SafeTensors", file_, ": the header is no JSON from byte ", std::to_string(8 + position),
         " on: ", std::string(error.what()));
  }

 private:
  enum class At {
    beginning,
    file,
    tensor_or_metadata,
    metadata,
    tensor,
    type,
    shape,
    offsets,
    end
  };

  bool is_metadata() const { return name_ == "__metadata__"; }

  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    fail("SafeTensors", file_, ": ", quoted_name(name_), ": ", parts...);
  }

  void add_tensor() {
    const auto* const type = std::find_if(kStoredTypes.begin(), kStoredTypes.end(),
                                          [&](const StoredType& t) { return t.name == type_; });
    if (type == kStoredTypes.end()) refuse("the dtype ", quoted_name(type_), " is unknown");
    // An axis of 0 does not excuse the others, for they are multiplied in any order.
    std::size_t bytes = type->size;
    bool empty = false;
    for (const Index extent : *shape_) {
      empty |= extent == 0;
      const auto factor = static_cast<std::size_t>(std::max<Index>(extent, 1));
      if (factor > static_cast<std::size_t>(std::numeric_limits<Index>::max()) / bytes) {
        refuse("the shape ", shape_text(*shape_), " has too many elements");
      }
      bytes *= factor;
    }
    if (empty) bytes = 0;
    const Index begin = offsets_->front(), end = offsets_->back();
    if (end < begin) refuse("it ends at ", end, ", before it begins, at ", begin);
    if (static_cast<std::size_t>(end - begin) != bytes) {
      refuse("the data_offsets, ", begin, " and ", end, ", leave ", end - begin, " bytes for ",
             std::to_string(bytes), ", the shape ", shape_text(*shape_), " of ",
             std::string(type->name));
    }
    header_.tensors.emplace(name_,
                            StoredTensor{*type, std::move(*shape_), static_cast<std::size_t>(begin),
                                         static_cast<std::size_t>(end)});
  }

  SafeTensorsHeader& header_;
  std::string file_, name_, key_, type_;
  std::optional<std::vector<Index>> shape_, offsets_;
  At at_ = At::beginning;
  bool in_array_ = false, has_metadata_ = false;
};

/// The checked header of a file of these bytes: every tensor lies within, none overlap, and no byte
/// belongs to none. std::invalid_argument with the name of the file, and of the tensor.
inline SafeTensorsHeader read_safetensors_header(std::string_view bytes, const std::string& file) {
  constexpr std::size_t prefix = 8, longest = 100'000'000;
  const auto refuse = [&](const auto&... parts) { fail("SafeTensors", file, ": ", parts...); };
  if (bytes.size() < prefix + 2) {
    refuse(std::to_string(bytes.size()), " bytes are no safetensors file");
  }
  std::uint64_t length = 0;
  for (std::size_t byte = 0; byte < prefix; ++byte) {
    length |= std::uint64_t{static_cast<unsigned char>(bytes[byte])} << (8 * byte);
  }
  if (length > bytes.size() - prefix) {
    refuse("the header has ", std::to_string(length), " bytes, the file ",
           std::to_string(bytes.size()), "; it is cut off, or no safetensors file");
  }
  if (length > longest) {
    refuse("the header has ", std::to_string(length), " bytes, more than the ",
           std::to_string(longest), " that the format allows");
  }
  const std::string_view text = bytes.substr(prefix, static_cast<std::size_t>(length));
  if (text.empty() || text.front() != '{') refuse("the header does not begin with '{'");

  // Where the parser sees the end of its input.
  if (text.find('\0') != text.npos) refuse("the header has a byte of 0; it is no JSON");

  SafeTensorsHeader header;
  SafeTensorsReader reader(header, file);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &reader)) {
    refuse("the header cannot be read");
  }
  header.data = prefix + text.size();

  std::vector<const std::pair<const std::string, StoredTensor>*> order;
  for (const auto& tensor : header.tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  const std::size_t size = bytes.size() - header.data;
  std::size_t end = 0;
  for (const auto* tensor : order) {
    const auto& [name, place] = *tensor;
    if (place.end > size) {
      refuse(quoted_name(name), " ends at byte ", std::to_string(place.end),
             " of the data, which end at ", std::to_string(size), "; the file is cut off");
    }
    if (place.begin != end) {
      refuse(quoted_name(name), " begins at byte ", std::to_string(place.begin), " of the data, ",
             place.begin < end ? "within another tensor, which ends at "
                               : "behind a hole, which begins at ",
             std::to_string(end));
    }
    end = place.end;
  }
  if (end != size) {
    refuse("the tensors end at byte ", std::to_string(end), " of the data, and the file at ",
           std::to_string(size));
  }
  return header;
}

}  // namespace heed::detail
