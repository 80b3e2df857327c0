"""Vector instructions for the inner loops of the int8 engine: numba intrinsics that emit LLVM (x86-64, AVX2 or better)."""
