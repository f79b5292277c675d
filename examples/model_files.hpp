#pragma once

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <initializer_list>
#include <string>

namespace pretrained {

/// A file that examples/models.sh made: in build/examples/models, or where HEED_MODELS says.
inline std::string path(const std::string& file) {
  const char* const given = std::getenv("HEED_MODELS");
  const auto examples = std::filesystem::path(__FILE__).parent_path();
  const auto models = given ? std::filesystem::path(given)
                            : examples.parent_path() / "build" / "examples" / "models";
  return (models / file).string();
}

/// Whether all files are there; if not, says so.
inline bool available(std::initializer_list<const char*> files) {
  for (const char* file : files) {
    if (std::filesystem::exists(path(file))) continue;
    std::printf("%s is not there: bash examples/models.sh fetches it\n", path(file).c_str());
    return false;
  }
  return true;
}

}  // namespace pretrained
