"""The provenance of an export: which checkpoint it came from, which tools made it, and when.

`pipeline` writes it as parameters of the ensemble's config.pbtxt. `florence2 info` shows it, and so does Triton's model
configuration. Equal exports have equal provenance, except for the time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from importlib.metadata import version

import florence2
from florence2.errors import CheckpointError
from florence2_export.adapter import Adapter
from florence2_export.checkpoint import Checkpoint
from florence2_export.stored import content_hash

TOOLS = ("torch", "transformers", "onnx", "onnxscript", "safetensors")


def provenance(checkpoint: Checkpoint, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the facts by name. `settings` are the options that shaped the export, such as its precision."""
    facts: dict[str, str | None] = {
        "checkpoint": checkpoint.source.name,
        "revision": checkpoint.source.revision,
        "weights_sha256": content_hash(checkpoint.files),
        "layout": "microsoft" if checkpoint.microsoft else "native",
        **(_adapter(checkpoint.adapter) if checkpoint.adapter else {}),
        **settings,
        "exported": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now())),
        "florence2": florence2.__version__,
        **{tool: version(tool) for tool in TOOLS},
    }
    return {key: value for key, value in facts.items() if value is not None}


def without_time(facts: Mapping[str, str]) -> dict[str, str]:
    """Return what equal exports have in common."""
    return {key: value for key, value in facts.items() if key != "exported"}


def _adapter(adapter: Adapter) -> dict[str, str | None]:
    return {
        "adapter": adapter.source.name,
        "adapter_revision": adapter.source.revision,
        "adapter_sha256": content_hash(adapter.files),
    }


def now() -> int:
    """Return seconds since 1970: SOURCE_DATE_EPOCH if it is set (https://reproducible-builds.org), else the clock's."""
    try:
        return int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    except ValueError as error:
        raise CheckpointError("SOURCE_DATE_EPOCH is not a number of seconds") from error
