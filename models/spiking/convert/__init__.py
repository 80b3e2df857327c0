"""ANN to burst-spiking network in public steps: fold (structure), allocate (burst limits), calibrate (thresholds, shifts), distil (weights)."""
