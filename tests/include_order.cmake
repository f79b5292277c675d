# cmake -D ROOT=<include directory> -P include_order.cmake
#
# Fails when a header includes one of its own storey or of a storey above, when it includes anything
# but heed, Eigen and the standard library, or when it has no place in the house.
cmake_minimum_required(VERSION 3.22)

# Top to bottom, one line for each storey, names relative to heed/ without ".hpp".
set(house
    "heed"
    "multi_head_attention additive_attention heatmap"
    "module"
    "linear"
    "attention softmax matmul"
    "detail/call"
    "score kernel modifier mask dropout"
    "detail/forward detail/decode detail/backward detail/materialised detail/materialised_backward"
    "detail/backward_tile"
    "detail/backward_block"
    "detail/slopes detail/parameter_gradients"
    "detail/additive_scorer detail/masking detail/modify detail/online_softmax"
    "detail/scorer detail/features"
    "detail/tile"
    "detail/pack"
    "detail/policy detail/problem"
    "tensor"
    "detail/math detail/widen detail/dual"
    "detail/lanes"
    "detail/key_set detail/svg detail/parallel"
    "detail/check"
    "version")

# Sets `problems` in the caller to a list of what is wrong below `root`.
function(check_house root)
  set(found "")
  set(depth 0)
  foreach(storey IN LISTS house)
    separate_arguments(names UNIX_COMMAND "${storey}")
    foreach(name IN LISTS names)
      set("depth_of_${name}" "${depth}")
    endforeach()
    math(EXPR depth "${depth} + 1")
  endforeach()

  file(GLOB_RECURSE files RELATIVE "${root}/heed" "${root}/heed/*")
  if(NOT files)
    list(APPEND found "no headers below ${root}/heed")
  endif()
  foreach(file IN LISTS files)
    string(REGEX REPLACE "\\.hpp$" "" name "${file}")
    if(NOT DEFINED "depth_of_${name}")
      list(APPEND found "heed/${file} has no storey in the house of include_order.cmake")
      continue()
    endif()
    file(STRINGS "${root}/heed/${file}" lines REGEX "^[ \t]*#[ \t]*include")
    foreach(line IN LISTS lines)
      if(line MATCHES "include[ \t]*[<\"]heed/(.*)\\.hpp[>\"]")
        set(target "${CMAKE_MATCH_1}")
        if(NOT DEFINED "depth_of_${target}")
          list(APPEND found "heed/${file} includes heed/${target}.hpp, which has no storey")
        elseif(depth_of_${target} EQUAL depth_of_${name})
          list(APPEND found "heed/${file} includes heed/${target}.hpp of its own storey")
        elseif(depth_of_${target} LESS depth_of_${name})
          list(APPEND found "heed/${file} includes heed/${target}.hpp from above")
        endif()
      elseif(NOT line MATCHES "include[ \t]*<(unsupported/)?Eigen/"
             AND NOT line MATCHES "include[ \t]*<[a-z0-9_]+(\\.h)?>")
        list(APPEND found "heed/${file}: neither \"heed/...\", <Eigen/...> nor standard: ${line}")
      endif()
    endforeach()
  endforeach()
  set(problems "${found}" PARENT_SCOPE)
endfunction()

# Houses with one fault each must be found out, and a sound one must pass.
function(self_test work)
  function(expect regex header text)
    file(REMOVE_RECURSE "${work}")
    file(WRITE "${work}/heed/detail/check.hpp" "#include <vector>\n")
    file(WRITE "${work}/heed/mask.hpp" "#include <Eigen/Core>\n#include <heed/detail/check.hpp>\n")
    file(WRITE "${work}/heed/score.hpp" "#include <unsupported/Eigen/CXX11/Tensor>\n")
    file(WRITE "${work}/heed/${header}" "${text}\n")
    check_house("${work}")
    list(LENGTH problems count)
    if(regex STREQUAL "")
      if(problems)
        message(FATAL_ERROR "a sound house was rejected: ${problems}")
      endif()
    elseif(NOT count EQUAL 1 OR NOT problems MATCHES "${regex}")
      message(FATAL_ERROR "expected one problem matching \"${regex}\", got: \"${problems}\"")
    endif()
  endfunction()
  expect("" attention.hpp "#include <heed/mask.hpp>\n  # include <heed/score.hpp>  // both")
  expect("mask.hpp of its own storey" score.hpp "#include \"heed/mask.hpp\"")
  expect("mask.hpp from above" detail/check.hpp "#include <vector>\n  #  include <heed/mask.hpp>")
  expect("gossip.hpp has no storey in" gossip.hpp "")
  expect("gossip.hpp, which has no storey" attention.hpp "#include <heed/gossip.hpp>")
  expect("neither" score.hpp "#include <boost/config.hpp>")
  expect("neither" attention.hpp "#include \"mask.hpp\"")
  file(REMOVE_RECURSE "${work}/heed")
  check_house("${work}")
  if(NOT problems MATCHES "no headers")
    message(FATAL_ERROR "an empty house passed")
  endif()
endfunction()

if(DEFINED SELF_TEST)
  self_test("${SELF_TEST}")
else()
  check_house("${ROOT}")
  if(problems)
    list(JOIN problems "\n  " text)
    message(FATAL_ERROR "includes must point down the house:\n  ${text}")
  endif()
endif()
