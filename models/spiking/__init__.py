"""Burst-spiking networks: neurons, execution, cost of a spike, and conversion from an ANN."""
