"""Conversion of an ANN to a burst-spiking network.

The steps are public, each by itself: fold (batch norms into convolutions, module tree into a graph), allocate (burst
limits and threshold factors), calibrate (thresholds and shifts) and distil (weights).
"""
