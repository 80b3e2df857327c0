"""Simulation of event cameras: scenes, the sensor model, and frame interpolation."""
