"""The int8 engine: integer arithmetic on spike counts and 8-bit weights, from execution plan to AVX2 kernels."""
