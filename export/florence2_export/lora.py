"""Read what a PEFT LoRA changes, and compute the changed weights.

`adapter` calls it. An adapter has the names of the model that it was trained on, in either layout; `Changes` has native
ones.
Shapes: O output features, I input features (times the kernel of a convolution), r rank, V tokens, D d_model.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from florence2.errors import CheckpointError
from florence2_export import layouts

CONFIG = "adapter_config.json"
PREFIX = re.compile(r"^(.*\bbase_model\.model\.|((module|_orig_mod)\.)+)")
# What PEFT adds to a module. Only names in a `state_dict` have the adapter's name as well.
ADDED = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_(embedding_)?[AB]|lora_magnitude_vector|trainable_tokens_delta|modules_to_save)"
    r"(\.(?!(weight|bias)$)(?P<adapter>[^.]+))?(\.(?P<rest>.+))?"
)
WRAPPER = re.compile(r"\.(base_layer|original_module|token_adapter|_fsdp_wrapped_module)(?=\.|$)")
QUANTIZED = re.compile(r".+\.(SCB|weight_format|(nested_)?(absmax|quant_map)|quant_state\..+)")  # by bitsandbytes
REMEDY = "merge it with peft, then export the result"


@dataclass(frozen=True)
class LowRank:
    """W + scale * up @ down. up: [O, r], down: [r, I]; in an embedding, O is V and I is D.

    DoRA then scales each output to its magnitude; the outputs of an embedding are its columns.
    """

    up: Tensor
    down: Tensor
    scale: float
    magnitude: Tensor | None
    embedding: bool

    def fits(self, weight: Tensor) -> bool:
        """Return whether the change has the shape of the weight, [O, ...]."""
        up, down = self.up.flatten(1), self.down.flatten(1)
        outputs = down.shape[1] if self.embedding else len(up)
        return (
            weight.dim() > 1
            and weight.flatten(1).shape == (len(up), down.shape[1])
            and up.shape[1] == len(down)
            and (self.magnitude is None or self.magnitude.numel() == outputs)
        )

    def first_rows(self, count: int) -> LowRank:
        """Return the change of the first rows of the weight."""
        magnitude = self.magnitude
        if magnitude is not None and not self.embedding and magnitude.dim() == 1:  # convolutions have [1, O, 1, 1]
            magnitude = magnitude[:count]
        return replace(self, up=self.up[:count], magnitude=magnitude)

    def merge(self, weight: Tensor) -> Tensor:
        """Return the changed weight in float32: [O, ...] -> [O, ...]."""
        merged = weight.flatten(1).float() + self.scale * (self.up.flatten(1).float() @ self.down.flatten(1).float())
        if self.magnitude is not None:
            axis = 0 if self.embedding else 1
            norm = merged.norm(dim=axis, keepdim=True)
            merged = merged * (self.magnitude.float().flatten().unsqueeze(axis) / norm)
        return merged.reshape(weight.shape)


@dataclass(frozen=True)
class Changes:
    """What an adapter changes, by native names of weights."""

    weights: dict[str, Tensor]  # new values, which tied weights share
    copies: dict[str, Tensor]  # new values from `modules_to_save`, which PEFT unties
    microsoft: bool  # the adapter has the names of Microsoft's layout
    quantized: int  # tensors of a quantized base model, which are left out
    tokens: dict[str, dict[int, Tensor]] = field(default_factory=dict)  # new rows [D] of an embedding or the head
    low_rank: dict[str, LowRank] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)  # what is added to a bias [O]

    @property
    def names(self) -> set[str]:
        """The names of the changed weights."""
        return {*self.weights, *self.copies, *self.tokens, *self.low_rank, *self.biases}


def is_added(name: str) -> bool:
    """Return whether PEFT added this tensor, or wrapped its module."""
    return bool(ADDED.fullmatch(name) or WRAPPER.search(name))


def read_changes(tensors: Mapping[str, Tensor], config: Mapping[str, Any], source: str) -> Changes:
    """Return the changes in an adapter's tensors. Raise CheckpointError if a tensor is unknown or missing."""
    weights: dict[str, Tensor] = {}
    copies: dict[str, Tensor] = {}
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    adapters: set[str] = set()
    quantized = 0
    for stored_name, tensor in tensors.items():
        name = PREFIX.sub("", stored_name)
        added = ADDED.fullmatch(name)
        if QUANTIZED.fullmatch(name) or not tensor.is_floating_point():
            quantized += 1
        elif added:
            adapters |= {added["adapter"]} - {None}
            module, part, rest = WRAPPER.sub("", added["module"]), added["part"], added["rest"]
            if part == "modules_to_save":
                copies[f"{module}.{rest}"] = tensor
            else:
                modules[module][f"{part}.bias" if rest == "bias" else part] = tensor
        elif "lora_" in name:
            raise CheckpointError(f"the adapter {source} has {name}, which is unknown here; {REMEDY}")
        elif not WRAPPER.search(name) and is_copy(name, config.get("modules_to_save") or ()):
            copies[name] = tensor
        else:
            weights[WRAPPER.sub("", name)] = tensor
    if len(adapters) > 1:
        listed = ", ".join(sorted(adapters))
        raise CheckpointError(f"{source} holds several adapters ({listed}); save one of them with peft")
    names = [*weights, *copies, *(f"{module}.weight" for module in modules)]
    microsoft = any(layouts.native_name(name) != name for name in names)
    changes = Changes(layouts.native_weights(weights), layouts.native_weights(copies), microsoft, quantized)
    for module, parts in modules.items():
        add_module(changes, module, parts, config, source)
    return changes


def is_copy(name: str, modules_to_save: Iterable[str]) -> bool:
    """Return whether a weight's module, or one around it, is in `modules_to_save`, as in peft."""
    modules = [name[: dot.start()] for dot in re.finditer(r"\.", name)]
    return any(module.endswith(saved) for module in modules for saved in modules_to_save)


def add_module(changes: Changes, module: str, parts: dict[str, Tensor], config: Mapping[str, Any], source: str) -> None:
    """Add the tensors that PEFT added to a module. Raise CheckpointError if one is missing."""
    weight = layouts.native_name(f"{module}.weight")
    rows = parts.pop("trainable_tokens_delta", None)
    if rows is not None and (ids := token_ids(config, module)) is not None:
        if len(ids) != len(rows):
            raise CheckpointError(
                f"the adapter {source} has {len(rows)} trained tokens of {module}, but {CONFIG} lists {len(ids)}; "
                "save it again with peft"
            )
        changes.tokens[weight] = dict(zip(map(int, ids), rows, strict=True))
    if not parts:
        return
    bias, magnitude = parts.pop("lora_B.bias", None), parts.pop("lora_magnitude_vector", None)
    if (magnitude is None) == bool(config.get("use_dora")):
        raise CheckpointError(
            f"the adapter {source} has DoRA's magnitude of {module} or use_dora in {CONFIG}, but not both; "
            "save it again with peft"
        )
    embedding = "lora_embedding_A" in parts
    up, down = (parts.get(f"lora_{'embedding_' if embedding else ''}{side}") for side in "BA")
    if up is None or down is None or len(parts) > 2 or min(up.dim(), down.dim()) < 2:
        raise CheckpointError(
            f"the adapter {source} is incomplete: {module} lacks one of its two factors; save it again with peft"
        )
    scale = scaling(config, module, rank=len(down))
    if embedding:  # PEFT keeps the factors of the transposed embedding
        up, down = down.T, up.T
    changes.low_rank[weight] = LowRank(up, down, scale, magnitude, embedding)
    if bias is not None:
        changes.biases[layouts.native_name(f"{module}.bias")] = scale * bias.float()


def token_ids(config: Mapping[str, Any], module: str) -> list[int] | None:
    """Return the ids of a module's trained tokens, or None if they are those of the embedding that it is tied to."""
    listed = config.get("trainable_token_indices") or config["token_indices"]
    if not isinstance(listed, dict):
        return list(listed)
    return next((ids for target, ids in listed.items() if module.endswith(target)), None)


def scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return lora_alpha / r, or with rslora lora_alpha / sqrt(r). `alpha_pattern` sets other alphas, as in peft."""
    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    matching = (alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
    return float(next(matching, config["lora_alpha"])) / (math.sqrt(rank) if config.get("use_rslora") else rank)
