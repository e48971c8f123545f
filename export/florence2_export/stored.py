"""Weight files of checkpoints and adapters: safetensors or pickles, whole or in shards. Runs none of their code.

Called by `checkpoint` and `adapter`. Tensors are mapped from the files, not copied into memory.
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


def weight_files(directory: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of the first of `names` that exists, whole or as `NAME.index.json` with its shards.

    The order is that of transformers, so that both read the same weights. Raise CheckpointError if there are none.
    """
    for name in names:
        if (directory / name).exists():
            return [directory / name]
        if (directory / f"{name}.index.json").exists():
            return _shards(directory, f"{name}.index.json")
    raise CheckpointError(f"{directory} holds no {' or '.join(names)}")


def _shards(directory: Path, index: str) -> list[Path]:
    listed = read_json(directory / index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{index} in {directory} lists no weights")
    shards = sorted({str(shard) for shard in listed.values()})
    for shard in shards:
        if Path(shard).name != shard:
            raise CheckpointError(f"{index} in {directory} names {shard}, which is outside of the checkpoint")
        if not (directory / shard).exists():
            raise CheckpointError(f"{shard} is missing in {directory}")
    return [directory / shard for shard in shards]


def read_tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """Return all tensors of the files, as stored. Raise CheckpointError if a file is damaged."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file) if file.suffix == ".safetensors" else _unpickled(file)
        except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
            raise CheckpointError(
                f"{file.name} in {file.parent} is damaged or incomplete: {one_line(error)}"
            ) from error
    return tensors


def _unpickled(file: Path) -> dict[str, Tensor]:
    """Return the content of torch.load in the mode that builds only tensors and plain containers."""
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        if CODE.search(str(error)):
            raise CheckpointError(
                f"{file.name} in {file.parent} wants to run code when it is read, so it is refused; "
                "save the checkpoint as safetensors on a machine that trusts it"
            ) from error
        raise CheckpointError(f"{file.name} in {file.parent} is damaged or not a file of weights") from error
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise CheckpointError(f"{file.name} in {file.parent} holds something other than weights by name")
    return {str(name): tensor.detach() for name, tensor in content.items()}


def content_hash(files: Iterable[Path]) -> str:
    """Return the SHA-256 of one file, as the hub shows it; for several, that of their listing by `sha256sum`."""
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
