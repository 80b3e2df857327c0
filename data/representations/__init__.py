"""Representations: a window of events becomes an array. Each is a numba kernel beside a NumPy reference."""
