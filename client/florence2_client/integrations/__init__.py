"""Plug-ins for programs of others; each module needs the package of its program."""
