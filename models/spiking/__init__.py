"""Burst-spiking networks: neurons, cost of a spike, execution, conversion."""
