"""Evaluation: networks over data sets, timed, scored and reported. The pipeline behind evaluate.py."""
