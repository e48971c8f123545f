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
from safetensors.torch import load_file
from torch import Tensor

from florence2.config import read_json
from florence2.errors import CheckpointError
from florence2_export.hub import one_line, refuse_pointer

CODE = re.compile(r"Unsupported (global|class|operand)|GLOBAL (\S+)")
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt")
# What a training program saves next to the weights.
TRAINING = re.compile(r"(optimizer|scheduler|scaler|rng_state|training_args|adapter_model|.*optim_states).*")
# Where training programs put the weights in a file with more in it.
INNER = ("state_dict", "model_state_dict", "model", "module", "net", "params", "weights")


def find(directory: Path, names: Iterable[str], notes: list[str] | None = None) -> list[Path]:
    """Return the files of the first of `names` that exists: whole, as `NAME.index.json` with its shards, or as shards.

    `names` has the order of transformers, so that both read the same weights. With `notes`, a single weight file of
    another name will do, which is noted. Raise CheckpointError if there are none.
    """
    for name in names:
        stem, _, suffix = name.rpartition(".")
        if (directory / name).exists():
            return [directory / name]
        if (directory / f"{name}.index.json").exists():
            return _listed(directory, f"{name}.index.json")
        shards = sorted(directory.glob(f"{stem}-*-of-*.{suffix}"))
        counted = re.fullmatch(r".*-of-0*(\d+)\..*", shards[0].name) if shards else None
        if counted and len(shards) != int(counted[1]):
            raise CheckpointError(
                f"shards are missing in {directory}: it holds {len(shards)} files such as {shards[0].name} and no "
                f"{name}.index.json; download or save the checkpoint again"
            )
        if counted and notes is not None:
            notes.append(f"{name}.index.json is missing; the {len(shards)} shards are read without it")
        if counted:
            return shards
    sentence = f"{directory} holds no {' or '.join(names)}"
    if notes is None:
        raise CheckpointError(f"{sentence}; choose a directory with weights")
    others = _weight_files(directory)
    if len(others) == 1:
        notes.append(f"the weights are read from {others[0].name}")
        return others
    if others:
        listed = " and ".join(file.name for file in others[:2])
        raise CheckpointError(f"{sentence}, but several other weight files, {listed}; leave only one of them there")
    inner = sorted(path.name for path in directory.iterdir() if path.is_dir() and _weight_files(path))
    if inner:
        raise CheckpointError(f"{sentence}, but some of its folders do; add --subfolder {' or '.join(inner)}")
    raise CheckpointError(f"{sentence}; choose a directory with weights")


def _weight_files(directory: Path) -> list[Path]:
    """Return the files of any name that look like those of weights."""
    files = sorted(file for pattern in WEIGHTS for file in directory.glob(pattern))
    return [file for file in files if not TRAINING.fullmatch(file.name)]


def _listed(directory: Path, index: str) -> list[Path]:
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


def read(files: Iterable[Path], notes: list[str] | None = None) -> dict[str, Tensor]:
    """Return all tensors in the files, as stored. Raise CheckpointError if a file is damaged."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        refuse_pointer(file)
        try:
            tensors |= load_file(file) if file.suffix == ".safetensors" else _unpickled(file, notes)
        except CheckpointError:
            raise
        except Exception as error:  # damaged files make the loaders raise many types of exceptions
            raise CheckpointError(
                f"{file.name} in {file.parent} is damaged or incomplete ({one_line(error)}); download or save it again"
            ) from error
    return tensors


def _unpickled(file: Path, notes: list[str] | None) -> dict[str, Tensor]:
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
    left_out: list[str] = []
    while isinstance(content, dict) and (inner := next((k for k in INNER if isinstance(content.get(k), dict)), None)):
        left_out += [str(key) for key in content if key != inner]
        content = content[inner]
    entries = content if isinstance(content, dict) else {}
    tensors = {str(name): value.detach() for name, value in entries.items() if isinstance(value, Tensor)}
    left_out += [str(name) for name in entries if str(name) not in tensors]
    if not tensors:
        raise CheckpointError(
            f"{file.name} in {file.parent} holds something other than tensors by name; save the model's state_dict"
        )
    if left_out and notes is not None:
        notes.append(f"{file.name} holds more than weights; left out: {', '.join(left_out[:5])}")
    return tensors


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
