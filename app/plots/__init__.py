"""Plots that commands save with their results, drawn by matplotlib."""
