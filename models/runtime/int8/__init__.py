"""The integer engine: exact sums of 8-bit weights, from plan to vector instructions."""
