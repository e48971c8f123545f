"""The export, which is installed as the package `florence2_export`. `python -m export` runs it in a checkout."""
