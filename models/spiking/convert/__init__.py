"""ANN to burst-spiking network in three public steps: fold (structure), calibrate (thresholds, biases), save."""
