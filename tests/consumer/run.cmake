# Builds and runs main.cpp, weights.cpp and own_policies.cpp, the way a stranger would: HOW is add_subdirectory, find_package (after an
# install into WORK) or bare (nothing but include paths). No flag of ours may reach its compiler.
cmake_minimum_required(VERSION 3.22)

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output
                                                         ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\nreturned ${result}:\n${output}")
  endif()
endfunction()

file(REMOVE_RECURSE "${WORK}")
file(MAKE_DIRECTORY "${WORK}")

if(HOW STREQUAL "bare")
  list(TRANSFORM EIGEN_INCLUDE PREPEND "-I")
  run("${COMPILER}" -std=c++20 "-I${HEED}/include" ${EIGEN_INCLUDE}
      "${CMAKE_CURRENT_LIST_DIR}/main.cpp" -o "${WORK}/consumer")
  run("${WORK}/consumer")
  return()
endif()

if(HOW STREQUAL "find_package")
  run("${CMAKE_COMMAND}" --install "${HEED_BINARY}" --prefix "${WORK}/prefix")
  set(where "-DCMAKE_PREFIX_PATH=${WORK}/prefix" "-DHEED_VERSION=${HEED_VERSION}")
else()
  set(where "-DHEED_SUBDIRECTORY=${HEED}")
endif()

unset(ENV{CXXFLAGS})
unset(ENV{CMAKE_BUILD_TYPE})
run("${CMAKE_COMMAND}" -S "${CMAKE_CURRENT_LIST_DIR}" -B "${WORK}/build" -G "${GENERATOR}"
    "-DCMAKE_CXX_COMPILER=${COMPILER}" "-DEigen3_DIR=${EIGEN_DIR}"
    "-Dnlohmann_json_DIR=${JSON_DIR}" ${where})

file(READ "${WORK}/build/compile_commands.json" commands)
string(JSON count LENGTH "${commands}")
string(JSON command GET "${commands}" 0 command)
separate_arguments(arguments UNIX_COMMAND "${command}")
set(sources 2)
if(HOW STREQUAL "find_package")
  set(sources 3)
endif()
if(NOT count EQUAL sources)
  message(FATAL_ERROR "heed adds sources to its consumer:\n${commands}")
endif()
foreach(argument IN LISTS arguments)
  if(argument MATCHES "^-([WOmfDgp]|include$)")
    message(FATAL_ERROR "${argument} leaks to the consumer:\n${command}")
  endif()
  if(HOW STREQUAL "find_package" AND argument MATCHES "^(-I)?(.*)$"
     AND CMAKE_MATCH_2 STREQUAL "${HEED}/include")
    message(FATAL_ERROR "the installed package reads the source tree:\n${command}")
  endif()
endforeach()

run("${CMAKE_COMMAND}" --build "${WORK}/build")
run("${WORK}/build/consumer")
run("${WORK}/build/weights")
if(HOW STREQUAL "find_package")
  run("${WORK}/build/own_policies")
endif()
