"""Training: the one optimiser loop (`fit`) and what is built on it."""
