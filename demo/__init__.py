"""`python -m demo`, which is `make demo`: see `__main__.py`."""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of packages that are not needed when it is imported
