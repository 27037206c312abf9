# Code that is compiled once per instruction set and chosen at run time (select.h): rapo_isa() adds one set's objects to
# a library, with RAPO_ISA as the set's name.
function(rapo_isa library name)
  cmake_parse_arguments(PARSE_ARGV 2 isa "" "" "SOURCES;OPTIONS")
  add_library(${library}_${name} OBJECT ${isa_SOURCES})
  target_link_libraries(${library}_${name} PRIVATE rapo_options)
  target_compile_definitions(${library}_${name} PRIVATE RAPO_ISA=${name})
  target_compile_options(${library}_${name} PRIVATE ${RAPO_VECTOR_FLAGS} ${RAPO_ISA_${name}} ${isa_OPTIONS})
  target_sources(${library} PRIVATE $<TARGET_OBJECTS:${library}_${name}>)
endfunction()

# The vector code never reads errno or the floating-point flags.
set(RAPO_VECTOR_FLAGS -O3 -fno-math-errno -fno-trapping-math)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  # GCC bug 105593: its own AVX-512 header initialises a variable with itself.
  list(APPEND RAPO_VECTOR_FLAGS -Wno-uninitialized -Wno-maybe-uninitialized)
endif()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(RAPO_X86 TRUE)
  set(RAPO_ISA_avx2 -mavx2 -mfma -mf16c)
  set(RAPO_ISA_avx512 ${RAPO_ISA_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
  set(RAPO_ISA_avx512bf16 ${RAPO_ISA_avx512} -mavx512bf16)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  set(RAPO_ARM64 TRUE)
  set(RAPO_ISA_neon -DRAPO_NEON)
endif()
