# heed_docs: the reference, from the comments, in build/docs/html/index.html.
find_package(Doxygen 1.9 QUIET)
if(NOT DOXYGEN_FOUND)
  add_custom_target(
    heed_docs
    COMMAND "${CMAKE_COMMAND}" -E echo "heed_docs needs Doxygen 1.9 or newer, which was not found"
    COMMAND "${CMAKE_COMMAND}" -E false
    VERBATIM)
  return()
endif()

set(DOXYGEN_PROJECT_NAME heed)
set(DOXYGEN_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/docs")
set(DOXYGEN_STRIP_FROM_PATH "${PROJECT_SOURCE_DIR}/include")
set(DOXYGEN_STRIP_FROM_INC_PATH "${PROJECT_SOURCE_DIR}/include")
set(DOXYGEN_USE_MDFILE_AS_MAINPAGE "${PROJECT_SOURCE_DIR}/README.md")
if(DOXYGEN_VERSION VERSION_GREATER_EQUAL 1.9.8)
  set(DOXYGEN_MARKDOWN_ID_STYLE GITHUB)  # older ones cannot follow a link to a heading, and say so
endif()
set(DOXYGEN_IMAGE_PATH "${PROJECT_SOURCE_DIR}/.github" "${PROJECT_SOURCE_DIR}/examples/pictures")
# What a user calls. Namespace detail, and the folders that hold nothing else, stay out.
set(DOXYGEN_EXCLUDE_SYMBOLS "heed::detail" "heed::detail::*" "detail" "*::Bound" "*::Combined"
    "*::Finish" "*::Similarity")
set(DOXYGEN_EXTRACT_ALL YES)
set(DOXYGEN_HIDE_FRIEND_COMPOUNDS YES)
set(DOXYGEN_JAVADOC_AUTOBRIEF YES)
set(DOXYGEN_BUILTIN_STL_SUPPORT YES)
set(DOXYGEN_MACRO_EXPANSION YES)
set(DOXYGEN_EXPAND_ONLY_PREDEF YES)
set(DOXYGEN_PREDEFINED "EIGEN_ALWAYS_INLINE=inline" "EIGEN_DONT_INLINE=" "EIGEN_STRONG_INLINE=inline")
set(DOXYGEN_SHOW_USED_FILES NO)
set(DOXYGEN_VERBATIM_HEADERS NO)
set(DOXYGEN_GENERATE_TREEVIEW YES)
set(DOXYGEN_HAVE_DOT NO)
set(DOXYGEN_QUIET YES)
if(HEED_WARNINGS_AS_ERRORS)
  set(DOXYGEN_WARN_AS_ERROR FAIL_ON_WARNINGS)
endif()
doxygen_add_docs(heed_docs "${PROJECT_SOURCE_DIR}/README.md" "${PROJECT_SOURCE_DIR}/examples/README.md"
                 "${PROJECT_SOURCE_DIR}/.github/CONTRIBUTING.md"
                 "${PROJECT_SOURCE_DIR}/.github/CHANGELOG.md" "${PROJECT_SOURCE_DIR}/include/heed"
                 COMMENT "Writing the reference")
