#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <heed/tensor.hpp>

/// Pixels as a PNG image (Portable Network Graphics, ISO/IEC 15948), not compressed.
namespace png {

inline void append_number(std::string& bytes, std::uint32_t n) {
  for (const int shift : {24, 16, 8, 0}) bytes += static_cast<char>(n >> shift & 0xFF);
}

inline void append_chunk(std::string& file, const std::string& type, const std::string& data) {
  append_number(file, static_cast<std::uint32_t>(data.size()));
  std::uint32_t crc = ~0U;
  for (const char byte : type + data) {
    crc ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0xEDB88320U : 0U);
  }
  file += type + data;
  append_number(file, ~crc);
}

/// The image of (height, width, channels) numbers from 0 to 255: grey, RGB or RGB with opacity.
inline std::string encode(const heed::View<const std::uint8_t, 3>& pixels) {
  const auto [height, width, channels] = pixels.shape;
  std::string rows;
  for (heed::Index y = 0; y < height; ++y) {
    rows += '\0';  // no filter
    for (heed::Index x = 0; x < width; ++x) {
      for (heed::Index c = 0; c < channels; ++c) rows += static_cast<char>(pixels(y, x, c));
    }
  }
  std::string stream = "\x78\x01";  // zlib; the blocks are stored as they are
  std::uint32_t a = 1, b = 0;
  for (const char byte : rows) {
    a = (a + static_cast<unsigned char>(byte)) % 65521;
    b = (b + a) % 65521;
  }
  constexpr std::size_t longest = 65535;
  for (std::size_t at = 0; at < rows.size(); at += longest) {
    const std::string block = rows.substr(at, longest);
    stream += at + longest < rows.size() ? '\0' : '\1';
    for (const std::size_t length : {block.size(), ~block.size()}) {
      stream += static_cast<char>(length & 0xFF);
      stream += static_cast<char>(length >> 8 & 0xFF);
    }
    stream += block;
  }
  append_number(stream, b << 16 | a);

  std::string header;
  append_number(header, static_cast<std::uint32_t>(width));
  append_number(header, static_cast<std::uint32_t>(height));
  header += '\x08';  // bits
  header += channels == 1 ? '\0' : channels == 3 ? '\2' : '\6';
  header.append(3, '\0');
  std::string file = "\x89PNG\r\n\x1A\n";
  append_chunk(file, "IHDR", header);
  append_chunk(file, "IDAT", stream);
  append_chunk(file, "IEND", "");
  return file;
}

/// A PNG image as the address of an image in SVG.
inline std::string data_uri(const std::string& file) {
  constexpr std::string_view digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text = "data:image/png;base64,";
  for (std::size_t at = 0; at < file.size(); at += 3) {
    std::uint32_t three = 0;
    for (std::size_t n = 0; n < 3; ++n) {
      three = three << 8 | (at + n < file.size() ? static_cast<unsigned char>(file[at + n]) : 0U);
    }
    for (std::size_t n = 0; n < 4; ++n) {
      text += at + n > file.size() ? '=' : digits[three >> (18 - 6 * n) & 63];
    }
  }
  return text;
}

}  // namespace png
