"""Merge a PEFT LoRA adapter, trained on either layout, into a checkpoint's weights under their native names.

`checkpoint` calls it. The merge is exact: it is computed in float32, and copies of the embedding change as in training.
PEFT's own merge rounds to the stored precision and writes a change of one copy into all that are tied to it
(docs/adr/0009).
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from florence2.config import read_json
from florence2.errors import CheckpointError
from florence2_export import lora, settings, weight_files
from florence2_export.hub import Source, fetch
from florence2_export.layouts import EMBEDDING, TIED, UNTIED
from florence2_export.lora import CONFIG, REMEDY, Changes

FILES = tuple(
    "adapter_model.safetensors adapter_model.bin adapter_model.pt model.safetensors pytorch_model.bin".split()
)
# Settings that change no more than the tensors and their names show. An adapter that sets any other is refused.
HARMLESS = frozenset(
    "alpha_pattern auto_mapping base_model_name_or_path bias corda_config ensure_weight_tying eva_config "
    "exclude_modules fan_in_fan_out inference_mode init_lora_weights init_weights layers_pattern layers_to_transform "
    "loftq_config lora_alpha lora_bias lora_dropout lora_ga_config megatron_core modules_to_save peft_type "
    "peft_version qalora_group_size r rank_pattern revision runtime_config target_modules target_parameters task_type "
    "token_indices trainable_token_indices use_dora use_rslora".split()
)
# Other initializations subtract their first factors from the checkpoint, which is then no longer the published one.
PLAIN_INITIALIZATIONS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Adapter:
    """A checked adapter."""

    source: Source
    config: Mapping[str, Any]
    files: list[Path]
    changes: Changes

    def notes(self, base: Source) -> Iterator[str]:
        """Yield what the user of a checkpoint should know about this adapter, one sentence each."""
        name, trained_on = self.source.name, self.config.get("base_model_name_or_path")
        revision, changed = self.config.get("revision"), self.changes.names & set(TIED)
        if trained_on and Path(trained_on).name != base.name.rpartition("/")[2]:
            yield f"the adapter {name} says that it was trained on {trained_on}"
        if revision and revision != base.revision:
            yield f"the adapter {name} says that it was trained on revision {revision}"
        if (self.source.directory / "generation_config.json").exists():
            yield f"generation_config.json of the adapter {name} takes precedence over the checkpoint's"
        if self.changes.quantized:
            yield (
                f"the adapter {name} holds a quantized base model, which is left out; "
                f"{base.name} is used instead: {self.changes.quantized} tensors"
            )
        if self.config.get("ensure_weight_tying") and changed == {EMBEDDING} and not self.changes.tokens:
            yield (
                f"the adapter {name} sets ensure_weight_tying, but peft does not tie `shared`, "
                "so only the prompt's embedding changes"
            )
        if changed and changed.isdisjoint((EMBEDDING, *UNTIED)):
            yield f"the adapter {name} changes the encoder's copy of the embedding, which the model never uses"

    def count_tokens(self, own: Tokenizer, base: Tokenizer | None, notes: list[str]) -> int:
        """Return how many rows the adapter's own tokenizer needs in the embedding, and note which tokens it adds.

        Raise CheckpointError if it contradicts the checkpoint's, `base`.
        """
        ids, known = own.get_vocab(), base.get_vocab() if base else {}
        for token, id in known.items():
            if ids.get(token) != id and token != "<image>":
                raise CheckpointError(
                    f"the tokenizer of the adapter {self.source.name} has {token} as {ids.get(token)}, but the "
                    f"checkpoint's has it as {id}; export the checkpoint that it was trained on"
                )
        added = sorted(ids.keys() - known.keys(), key=lambda token: ids[token]) if base else []
        if added:
            notes.append(f"the adapter adds {len(added)} tokens: {', '.join(added[:5])}")
        return settings.known_tokens(own)

    def merge(self, weights: Mapping[str, Tensor], tokens: int = 0) -> dict[str, Tensor]:
        """Return the weights with all changes in them, and each of TIED under its name.

        The embedding gets at least as many rows as there are `tokens`. Raise CheckpointError if a change does not fit.
        """
        changes = self.changes
        foreign = sorted(changes.names - weights.keys() - set(TIED))
        if foreign:
            raise self.misfit(foreign[0])
        merged = {**weights, **{name: weights.get(name, weights[EMBEDDING]) for name in TIED}}
        rows = max(len(weights[EMBEDDING]), tokens)
        for name, tensor in changes.weights.items():
            replaced = self.fitted(name, tensor, merged[name], rows)
            merged |= dict.fromkeys(tied_to(name, merged, changes.weights), replaced)
        merged |= {name: merged[EMBEDDING] for name in TIED if torch.equal(merged[name], merged[EMBEDDING])}
        for name, tensor in changes.copies.items():
            merged[name] = self.fitted(name, tensor, merged[name], rows)
        for name, trained in changes.tokens.items():
            untied = name != EMBEDDING or changes.tokens.keys() & set(TIED[1:])
            replaced = self.with_tokens(name, merged[name], trained)
            merged |= dict.fromkeys([name] if untied else tied_to(name, merged, ()), replaced)
        for name, change in changes.low_rank.items():
            count = min(len(merged[name]), len(change.up)) if name in TIED else len(merged[name])
            change, base = change.first_rows(count), merged[name][:count]
            if base.dim() == 4 and base.shape[1] < change.down.shape[1]:
                raise CheckpointError(
                    f"the adapter {self.source.name} changes {name}, a depthwise convolution, into one that mixes "
                    "channels, which peft cannot merge either; train without this layer"
                )
            if not change.fits(base):
                raise self.misfit(name)
            merged[name] = torch.cat([change.merge(base), merged[name][count:].float()])
        for name, bias in changes.biases.items():
            merged[name] = merged[name].float() + self.fitted(name, bias, merged[name], rows)
        for name in (EMBEDDING, *UNTIED):
            if len(merged[name]) < tokens:
                raise CheckpointError(
                    f"the tokenizer of the adapter {self.source.name} has {tokens} tokens, but {name} has only "
                    f"{len(merged[name])} rows; save the adapter with peft's save_embedding_layers=True"
                )
        return merged

    def fitted(self, name: str, tensor: Tensor, base: Tensor, rows: int) -> Tensor:
        """Return a new weight. A copy of the embedding is cut to `rows`, and takes those that it lacks from `base`.

        A row is a token. The layouts differ in the number of unused rows at the end.
        """
        if name in TIED and tensor.shape[1:] == base.shape[1:]:
            return torch.cat([tensor, base[len(tensor) :].to(tensor.dtype)])[:rows]
        if tensor.shape != base.shape:
            raise self.misfit(name)
        return tensor

    def with_tokens(self, name: str, weight: Tensor, trained: Mapping[int, Tensor]) -> Tensor:
        """Return an embedding or a head, [V, D], with trained rows, which may also follow the last row."""
        ids = sorted(trained)
        rows = torch.stack([trained[id] for id in ids]).float()
        new = [id for id in ids if id >= len(weight)]
        if rows.shape[1:] != weight.shape[1:] or new != [*range(len(weight), len(weight) + len(new))]:
            raise self.misfit(name)
        extended = torch.cat([weight.float(), weight.new_zeros(len(new), *weight.shape[1:]).float()])
        return extended.index_copy(0, torch.tensor(ids), rows)

    def misfit(self, name: str) -> CheckpointError:
        """Return the error for a change of a weight that this checkpoint does not have."""
        base = self.config.get("base_model_name_or_path")
        return CheckpointError(
            f"the adapter {self.source.name} does not fit this checkpoint at {name}; "
            f"export the checkpoint that it was trained on{f', {base}' if base else ''}"
        )


def tied_to(name: str, weights: Mapping[str, Tensor], besides: Container[str]) -> list[str]:
    """Return the name, and those of the other copies of the embedding that are the same tensor, besides some."""
    copies = [copy for copy in TIED if copy != name and weights[copy] is weights[name] and copy not in besides]
    return [name, *copies]


def read_adapter(source: str, notes: list[str]) -> Adapter:
    """Read the adapter in a directory or on the hub. Raise CheckpointError if it is not a plain LoRA."""
    found = fetch(source, None, "adapter_model.safetensors", "adapter_model.bin")
    nested = sorted(path.parent.name for path in found.directory.glob(f"*/{CONFIG}"))
    if nested and not (found.directory / CONFIG).exists():
        raise CheckpointError(f"{found.name} holds adapters in folders ({', '.join(nested)}); give one of them")
    config = read_config(found)
    files = weight_files.find(found.directory, FILES, notes)
    changes = read_changes(weight_files.read(files, notes), config, found.name)
    if not changes.names:
        raise CheckpointError(f"the adapter {found.name} is empty; save it again with peft")
    return Adapter(found, config, files, changes)


def read_unmerged(found: Source, files: list[Path], weights: Mapping[str, Tensor]) -> Adapter | None:
    """Return the adapter whose layers are still in a checkpoint's weights, together with these, or None."""
    added = [name for name in weights if lora.is_added(name)]
    if not added:
        return None
    if any("lora_" in name for name in added) and not (found.directory / CONFIG).exists():
        raise CheckpointError(
            f"{found.name} holds LoRA layers that were never merged, such as {added[0]}, but no {CONFIG} with their "
            "scale; add this file, or save the checkpoint after peft's merge_and_unload()"
        )
    config = read_config(found) if (found.directory / CONFIG).exists() else {}
    return Adapter(found, config, files, read_changes(weights, config, found.name))


def read_changes(tensors: Mapping[str, Tensor], config: Mapping[str, Any], name: str) -> Changes:
    """Return what `lora` reads. Raise CheckpointError if the config is missing a setting or has an invalid one."""
    try:
        return lora.read_changes(tensors, config, name)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError, re.error) as error:
        raise CheckpointError(
            f"a setting in {CONFIG} of {name} is missing or invalid ({type(error).__name__}: {error}); "
            "save the adapter again with peft"
        ) from error


def read_config(found: Source) -> dict[str, Any]:
    """Return adapter_config.json. Raise CheckpointError if it asks for more than the tensors and their names show."""
    config = read_json(found.directory / CONFIG)
    kind, initialization = config.get("peft_type"), config.get("init_lora_weights")
    if kind not in ("LORA", "TRAINABLE_TOKENS"):
        raise CheckpointError(
            f"the adapter {found.name} has peft_type {kind}, but only LoRA can be merged here; {REMEDY}"
        )
    unknown = sorted(key for key in config.keys() - HARMLESS if config[key])
    if initialization not in PLAIN_INITIALIZATIONS:
        unknown.append(f"init_lora_weights={initialization}")
    if unknown:
        raise CheckpointError(
            f"the adapter {found.name} sets {unknown[0]}, but only LoRA and DoRA can be merged here; {REMEDY}"
        )
    return config
