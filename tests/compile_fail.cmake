# cmake -D COMPILER=... -D SOURCE=... -D INCLUDES=... -P compile_fail.cmake
#
# The first line of the source says what the compiler must do with it: "// expect: success", or
# "// expect: <regex>" for a refusal whose message matches on one line.
cmake_minimum_required(VERSION 3.22)

file(STRINGS "${SOURCE}" lines LIMIT_COUNT 1)
if(NOT lines MATCHES "^// expect: (.+)$")
  message(FATAL_ERROR "${SOURCE}: the first line is not \"// expect: <regex>\"")
endif()
set(expected "${CMAKE_MATCH_1}")

list(TRANSFORM INCLUDES PREPEND "-I")
execute_process(COMMAND "${COMPILER}" -std=c++20 -w -fsyntax-only ${INCLUDES} "${SOURCE}"
                RESULT_VARIABLE result ERROR_VARIABLE errors)

if(expected STREQUAL "success")
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${SOURCE} should compile:\n${errors}")
  endif()
elseif(result EQUAL 0)
  message(FATAL_ERROR "${SOURCE} compiled, but should fail with \"${expected}\"")
else()
  # Only the messages count, not the source lines that compilers quote below them; characters with a
  # meaning in CMake lists go.
  string(REGEX REPLACE "[][;]" " " errors "${errors}")
  string(REGEX MATCHALL "[^\n]*error:[^\n]*" messages "${errors}")
  foreach(message IN LISTS messages)
    if(message MATCHES "${expected}")
      return()
    endif()
  endforeach()
  message(FATAL_ERROR "${SOURCE} failed without saying \"${expected}\":\n${errors}")
endif()
