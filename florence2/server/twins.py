"""The models that stream, derived from an exported repository: for `NAME_ensemble` the twin `NAME_stream`.

`florence2 serve --stream` adds them to the mirror it serves. For a server of another kind:

    python -m florence2.server.twins REPOSITORY FOLDER
    tritonserver --model-repository REPOSITORY --model-repository FOLDER

The twin's decoder is the exported one under another name, with links to the same weights (docs/adr/0005).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from florence2.errors import Florence2Error, ServerError
from florence2.server.folder import copy_code_and_link_data

CONFIG = "config.pbtxt"
# What postprocess needs of preprocess. Triton joins the nth writings of a step's inputs: what preprocess writes once
# would go with the first response of the decoder alone, so the decoder hands it on with each.
HANDED_THROUGH = {"ANSWER_KEY": "answer_key", "IMAGE_SIZE": "image_size"}
# A greedy answer takes a row: eight at once, with a third of the other decoder's memory for keys and values.
ROWS = "8"


def write_twins(repository: Path, target: Path) -> None:
    """Raises ServerError if the repository holds no exported ensemble, or one that cannot be read."""
    ensembles = sorted(repository.glob(f"*_ensemble/{CONFIG}"))
    if not ensembles:
        raise ServerError(f"{repository} holds no ensemble of which the answers could be streamed")
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
    """The decoder's config as a decoupled model's: many responses to a request, with what the next step needs."""
    twin = ModelConfig()
    twin.CopyFrom(config)
    twin.name = f"{name}_decoder_stream"
    twin.model_transaction_policy.decoupled = True
    twin.parameters["rows"].string_value = ROWS
    twin.input.add(name="IMAGE_SIZE", data_type="TYPE_INT32", dims=[2])
    twin.output.add(name="IMAGE_SIZE", data_type="TYPE_INT32", dims=[2])
    twin.output.add(name="ANSWER_KEY", data_type="TYPE_STRING", dims=[1])
    return twin


def stream_ensemble(config: ModelConfig, name: str) -> ModelConfig:
    """The ensemble over the twin of its decoder. Inputs, outputs and the other steps are the same."""
    twin = ModelConfig()
    twin.CopyFrom(config)
    twin.name = f"{name}_stream"
    decoder, postprocess = twin.ensemble_scheduling.step[2:]
    decoder.model_name = f"{name}_decoder_stream"
    for tensor, wire in HANDED_THROUGH.items():
        decoder.input_map[tensor] = wire
        decoder.output_map[tensor] = f"{wire}_again"
        postprocess.input_map[tensor] = f"{wire}_again"
    postprocess.input_map["FINISH_REASON"] = decoder.output_map["FINISH_REASON"]
    twin.parameters.clear()  # the story is told by the ensemble that was exported
    return twin


def read_config(path: Path) -> ModelConfig:
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (OSError, ValueError, text_format.ParseError) as error:
        raise ServerError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _write(model: Path, config: ModelConfig) -> None:
    """In a new folder, in place of what an earlier start left."""
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir(parents=True)
    (model / CONFIG).write_text(text_format.MessageToString(config), encoding="utf-8")


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m florence2.server.twins REPOSITORY FOLDER", file=sys.stderr)
        return 2
    try:
        write_twins(Path(arguments[0]), Path(arguments[1]))
    except Florence2Error as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
