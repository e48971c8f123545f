"""Plug-ins for other programs; each module needs the package of its program."""
