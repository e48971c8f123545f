"""The decoding step on a CPU: one function, compiled by numba, that a few threads run together.

docs/adr has the reasons and the measurements.
"""
