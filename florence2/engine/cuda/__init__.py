"""The decoding step in torch, in shapes that CUDA graphs can replay; it runs on a CPU too, for tests."""
