"""Derive the models that stream answers from an exported repository: `NAME_stream` for each `NAME_ensemble`.

`florence2 serve --stream` adds them to the repository that it serves. For another server, run:

    python -m florence2.server.streaming REPOSITORY FOLDER
    tritonserver --model-repository REPOSITORY --model-repository FOLDER

The streaming decoder is the exported one under another name, with links to the same weights
(docs/adr/0005-streaming-models-are-derived.md). `contract.STREAM_STEPS` wires the ensemble.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from florence2 import contract
from florence2.errors import Florence2Error, ServerError
from florence2.server.folder import copy_code_and_link_data

CONFIG = "config.pbtxt"
# A greedy answer takes one row, so eight requests run at once, with a third of the other decoder's memory for keys and
# values.
ROWS = "8"


def write_streaming_models(repository: Path, target: Path) -> None:
    """Write `NAME_stream` and `NAME_decoder_stream` into `target` for each ensemble of the repository.

    Raise ServerError if the repository contains no exported ensemble, or one that cannot be read.
    """
    ensembles = sorted(repository.glob(f"*_ensemble/{CONFIG}"))
    if not ensembles:
        raise ServerError(
            f"{repository} contains no ensemble whose answers could be streamed; "
            f"create one with: florence2 export CHECKPOINT --repository {repository}"
        )
    for path in ensembles:
        name = path.parent.name.removesuffix("_ensemble")
        decoder = repository / f"{name}_decoder"
        ensemble = read_config(path)
        _write(target / f"{name}_stream", stream_ensemble(ensemble, name))
        (target / f"{name}_stream" / "1").mkdir()
        _write(target / f"{name}_decoder_stream", stream_decoder(read_config(decoder / CONFIG), name))
        for version in (path for path in decoder.iterdir() if path.name.isdecimal()):
            copy_code_and_link_data(version, target / f"{name}_decoder_stream" / version.name)


def stream_decoder(config: ModelConfig, name: str) -> ModelConfig:
    """Return the decoder's config as a decoupled model's: each response carries all that postprocess needs."""
    stream = ModelConfig()
    stream.CopyFrom(config)
    stream.name = f"{name}_decoder_stream"
    stream.model_transaction_policy.decoupled = True
    stream.parameters["rows"].string_value = ROWS
    _add_missing(stream.input, contract.STREAM_DECODER.inputs)
    _add_missing(stream.output, contract.STREAM_DECODER.outputs)
    return stream


def _add_missing(tensors: Any, wanted: Iterable[contract.Tensor]) -> None:
    present = {tensor.name for tensor in tensors}
    for tensor in wanted:
        if tensor.name not in present:
            tensors.add(name=tensor.name, data_type=f"TYPE_{tensor.type}", dims=tensor.dims)


def stream_ensemble(config: ModelConfig, name: str) -> ModelConfig:
    """Return the ensemble over the streaming decoder. Its inputs, outputs and other steps are the same."""
    stream = ModelConfig()
    stream.CopyFrom(config)
    stream.name = f"{name}_stream"
    for step, wiring in zip(stream.ensemble_scheduling.step, contract.wire(contract.STREAM_STEPS), strict=True):
        if wiring.model is contract.STREAM_DECODER:
            step.model_name = f"{name}_decoder_stream"
        step.input_map.clear()
        step.input_map.update(wiring.inputs)
        step.output_map.clear()
        step.output_map.update(wiring.outputs)
    stream.parameters.clear()  # they describe the export, as the exported ensemble already does
    return stream


def read_config(path: Path) -> ModelConfig:
    """Return a model's configuration. Raise ServerError if it cannot be read."""
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (OSError, ValueError, text_format.ParseError) as error:
        raise ServerError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _write(model: Path, config: ModelConfig) -> None:
    """Write a model's folder, replacing what an earlier run left."""
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir(parents=True)
    (model / CONFIG).write_text(text_format.MessageToString(config), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Write the streaming models of a repository into a folder; return the exit code."""
    if len(arguments) != 2:
        print("usage: python -m florence2.server.streaming REPOSITORY FOLDER", file=sys.stderr)
        return 2
    try:
        write_streaming_models(Path(arguments[0]), Path(arguments[1]))
    except Florence2Error as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
