# libsparse_ddpm: the engine, a reader of model files and the samplers behind include/sparse_ddpm.h.
#   cmake -S . -B build -DSPARSE_DDPM_LIBRARY=ON
#   cmake --build build --target sparse_ddpm sparse_ddpm_static sparse_ddpm_example
#   cmake --install build --component library --prefix /usr/local
include(GNUInstallDirs)

# Float32 alone: the kernels of 16-bit activations are two thirds of the engine's code.
set(float32_sources ${kernel_sources})
list(FILTER float32_sources EXCLUDE REGEX "_half|_dot")
set(native_sources ${source}/native.cpp ${source}/native_check.cpp ${source}/native_file.cpp
  ${source}/native_float32.cpp ${source}/native_sample.cpp)
add_library(sparse_ddpm_objects OBJECT EXCLUDE_FROM_ALL ${native_sources} ${float32_sources}
  ${source}/engine.cpp ${source}/pool.cpp ${source}/tiles.cpp)
# Samplers round as NumPy does: nothing fused.
set_property(SOURCE ${source}/native_sample.cpp APPEND PROPERTY COMPILE_OPTIONS -ffp-contract=off)
target_compile_definitions(sparse_ddpm_objects PRIVATE
  $<TARGET_PROPERTY:sparse_ddpm_cpu,COMPILE_DEFINITIONS>)
target_compile_features(sparse_ddpm_objects PRIVATE cxx_std_17)
target_compile_options(sparse_ddpm_objects PRIVATE
  $<TARGET_PROPERTY:sparse_ddpm_cpu,COMPILE_OPTIONS>)
set_target_properties(sparse_ddpm_objects PROPERTIES
  CXX_EXTENSIONS ON CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON
  POSITION_INDEPENDENT_CODE ON)

add_library(sparse_ddpm SHARED EXCLUDE_FROM_ALL $<TARGET_OBJECTS:sparse_ddpm_objects>)
add_library(sparse_ddpm_static STATIC EXCLUDE_FROM_ALL $<TARGET_OBJECTS:sparse_ddpm_objects>)
set_target_properties(sparse_ddpm PROPERTIES VERSION 1.0.0 SOVERSION 1 LINKER_LANGUAGE CXX)
set_target_properties(sparse_ddpm_static PROPERTIES OUTPUT_NAME sparse_ddpm LINKER_LANGUAGE CXX)
foreach(library sparse_ddpm sparse_ddpm_static)
  target_include_directories(${library} INTERFACE
    $<BUILD_INTERFACE:${source}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_link_libraries(${library} PUBLIC Threads::Threads)
  if(SPARSE_DDPM_SANITIZE)
    target_link_options(${library} PUBLIC -fsanitize=${SPARSE_DDPM_SANITIZE})
  endif()
endforeach()
# What the header declares, and nothing else.
if(APPLE)
  target_link_options(sparse_ddpm PRIVATE "LINKER:-exported_symbol,_sddpm_*")
else()
  target_link_options(sparse_ddpm PRIVATE "LINKER:--version-script=${source}/library.map")
  set_property(TARGET sparse_ddpm APPEND PROPERTY LINK_DEPENDS ${source}/library.map)
endif()

set(example ${CMAKE_CURRENT_SOURCE_DIR}/examples/c/sample.c)
check_language(C)
if(CMAKE_C_COMPILER AND EXISTS ${example})
  enable_language(C)
  add_executable(sparse_ddpm_example EXCLUDE_FROM_ALL ${example})
  target_link_libraries(sparse_ddpm_example PRIVATE sparse_ddpm)
  set_target_properties(sparse_ddpm_example PROPERTIES C_STANDARD 99 C_STANDARD_REQUIRED ON
    C_EXTENSIONS OFF)
  target_compile_options(sparse_ddpm_example PRIVATE -Wall -Wextra -pedantic)
endif()

set(fuzz ${CMAKE_CURRENT_SOURCE_DIR}/tests/library/fuzz.cpp)
if(EXISTS ${fuzz})
  add_executable(sparse_ddpm_fuzz EXCLUDE_FROM_ALL ${fuzz})
  target_compile_features(sparse_ddpm_fuzz PRIVATE cxx_std_17)
  target_compile_options(sparse_ddpm_fuzz PRIVATE
    $<TARGET_PROPERTY:sparse_ddpm_cpu,COMPILE_OPTIONS>)
  target_link_libraries(sparse_ddpm_fuzz PRIVATE sparse_ddpm_static)
endif()

install(FILES ${source}/include/sparse_ddpm.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  COMPONENT library EXCLUDE_FROM_ALL)
install(TARGETS sparse_ddpm sparse_ddpm_static EXPORT sparse_ddpm
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library EXCLUDE_FROM_ALL
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library EXCLUDE_FROM_ALL)
install(EXPORT sparse_ddpm NAMESPACE sparse_ddpm:: FILE sparse_ddpmTargets.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/sparse_ddpm COMPONENT library EXCLUDE_FROM_ALL)
install(FILES ${source}/library-config.cmake RENAME sparse_ddpm-config.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/sparse_ddpm COMPONENT library EXCLUDE_FROM_ALL)
