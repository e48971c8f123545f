"""`florence2 export CHECKPOINT`: turn a Florence-2 checkpoint into a complete Triton model repository."""
