"""Serve Florence-2 on Triton: the domain, the decoder engine, and the embedded server.

`import florence2` needs only the standard library and numpy; only `florence2.engine` needs torch.
"""

__version__ = "0.3.0"
