"""Find, read and hash the weight files of checkpoints and adapters: safetensors or pickles, whole or in shards.

`checkpoint` and `adapter` call it. It runs no code from the files and maps tensors instead of copying them into memory.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from florence2.config import read_json
from florence2.errors import CheckpointError
from florence2_export.hub import one_line

CODE = re.compile(r"Unsupported (global|class|operand)|GLOBAL (\S+)")


def find(directory: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of the first of `names` that exists, whole or as `NAME.index.json` with its shards.

    `names` has the order of transformers, so that both read the same weights. Raise CheckpointError if there are none.
    """
    for name in names:
        if (directory / name).exists():
            return [directory / name]
        if (directory / f"{name}.index.json").exists():
            return _shards(directory, f"{name}.index.json")
    raise CheckpointError(f"{directory} holds no {' or '.join(names)}; choose a directory with weights")


def _shards(directory: Path, index: str) -> list[Path]:
    """Return the files that an index lists. Raise CheckpointError if one is missing or outside of the directory."""
    listed = read_json(directory / index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{index} in {directory} lists no weights; download or save the checkpoint again")
    shards = sorted({str(shard) for shard in listed.values()})
    for shard in shards:
        if Path(shard).name != shard:
            raise CheckpointError(
                f"{index} in {directory} names {shard}, a file outside of the checkpoint, so it is refused; "
                "use a checkpoint from a source you trust"
            )
        if not (directory / shard).exists():
            raise CheckpointError(f"{shard} is missing in {directory}, but {index} lists it; add this file")
    return [directory / shard for shard in shards]


def read(files: Iterable[Path]) -> dict[str, Tensor]:
    """Return all tensors in the files, as stored. Raise CheckpointError if a file is damaged."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file) if file.suffix == ".safetensors" else _unpickled(file)
        except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
            raise CheckpointError(
                f"{file.name} in {file.parent} is damaged or incomplete ({one_line(error)}); download or save it again"
            ) from error
    return tensors


def _unpickled(file: Path) -> dict[str, Tensor]:
    """Return the tensors in a pickle, read in the mode of torch.load that builds only tensors and plain containers."""
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        if CODE.search(str(error)):
            raise CheckpointError(
                f"{file.name} in {file.parent} would run code while it is read, so it is refused; "
                "save the checkpoint as safetensors on a machine that trusts it"
            ) from error
        raise CheckpointError(
            f"{file.name} in {file.parent} is damaged or no weight file; download or save it again"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise CheckpointError(
            f"{file.name} in {file.parent} holds something other than tensors by name; save the model's state_dict"
        )
    return {str(name): tensor.detach() for name, tensor in content.items()}


def content_hash(files: Iterable[Path]) -> str:
    """Return the SHA-256 of one file, as the hub shows it, or for several files that of their `sha256sum` listing."""
    digests = {}
    for file in files:
        with file.open("rb") as stream:
            digest = hashlib.sha256()
            while block := stream.read(1 << 20):
                digest.update(block)
        digests[file.name] = digest.hexdigest()
    if len(digests) == 1:
        return next(iter(digests.values()))
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(listing.encode()).hexdigest()
