#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace heed::test {

/// A file of tests/data.
inline std::string data_path(const std::string& name) {
  return (std::filesystem::path(__FILE__).parent_path() / "data" / name).string();
}

/// A file of the pretrained models that examples/models.sh fetches; HEED_MODELS names another place
/// than build/examples/models.
inline std::string model_path(const std::string& name) {
  const char* const given = std::getenv("HEED_MODELS");
  const auto root = std::filesystem::path(__FILE__).parent_path().parent_path();
  return ((given ? std::filesystem::path(given) : root / "build/examples/models") / name).string();
}

}  // namespace heed::test

/// Ends a test that needs a file which is not there.
#define HEED_NEEDS(path) \
  if (!std::filesystem::exists(path)) GTEST_SKIP() << (path) << " is not there"
