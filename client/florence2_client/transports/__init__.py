"""Transports: how requests travel to a server. `base` is the seam, `grpc` and `http` the two protocols."""
