#pragma once

// The one place where the version is written: CMakeLists.txt reads it from here.
#define HEED_VERSION_MAJOR 0
#define HEED_VERSION_MINOR 1
#define HEED_VERSION_PATCH 0

namespace heed {

inline constexpr int kVersionMajor = HEED_VERSION_MAJOR;
inline constexpr int kVersionMinor = HEED_VERSION_MINOR;
inline constexpr int kVersionPatch = HEED_VERSION_PATCH;

}  // namespace heed
