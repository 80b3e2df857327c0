"""Training of detectors and classifiers. The pipeline behind train.py."""
