# The targets dbcache_trt::dbcache_trt (shared) and dbcache_trt::static.
get_filename_component(_dbcache_trt_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

if(NOT TARGET dbcache_trt::dbcache_trt)
  add_library(dbcache_trt::dbcache_trt SHARED IMPORTED)
  set_target_properties(dbcache_trt::dbcache_trt PROPERTIES
    IMPORTED_LOCATION "${_dbcache_trt_prefix}/lib/libdbcache_trt.so.@VERSION@"
    IMPORTED_SONAME "libdbcache_trt.so.@ABI@"
    INTERFACE_INCLUDE_DIRECTORIES "${_dbcache_trt_prefix}/include")

  add_library(dbcache_trt::static STATIC IMPORTED)
  set_target_properties(dbcache_trt::static PROPERTIES
    IMPORTED_LOCATION "${_dbcache_trt_prefix}/lib/libdbcache_trt.a"
    INTERFACE_INCLUDE_DIRECTORIES "${_dbcache_trt_prefix}/include"
    INTERFACE_LINK_LIBRARIES "gcc_s;util;rt;pthread;m;dl;c")
endif()

unset(_dbcache_trt_prefix)
