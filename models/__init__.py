"""Detectors and the spiking networks made of them. Imports data only."""
