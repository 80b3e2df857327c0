"""Evaluation of networks on data sets: accuracy, energy, latency and reports. The pipeline behind evaluate.py."""
