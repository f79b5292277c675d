# cmake -D WORK=<directory> -P check.cmake
#
# Goes through the steps of the port without vcpkg: what the portfile calls is played here by what
# vcpkg documents of it. Then checks the package as vcpkg does, and builds and runs a consumer with it.
cmake_minimum_required(VERSION 3.23)

get_filename_component(heed "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
set(PORT heed)
set(CURRENT_BUILDTREES_DIR "${WORK}/buildtrees")
set(CURRENT_PACKAGES_DIR "${WORK}/packages/heed")
set(CURRENT_INSTALLED_DIR "${WORK}/installed")
file(REMOVE_RECURSE "${WORK}")

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output
                                                         ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\nreturned ${result}:\n${output}")
  endif()
endfunction()

function(vcpkg_cmake_configure)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "SOURCE_PATH" "OPTIONS")
  if(NOT VCPKG_BUILD_TYPE STREQUAL "release")
    message(FATAL_ERROR "this check knows release builds alone")
  endif()
  run("${CMAKE_COMMAND}" -S "${arg_SOURCE_PATH}" -B "${CURRENT_BUILDTREES_DIR}"
      -DCMAKE_BUILD_TYPE=Release "-DCMAKE_INSTALL_PREFIX=${CURRENT_PACKAGES_DIR}" ${arg_OPTIONS})
endfunction()

function(vcpkg_cmake_install)
  run("${CMAKE_COMMAND}" --build "${CURRENT_BUILDTREES_DIR}" --target install)
endfunction()

# Moves the package's files to share/<port>, where the prefix is two directories up.
function(vcpkg_cmake_config_fixup)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "CONFIG_PATH" "")
  set(share "${CURRENT_PACKAGES_DIR}/share/${PORT}")
  file(RENAME "${CURRENT_PACKAGES_DIR}/${arg_CONFIG_PATH}" "${share}")
  get_filename_component(parent "${CURRENT_PACKAGES_DIR}/${arg_CONFIG_PATH}" DIRECTORY)
  file(REMOVE_RECURSE "${parent}")
  file(READ "${share}/heedTargets.cmake" text)
  set(up "get_filename_component(_IMPORT_PREFIX \"\${_IMPORT_PREFIX}\" PATH)\n")
  string(REPLACE "${up}${up}${up}" "${up}${up}" text "${text}")
  file(WRITE "${share}/heedTargets.cmake" "${text}")
endfunction()

function(vcpkg_install_copyright)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "" "FILE_LIST")
  file(INSTALL "${arg_FILE_LIST}" DESTINATION "${CURRENT_PACKAGES_DIR}/share/${PORT}"
       RENAME copyright)
endfunction()

include("${CMAKE_CURRENT_LIST_DIR}/heed/portfile.cmake")

# The version of the port is that of the headers.
file(READ "${CMAKE_CURRENT_LIST_DIR}/heed/vcpkg.json" manifest)
string(JSON version GET "${manifest}" version)
file(STRINGS "${heed}/include/heed/version.hpp" parts REGEX "^#define HEED_VERSION_")
string(REGEX MATCHALL "[0-9]+" parts "${parts}")
list(JOIN parts "." expected)
if(NOT version STREQUAL expected)
  message(FATAL_ERROR "vcpkg.json says version ${version}, version.hpp ${expected}")
endif()

# What vcpkg refuses a package for.
foreach(file include/heed/heed.hpp share/heed/heedConfig.cmake share/heed/copyright share/heed/usage)
  if(NOT EXISTS "${CURRENT_PACKAGES_DIR}/${file}")
    message(FATAL_ERROR "the package lacks ${file}")
  endif()
endforeach()
foreach(directory debug lib share/cmake)
  if(EXISTS "${CURRENT_PACKAGES_DIR}/${directory}")
    message(FATAL_ERROR "the package has a directory ${directory}")
  endif()
endforeach()
file(GLOB scripts "${CURRENT_PACKAGES_DIR}/share/heed/*.cmake")
foreach(script IN LISTS scripts)
  file(READ "${script}" text)
  string(FIND "${text}" "${WORK}" at)
  if(NOT at EQUAL -1)
    message(FATAL_ERROR "${script} has an absolute path")
  endif()
endforeach()

# Installed elsewhere, it serves a project that knows nothing but find_package.
file(RENAME "${CURRENT_PACKAGES_DIR}" "${CURRENT_INSTALLED_DIR}")
run("${CMAKE_COMMAND}" -S "${heed}/tests/consumer" -B "${WORK}/consumer"
    "-DCMAKE_PREFIX_PATH=${CURRENT_INSTALLED_DIR}" "-DHEED_VERSION=${version}")
file(STRINGS "${WORK}/consumer/CMakeCache.txt" found REGEX "^heed_DIR:")
if(NOT found MATCHES "=${CURRENT_INSTALLED_DIR}/share/heed$")
  message(FATAL_ERROR "the consumer found another heed: ${found}")
endif()
run("${CMAKE_COMMAND}" --build "${WORK}/consumer")
run("${WORK}/consumer/consumer")
message(STATUS "the steps of the vcpkg port give a package that a consumer builds with")
