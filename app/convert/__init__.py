"""Conversion of trained networks into burst-spiking ones. The pipeline behind convert.py."""
