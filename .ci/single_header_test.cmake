# cmake -D HEED=<source> -D WORK=<directory> -D COMPILER=... -D EIGEN_INCLUDE=... -P single_header_test.cmake
#
# Makes the single header and builds and runs the consumer's program with it, where nothing else of
# heed can be found: two translation units include it, which must link.
cmake_minimum_required(VERSION 3.23)

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output
                                                         ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\nreturned ${result}:\n${output}")
  endif()
endfunction()

file(REMOVE_RECURSE "${WORK}")
run("${CMAKE_COMMAND}" -D "INCLUDE=${HEED}/include" -D "OUTPUT=${WORK}/include/heed/heed.hpp" -P
    "${CMAKE_CURRENT_LIST_DIR}/single_header.cmake")

# heatmap_svg is in the header too, and version.hpp's macros are as in the many headers.
file(WRITE "${WORK}/other.cpp" "#include <heed/heed.hpp>
std::string picture() { return heed::heatmap_svg(heed::Matrix<float>{{1, 0}, {0, 1}}); }
static_assert(heed::kVersionMajor == HEED_VERSION_MAJOR);
")
list(TRANSFORM EIGEN_INCLUDE PREPEND "-isystem")
run("${COMPILER}" -std=c++20 -Wall -Wextra -Werror "-I${WORK}/include" ${EIGEN_INCLUDE}
    "${HEED}/tests/consumer/main.cpp" "${WORK}/other.cpp" -o "${WORK}/consumer")
run("${WORK}/consumer")

# Every header went into it, but for what needs nlohmann_json or MPI.
file(READ "${WORK}/include/heed/heed.hpp" single)
if(single MATCHES "#include [\"<]heed/")
  message(FATAL_ERROR "an include of heed is left")
endif()
file(GLOB_RECURSE headers RELATIVE "${HEED}/include" "${HEED}/include/heed/*/*.hpp")
foreach(header IN LISTS headers)
  string(FIND "${single}" "\n// ---- ${header}\n" at)
  if(at EQUAL -1 AND NOT header MATCHES "^heed/(mpi/.*|io/(mapped_file|safetensors.*|load_torch))\\.hpp$")
    message(FATAL_ERROR "${header} is not in the single header")
  endif()
endforeach()
