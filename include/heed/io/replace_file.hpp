#pragma once

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <system_error>

#include "heed/core/error.hpp"

namespace heed::detail {

/// Writes a file by write(std::ostream&): beside its place first, and moved there when it is whole,
/// so that a failure leaves what was there before. Throws std::runtime_error with
/// "heed::<function>: " before the reason, or whatever write throws.
template <class Write>
void replace_file(const char* function, const std::filesystem::path& path, const Write& write) {
  const auto refuse = [&](const std::string& reason) {
    fail<std::runtime_error>(function, reason);
  };
  std::filesystem::path unfinished = path;
  unfinished += ".part";
  std::error_code error;
  const auto there = std::filesystem::status(path, error);
  if (std::filesystem::exists(there) && !std::filesystem::is_regular_file(there)) {
    refuse(path.string() + " is not a file");
  }
  struct Removal {
    const std::filesystem::path& path;
    bool wanted = true;
    ~Removal() {
      std::error_code ignored;
      if (wanted) std::filesystem::remove(path, ignored);
    }
  } removal{unfinished};
  {
    std::ofstream file(unfinished, std::ios::binary | std::ios::trunc);
    if (!file) {
      removal.wanted = false;
      refuse("cannot write " + path.string());
    }
    write(file);
    file.close();
    if (!file) refuse("cannot write " + path.string());
  }
  std::filesystem::rename(unfinished, path, error);
  if (error) refuse("cannot write " + path.string() + ": " + error.message());
  removal.wanted = false;
}

}  // namespace heed::detail
