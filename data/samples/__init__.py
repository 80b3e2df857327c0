"""The bundled recording and its labels, simulated from the synthetic street scene."""
