"""This server beside transformers' `generate`, called directly and on Triton: `python -m bench.compare`."""
