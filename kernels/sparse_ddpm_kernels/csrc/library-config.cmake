# find_package(sparse_ddpm): the targets sparse_ddpm::sparse_ddpm and sparse_ddpm::sparse_ddpm_static.
include(CMakeFindDependencyMacro)
find_dependency(Threads)
include(${CMAKE_CURRENT_LIST_DIR}/sparse_ddpmTargets.cmake)
