"""Merge a PEFT LoRA adapter, trained on either layout, into a checkpoint's weights under their native names.

`checkpoint` calls it. The merge is exact: W + scale * B @ A in float32. PEFT's own merge rounds to the stored
precision and writes a change of the output head into the embedding that is tied to it (docs/adr/0009).
Shapes: O output features, I input features (times the kernel of a convolution), r rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from florence2.config import read_json
from florence2.errors import CheckpointError
from florence2_export import layouts, weight_files
from florence2_export.hub import Source, fetch
from florence2_export.layouts import EMBEDDING, HEAD, TIED

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# Settings that do not change what a trained adapter computes. An adapter that sets any other is refused.
HARMLESS = frozenset(
    "alpha_pattern auto_mapping base_model_name_or_path bias exclude_modules fan_in_fan_out inference_mode "
    "init_lora_weights layers_pattern layers_to_transform lora_alpha lora_dropout megatron_core modules_to_save "
    "peft_type peft_version qalora_group_size r rank_pattern revision runtime_config target_modules task_type "
    "use_rslora".split()
)
# Other initializations subtract their first factors from the checkpoint, which is then no longer the published one.
PLAIN_INITIALIZATIONS = (None, True, False, "gaussian", "eva")


@dataclass(frozen=True)
class Adapter:
    """A checked adapter. Its keys are native weight names."""

    source: Source
    base: str | None  # the checkpoint that it says it was trained on
    files: list[Path]
    replaced: dict[str, Tensor]  # whole weights: `modules_to_save` and trained biases
    factors: dict[str, tuple[Tensor, Tensor, float]]  # A [r, I], B [O, r] and the scale

    def replace(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights with the adapter's whole weights in them. Raise CheckpointError if one is unknown."""
        foreign = sorted(self.replaced.keys() - weights.keys() - set(TIED))
        if foreign:
            raise self._misfit(foreign[0])
        replaced = dict(self.replaced)
        if HEAD in replaced:
            replaced[HEAD] = _with_rows_of(weights.get(HEAD, weights[EMBEDDING]), replaced[HEAD])
        return {**weights, **replaced}

    def merge(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights with each low-rank change added in float32. Raise CheckpointError if one does not fit."""
        merged = dict(weights)
        for name, (down, up, scale) in self.factors.items():
            if name == HEAD:  # files tie it to the embedding, but training changed only the head
                base = weights.get(HEAD, weights[EMBEDDING])
                up = _with_rows_of(torch.zeros(len(base), up.shape[1]), up)
            elif name in weights:
                base = weights[name]
            else:
                raise self._misfit(name)
            out, into = up.flatten(1).float(), down.flatten(1).float()  # [O, r], [r, I]
            if base.dim() < 2 or base.flatten(1).shape != (len(out), into.shape[1]) or out.shape[1] != len(into):
                raise self._misfit(name)
            merged[name] = base.to(torch.float32) + scale * (out @ into).reshape(base.shape)
        return merged

    def _misfit(self, name: str) -> CheckpointError:
        base = f", {self.base}" if self.base else ""
        return CheckpointError(
            f"the adapter {self.source.name} does not fit this checkpoint at {name}; "
            f"export the checkpoint that it was trained on{base}"
        )


def _with_rows_of(base: Tensor, tensor: Tensor) -> Tensor:
    """Return a head cut or extended to the number of rows of `base`, from which further rows are taken.

    A row is a token. The layouts differ in the number of unused rows at the end.
    """
    if tensor.shape[1:] != base.shape[1:]:
        return tensor  # of another model; a later check of shapes reports it
    return torch.cat([tensor, base[len(tensor) :].to(tensor.dtype)])[: len(base)]


def read_adapter(source: str) -> Adapter:
    """Read the adapter in a directory or on the hub. Raise CheckpointError if it is not a plain LoRA."""
    found = fetch(source, None, "adapter_model.safetensors", "adapter_model.bin")
    config = read_json(found.directory / CONFIG)
    check_kind(config, found.name)
    files = weight_files.find(found.directory, FILES)
    replaced: dict[str, Tensor] = {}
    sides: dict[str, dict[str, Tensor]] = {}
    for stored_name, tensor in weight_files.read(files).items():
        name = stored_name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        match = FACTOR.fullmatch(name)
        if match:
            sides.setdefault(match["module"], {})[match["side"]] = tensor
        elif ".lora_" in name or "trainable_tokens" in name:
            raise CheckpointError(
                f"the adapter {found.name} changes more than linear layers ({name}); "
                "merge it with peft, then export the result"
            )
        else:
            replaced[layouts.native_name(name)] = tensor
    factors = {}
    for module, pair in sides.items():
        if pair.keys() != {"A", "B"} or min(factor.dim() for factor in pair.values()) < 2:
            raise CheckpointError(
                f"the adapter {found.name} is incomplete: {module} lacks one of its two factors; "
                "save it again with peft"
            )
        scale = scaling(config, module, rank=len(pair["A"]))
        factors[layouts.native_name(f"{module}.weight")] = (pair["A"], pair["B"], scale)
    if not factors and not replaced:
        raise CheckpointError(f"the adapter {found.name} is empty; save it again with peft")
    return Adapter(found, config.get("base_model_name_or_path"), files, replaced, factors)


def check_kind(config: Mapping[str, Any], name: str) -> None:
    """Raise CheckpointError if the adapter is anything but W + scale * B @ A, such as DoRA or quantization-aware."""
    remedy = "merge it with peft, then export the result"
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"the adapter {name} has peft_type {config.get('peft_type')}, but only LoRA can be merged here; {remedy}"
        )
    if config.get("use_dora"):
        raise CheckpointError(f"the adapter {name} is DoRA, but only plain LoRA can be merged here; {remedy}")
    initialization = config.get("init_lora_weights")
    unknown = sorted(key for key in config.keys() - HARMLESS if config[key])
    if initialization not in PLAIN_INITIALIZATIONS:
        unknown.append(f"init_lora_weights={initialization}")
    if unknown:
        raise CheckpointError(f"the adapter {name} sets {unknown[0]}, but only plain LoRA can be merged here; {remedy}")


def scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return lora_alpha / r, or with rslora lora_alpha / sqrt(r). `alpha_pattern` sets other alphas, as in peft."""
    try:
        alpha = config["lora_alpha"]
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError, re.error) as error:
        raise CheckpointError(
            f"{CONFIG} has no valid scale of the adapter ({type(error).__name__}: {error}); save it again with peft"
        ) from error
