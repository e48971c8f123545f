"""What an export recorded about a model: Triton shows it in the configuration of the ensemble.

`florence2 info` prints it, batches compare it with that of earlier answers, and tiles have the model's image size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

Description: TypeAlias = "dict[str, str]"

DESCRIBE_SECONDS = 10.0  # for the configuration, which Triton shows even when it is busy
# What decides over answers. Other values, such as the time and the tools of an export, or a checkpoint's path, do not.
DECIDES = (
    "weights_sha256", "adapter_sha256", "processor", "processor_revision", "vision_precision", "language_precision",
    "image_size", "calibrated",
)  # fmt: skip
SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


def description_of(config: Any) -> Description:
    """Return the description in a model's configuration (as JSON); empty if `florence2 export` did not write one."""
    if not isinstance(config, Mapping) or config.get("platform") != "ensemble":
        return {}
    parameters = config.get("parameters")
    if not isinstance(parameters, Mapping):
        return {}
    texts = {name: value.get("string_value") for name, value in parameters.items() if isinstance(value, Mapping)}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def identity_of(description: Mapping[str, str]) -> dict[str, str]:
    """Return the part of a description that answers depend on.

    >>> identity_of({"weights_sha256": "3f0a", "exported": "2026-11-28T12:00:00Z"})
    {'weights_sha256': '3f0a'}
    """
    return {name: description[name] for name in DECIDES if name in description}


def image_side(description: Mapping[str, str]) -> int | None:
    """Return how many pixels of a side the model sees, None if the description does not tell.

    >>> image_side({"image_size": "64x64"})
    64
    """
    size = SIZE.fullmatch(description.get("image_size", ""))
    return min(int(size[1]), int(size[2])) if size else None
