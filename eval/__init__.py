"""Evaluation: average precision, energy, latency, and reports. Imports data only, never models."""
