"""Networks to train, and how their maps are decoded."""
