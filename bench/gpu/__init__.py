"""Checks and measurements on an NVIDIA GPU; see __main__."""
