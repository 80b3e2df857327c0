"""Detectors: the families YOLO and SSD, and how boxes are computed from their maps; registry: models/architectures.py."""
