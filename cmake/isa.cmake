# Kernel files are compiled once per instruction set, each in its own namespace (GS_ISA), and chosen at
# load. -ffp-contract=off: the only fused multiply-adds are the explicit ones, so every instruction set
# rounds alike. Never -ffast-math: it would change the floating-point mode of the whole process.

set(GS_KERNEL_FLAGS -fno-math-errno -fno-trapping-math -ffp-contract=off -fno-exceptions -fno-rtti
    -fno-semantic-interposition -Wall -Wextra -Wno-psabi -Wno-uninitialized -Wno-maybe-uninitialized -fvisibility=hidden)
# No exception passes through a kernel, so the tables to unwind one (2 % of the wheel) are left out.
set(GS_TABLE_FLAGS -fno-asynchronous-unwind-tables -fno-unwind-tables)
set(GS_SANITIZE_FLAGS -fsanitize=address,undefined -fno-sanitize-recover=undefined
    -fno-omit-frame-pointer -g1 -O1)
# Kernels are vectors as they stand: of what -O3 does they need the unrolling of small loops; its vectoriser works on
# their tails, where it doubles code and compile time. GS_PLAIN are the families that leave plain loops to it, or that
# were measured slower without the rest of -O3 (docs/performance.md).
set(GS_OPTIMIZE -O3)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(GS_OPTIMIZE -O2 -fpeel-loops -fno-tree-vectorize)
endif()
set(GS_PLAIN bfloat16 embedding norm/channel norm/row reduce/axis elementwise/copy elementwise/binary
    elementwise/compare elementwise/index elementwise/random elementwise/ternary elementwise/unary)
# Passes that do nothing for the speed of these families and take a part of their compile time; each of the others was
# measured slower without them. (recurrent/recurrent, too, and loss have options of their own.)
set(GS_LEAN embedding elementwise/copy elementwise/binary elementwise/compare elementwise/index
    elementwise/random elementwise/ternary)
set(GS_INTERLEAVED activation/activation softmax/softmax softmax/cross_entropy)
set(GS_LEAN_FLAGS -fno-tree-pre -fno-ivopts -fno-gcse -fno-thread-jumps -fno-tree-vrp -fno-code-hoisting
    -fno-tree-tail-merge -fno-crossjumping)
set(GS_BASE_FLAGS "")
set(GS_ISA_DEFINITIONS "")

if(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64" OR CMAKE_OSX_ARCHITECTURES MATCHES "arm64")
  set(GS_LEVELS neon)
  set(GS_FLAGS_neon ${GS_OPTIMIZE})
  set(GS_ISA_DEFINITIONS GS_HAVE_NEON)
else()
  set(GS_LEVELS base avx2 avx512 avx512bf16)
  # The baseline only has to be right: -O1 compiles its 16-lane loops of 4-lane vectors several times faster. The
  # largest families are a fifth smaller with -Os, which takes half as long again.
  set(GS_FLAGS_base -O1 -march=x86-64-v2)
  set(GS_SMALL_base conv/winograd conv/winograd_backward conv/polyphase conv/direct conv/backward_weight pool/forward
      pool/backward matmul/gemm reduce/reduce activation/activation loss norm/channel norm/row softmax/softmax
      softmax/cross_entropy optimizer attention recurrent/recurrent elementwise/binary elementwise/unary
      matmul/vector conv/depthwise)
  set(GS_FLAGS_avx2 ${GS_OPTIMIZE} -march=x86-64-v2 -mavx2 -mfma -mf16c -mbmi -mbmi2)
  set(GS_FLAGS_avx512 ${GS_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl
      -mprefer-vector-width=512)
  set(GS_BASE_FLAGS -march=x86-64-v2)
  # On top of avx512, and only the families that use the bfloat16 instructions.
  set(GS_FLAGS_avx512bf16 ${GS_FLAGS_avx512} -mavx512bf16)
  set(GS_OVERRIDES_avx512bf16 bfloat16 matmul/bfloat16 conv/bfloat16 conv/winograd conv/winograd_backward
      conv/polyphase)
  set(GS_ISA_DEFINITIONS GS_HAVE_AVX2 GS_HAVE_AVX512 GS_HAVE_AVX512BF16)
  # On top of avx512bf16: tiles of bfloat16, where the compiler knows them.
  include(CheckCXXCompilerFlag)
  check_cxx_compiler_flag("-mamx-tile -mamx-bf16" GS_COMPILER_HAS_AMX)
  if(GS_COMPILER_HAS_AMX)
    list(APPEND GS_LEVELS amx)
    set(GS_FLAGS_amx ${GS_FLAGS_avx512bf16} -mamx-tile -mamx-bf16)
    set(GS_OVERRIDES_amx matmul/bfloat16 conv/bfloat16)
    list(APPEND GS_ISA_DEFINITIONS GS_HAVE_AMX)
  endif()
endif()

# gs_kernel_objects(OUT family...): object libraries per instruction set; OUT lists their objects. Families with the
# same options are one library, gs_LEVEL_GROUP, so that they share a precompiled header: GCC would mix the options it
# was made with into those of others.
function(gs_kernel_objects out)
  set(objects "")
  set(gnu FALSE)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND NOT GRADSMITH_SANITIZE)
    set(gnu TRUE)
  endif()
  # Blocks of several vectors are interleaved by the scheduler before register allocation, which GCC leaves out on x86.
  set(interleaved -fschedule-insns -fsched-pressure)
  set(options_vectors "")
  set(options_plain -O3 -ftree-vectorize)
  set(options_lean ${options_plain} ${GS_LEAN_FLAGS})
  set(options_loss ${options_plain} ${interleaved})
  set(options_interleaved ${interleaved})
  set(options_recurrent ${interleaved} ${GS_LEAN_FLAGS})
  set(options_small -Os)
  set(levels ${GS_LEVELS})
  list(REVERSE levels)
  foreach(level IN LISTS levels)
    if(DEFINED GS_OVERRIDES_${level})
      set(families ${GS_OVERRIDES_${level}})
    else()
      set(families ${ARGN})
    endif()
    foreach(group IN ITEMS vectors small plain lean interleaved loss recurrent)
      set(sources_${group} "")
    endforeach()
    foreach(family IN LISTS families)
      set(group vectors)
      if(family IN_LIST GS_SMALL_${level} AND NOT GRADSMITH_SANITIZE)
        set(group small)
      elseif(gnu AND NOT level STREQUAL "base")
        if(family STREQUAL "loss" OR family STREQUAL "recurrent/recurrent")
          get_filename_component(group ${family} NAME)
        elseif(family IN_LIST GS_LEAN)
          set(group lean)
        elseif(family IN_LIST GS_PLAIN)
          set(group plain)
        elseif(family IN_LIST GS_INTERLEAVED)
          set(group interleaved)
        endif()
      endif()
      list(APPEND sources_${group} ${PROJECT_SOURCE_DIR}/csrc/cpu/${family}.cpp)
    endforeach()
    foreach(group IN ITEMS vectors small interleaved recurrent loss plain lean)
      list(LENGTH sources_${group} count)
      if(count EQUAL 0)
        continue()
      endif()
      set(target gs_${level})
      if(NOT group STREQUAL "vectors")
        set(target gs_${level}_${group})
      endif()
      add_library(${target} OBJECT ${sources_${group}})
      target_include_directories(${target} PRIVATE csrc/include csrc/cpu)
      target_compile_definitions(${target} PRIVATE GS_ISA=${level})
      target_compile_options(${target} PRIVATE ${GS_KERNEL_FLAGS} ${GS_FLAGS_${level}} ${options_${group}})
      # The compiler's intrinsics take a third of a second to read: once per library.
      if(count GREATER 2)
        target_precompile_headers(${target} PRIVATE ${PROJECT_SOURCE_DIR}/csrc/cpu/simd/vec.h)
      endif()
      if(GRADSMITH_SANITIZE)
        target_compile_options(${target} PRIVATE ${GS_SANITIZE_FLAGS})
      else()
        target_compile_options(${target} PRIVATE ${GS_TABLE_FLAGS})
      endif()
      list(APPEND objects $<TARGET_OBJECTS:${target}>)
    endforeach()
  endforeach()
  set(${out} ${objects} PARENT_SCOPE)
endfunction()
