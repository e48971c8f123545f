"""`python -m export CHECKPOINT`: from a Florence-2 checkpoint to a complete, servable Triton model repository."""
