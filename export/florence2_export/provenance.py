"""What an export says of itself: where it came from, with what it was made, and when.

`pipeline` writes it as parameters of the ensemble's config.pbtxt, where `florence2 info` and anyone who asks
Triton for the model's configuration finds it. But for the time, equal exports tell equal stories.
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


def story(checkpoint: Checkpoint, settings: Mapping[str, str]) -> dict[str, str]:
    """`settings`: the options that shaped the export, such as its precision. Raises CheckpointError."""
    told: dict[str, str | None] = {
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
    return {key: value for key, value in told.items() if value is not None}


def without_time(told: Mapping[str, str]) -> dict[str, str]:
    """What equal exports have in common."""
    return {key: value for key, value in told.items() if key != "exported"}


def _adapter(adapter: Adapter) -> dict[str, str | None]:
    return {
        "adapter": adapter.source.name,
        "adapter_revision": adapter.source.revision,
        "adapter_sha256": content_hash(adapter.files),
    }


def now() -> int:
    """Seconds since 1970: SOURCE_DATE_EPOCH where it is set (https://reproducible-builds.org), the clock elsewhere."""
    try:
        return int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    except ValueError as error:
        raise CheckpointError("SOURCE_DATE_EPOCH is no number of seconds") from error
