"""The fields that the definitions of others' objects know, of the types that our manifests use.

The table is of KServe 0.21's Python SDK (`openapi_types`), and of the models that cloudcoil made of the definitions of
KEDA 2.16 and the Prometheus operator 0.80; the packages themselves bring many others. Kubernetes' own types, which the
table leaves out, are for its own schema.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FIELDS = json.loads(Path(__file__).with_suffix(".json").read_text())
SIMPLE = {"str": str, "int": int, "bool": bool, "dict(str, str)": dict}


def check_fields(value: Any, kind: str) -> None:
    """Raise KeyError on an unknown field, AssertionError on a value of the wrong type."""
    if kind.startswith("list["):
        for item in value:
            check_fields(item, kind[5:-1])
    elif kind in SIMPLE:
        assert isinstance(value, SIMPLE[kind])
    elif kind in FIELDS:
        for name, field in value.items():
            check_fields(field, FIELDS[kind][name])
