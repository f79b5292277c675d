#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#if __has_include(<sys/mman.h>) && __has_include(<unistd.h>)
#define HEED_HAS_MMAP 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#else
#include <fstream>
#include <memory>
#endif

#include "heed/core/error.hpp"

namespace heed::detail {

/// The bytes of a file, read-only: mapped into memory where the system can, so that only what is
/// looked at is read, and read as a whole elsewhere. They begin at an address that suits every
/// number type. Whoever shortens the file meanwhile takes the pages away from under the reader, so
/// files are replaced, not rewritten (replace_file).
class MappedFile {
 public:
  /// std::runtime_error, with "heed::<function>: ", where there is no file or it cannot be read.
  MappedFile(const char* function, const std::filesystem::path& path) {
    const auto refuse = [&](const std::string& reason) {
      fail<std::runtime_error>(function, "cannot read ", path.string(), ": ", reason);
    };
#ifdef HEED_HAS_MMAP
    const auto last_error = [] { return std::generic_category().message(errno); };
    struct Descriptor {
      int number;
      ~Descriptor() {
        if (number >= 0) ::close(number);
      }
      // Opening a pipe would wait for its writer.
    } file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (file.number < 0) refuse(last_error());
    struct stat status{};
    if (::fstat(file.number, &status) != 0) refuse(last_error());
    if (!S_ISREG(status.st_mode)) refuse("it is not a file");
    if (static_cast<std::uintmax_t>(status.st_size) > SIZE_MAX) refuse("it is too large");
    size_ = static_cast<std::size_t>(status.st_size);
    if (size_ == 0) return;
    void* const address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.number, 0);
    if (address == MAP_FAILED) refuse(last_error());
    data_ = static_cast<const char*>(address);
#else
    if (!std::filesystem::is_regular_file(path)) refuse("it is not a file");
    std::ifstream file(path, std::ios::binary);
    size_ = static_cast<std::size_t>(std::filesystem::file_size(path));
    words_ = std::make_unique<std::max_align_t[]>(size_ / sizeof(std::max_align_t) + 1);
    data_ = reinterpret_cast<const char*>(words_.get());
    file.read(reinterpret_cast<char*>(words_.get()), static_cast<std::streamsize>(size_));
    if (!file) refuse("reading it failed");
#endif
  }

  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() {
#ifdef HEED_HAS_MMAP
    if (size_ > 0) ::munmap(const_cast<char*>(data_), size_);
#endif
  }

  std::string_view bytes() const { return {data_, size_}; }

 private:
  const char* data_ = nullptr;
  std::size_t size_ = 0;
#ifndef HEED_HAS_MMAP
  std::unique_ptr<std::max_align_t[]> words_;
#endif
};

}  // namespace heed::detail
