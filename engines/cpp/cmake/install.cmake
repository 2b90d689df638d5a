# What `cmake --install` and `cpack` make: a tree that can be moved, and holds all but the libraries
# that systems have (libjpeg, libpng, zlib, OpenSSL).
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

# ONNX Runtime comes along, with its licence, in a folder of its own: a file in lib/ could replace the
# system's. A package for Python has the licence one folder above the library.
set(found OFF)
if(DSD_ENGINE STREQUAL "onnxruntime" AND NOT APPLE)
  get_filename_component(library "${ONNXRUNTIME_LIBRARY}" REALPATH)
  get_filename_component(folder "${library}" DIRECTORY)
  find_path(ONNXRUNTIME_LICENSES ThirdPartyNotices.txt
            HINTS "${ONNXRUNTIME_ROOT}" "${folder}/.." NO_DEFAULT_PATH)
  if(ONNXRUNTIME_LICENSES)
    set(found ON)
  endif()
endif()
option(DSD_INSTALL_ONNXRUNTIME "Install ONNX Runtime's library with the scorer" ${found})

set(origin "\$ORIGIN")
if(APPLE)
  set(origin "@loader_path")
endif()
if(DSD_INSTALL_ONNXRUNTIME)
  if(NOT found)
    message(FATAL_ERROR "DSD_INSTALL_ONNXRUNTIME needs ONNX Runtime's ThirdPartyNotices.txt and "
                        "LICENSE in ONNXRUNTIME_ROOT")
  endif()
  set_target_properties(dsd PROPERTIES INSTALL_RPATH "${origin}/dsd")
  install(FILES "${library}" DESTINATION "${CMAKE_INSTALL_LIBDIR}/dsd"
          RENAME libonnxruntime.so.1
          PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE
                      WORLD_READ WORLD_EXECUTE)
  foreach(file LICENSE ThirdPartyNotices.txt)
    install(FILES "${ONNXRUNTIME_LICENSES}/${file}" DESTINATION "${CMAKE_INSTALL_DOCDIR}"
            RENAME "onnxruntime-${file}")
  endforeach()
else()
  set_target_properties(dsd PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
endif()

install(TARGETS dsd EXPORT dsd-targets
        LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
        INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(DIRECTORY include/dsd DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
file(RELATIVE_PATH to_libraries "${CMAKE_INSTALL_FULL_BINDIR}" "${CMAKE_INSTALL_FULL_LIBDIR}")
foreach(program ${programs})
  set_target_properties(${program} PROPERTIES INSTALL_RPATH "${origin}/${to_libraries}")
  install(TARGETS ${program} RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
endforeach()

set(package "${CMAKE_INSTALL_LIBDIR}/cmake/dsd")
install(EXPORT dsd-targets FILE dsdTargets.cmake NAMESPACE dsd:: DESTINATION "${package}")
configure_package_config_file(
  cmake/dsdConfig.cmake.in "${CMAKE_CURRENT_BINARY_DIR}/dsdConfig.cmake"
  INSTALL_DESTINATION "${package}")
write_basic_package_version_file(
  "${CMAKE_CURRENT_BINARY_DIR}/dsdConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/dsdConfig.cmake"
              "${CMAKE_CURRENT_BINARY_DIR}/dsdConfigVersion.cmake" DESTINATION "${package}")

file(RELATIVE_PATH to_prefix
     "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig" "${CMAKE_INSTALL_PREFIX}")
configure_file(cmake/dsd.pc.in "${CMAKE_CURRENT_BINARY_DIR}/dsd.pc" @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/dsd.pc"
        DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

install(FILES ../../LICENSE licenses/nlohmann-json.txt licenses/unicode.txt
        DESTINATION "${CMAKE_INSTALL_DOCDIR}")

if(top_level)
  set(CPACK_GENERATOR TGZ)
  set(CPACK_PACKAGE_FILE_NAME
      "dsd-${PROJECT_VERSION}-${CMAKE_SYSTEM_NAME}-${CMAKE_SYSTEM_PROCESSOR}")
  set(CPACK_PACKAGE_CHECKSUM SHA256)
  set(CPACK_STRIP_FILES ON)
  set(CPACK_VERBATIM_VARIABLES ON)
  include(CPack)
endif()
