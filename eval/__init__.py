"""Average precision and energy. Imports data only; never meets models."""
