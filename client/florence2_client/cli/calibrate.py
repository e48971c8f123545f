"""`florence2 calibrate`: make confidences the shares of objects that are right, by labeled images."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from florence2.calibration import FILE_NAME, Calibration, Curve, expected_calibration_error, fit
from florence2.errors import CheckpointError, Florence2Error, InvalidPrompt, InvalidRequest
from florence2.tasks import TASKS, Grammar, TaskInput
from florence2_client.calibration import Judged, judge
from florence2_client.cli.arguments import (
    FILES,
    MOST_IN_FLIGHT,
    Once,
    add_connection,
    connection,
    number,
    require_with,
    require_without,
)
from florence2_client.cli.console import complain, table
from florence2_client.cli.info import ask_server, read_repository
from florence2_client.client import Client
from florence2_client.labeled import LabeledImage, read_coco
from florence2_client.tasks import parse_task
from florence2_client.transports import parse_url

EXAMPLES = """\
examples:
  florence2 calibrate labeled/                          images and annotations.json, in COCO's format
  florence2 calibrate labeled/ --tasks od,open_vocabulary_detection --repository models
  florence2 calibrate valid/ --url http://gpu-box:8000 --repository /srv/models     a server that is already running

Restart the server afterwards: it reads the calibration when it starts. --reset removes the calibration.
"""
CALIBRATED = "calibrated"  # the parameter of the ensemble that names the calibrated tasks
DEFAULT_TASKS = ("<OD>", "<REGION_PROPOSAL>")
LEAST_OBJECTS = 100
LEAST_OF_EACH = 10  # right and wrong ones
GRAMMARS = (Grammar.LABELED_BOXES, Grammar.BARE_BOXES, Grammar.GROUNDING, Grammar.BOXES_OR_POLYGONS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Calibrate confidences: run labeled images through the model, and fit a monotone map for each task from the\n"
        "model's confidence to the share of objects that are right (same label, overlap of at least 0.5)."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(command=calibrate)
    folder = parser.add_argument(
        "folder", type=Path, nargs="?", metavar="LABELED_DIR", help="images, and a COCO .json file of boxes in them"
    )  # fmt: skip
    folder.complete = FILES  # type: ignore[attr-defined]
    parser.add_argument("--annotations", action=Once, type=Path, metavar="FILE.json",
                        help="the COCO file (default: the one in LABELED_DIR)")  # fmt: skip
    parser.add_argument("--tasks", action="extend", type=_tasks, metavar="T,T",
                        help="tasks that answer with boxes (default: od,region_proposal)")  # fmt: skip
    parser.add_argument("--repository", type=Path, default=Path("build/model_repository"), metavar="DIR",
                        help="made by export; it is calibrated (default: %(default)s)")  # fmt: skip
    parser.add_argument("--reset", action="store_true", help="remove the calibration of the repository")
    parser.add_argument("--concurrency", type=number(int, 1, MOST_IN_FLIGHT), default=8, metavar="N",
                        help="requests in flight (default: %(default)s)")  # fmt: skip
    add_connection(parser, optional=True)


def calibrate(options: argparse.Namespace) -> int:
    """Fit and store the maps, and print what they change."""
    require_with(options, ["--header", "--ca"], "--url")
    require_without(options, ["LABELED_DIR", "--annotations", "--tasks", "--concurrency"], "--reset")
    ensemble = _require_ensemble(options.repository, options.model)
    folder = _postprocess_folder(options.repository, options.model)
    if not os.access(folder, os.W_OK) or not os.access(ensemble, os.W_OK):
        raise InvalidRequest(f"{options.repository} cannot be written: permission denied")
    if options.reset:
        _store(folder, ensemble, Calibration())
        print(f"{options.repository} is no longer calibrated; restart its server")
        return 0
    if options.folder is None:
        raise InvalidRequest("LABELED_DIR is missing; see `florence2 calibrate --help`")
    images = read_coco(options.folder, options.annotations)
    with _client(options, folder) as client:
        tasks = dict.fromkeys(options.tasks or DEFAULT_TASKS)
        judged = {task: judge(client, images, task, options.concurrency) for task in tasks}
    _require_known_labels(images, judged)
    curves = {task: _fitted(task, found) for task, found in judged.items()}
    calibration = Calibration({**Calibration.load(folder).curves, **curves})
    _store(folder, ensemble, calibration)
    print(*_report(judged), sep="\n")
    print(f"wrote {folder / FILE_NAME}; restart the server to use it")
    return 0


def _require_ensemble(repository: Path, name: str) -> Path:
    """Return the config.pbtxt of the ensemble. Raise InvalidRequest if the repository holds others only."""
    names = [model.name for model in read_repository(repository)]
    if name not in names:
        raise InvalidRequest(f"{repository} has no model {name}; name one of {', '.join(names)} with --model")
    return repository / name / "config.pbtxt"


def _postprocess_folder(repository: Path, ensemble: str) -> Path:
    """Return the folder of the postprocess model's newest version."""
    model = repository / f"{ensemble.removesuffix('_ensemble')}_postprocess"
    versions = [path for path in model.glob("*") if path.name.isdecimal()]
    if not versions:
        raise CheckpointError(f"{repository} has no model {model.name}")
    return max(versions, key=lambda path: int(path.name))


@contextlib.contextmanager
def _client(options: argparse.Namespace, folder: Path) -> Iterator[Client]:
    """Yield a client of a server without calibration: the one at --url, or one that runs meanwhile."""
    if options.url:
        to = connection(options)
        for model in ask_server(parse_url(to["url"], to["headers"], to["tls"]), options.model):
            if model.name == options.model and CALIBRATED in model.description:
                raise InvalidRequest(
                    f"the server at {options.url} is calibrated already; remove its calibration with --reset and "
                    "restart it, or leave out --url"
                )
        with Client(**to) as client:
            yield client
        return
    try:
        from florence2.server.embedded import EmbeddedServer
        from florence2.server.options import ServingOptions
    except ModuleNotFoundError as error:
        raise Florence2Error(f"the server needs more packages ({error}); name a running one with --url") from error
    file, aside = folder / FILE_NAME, folder / f"{FILE_NAME}.aside"
    if file.exists():
        file.replace(aside)
    try:
        with (
            EmbeddedServer(ServingOptions.on_free_ports(options.repository)) as server,
            Client(server.grpc_url, options.model) as client,
        ):
            yield client
    finally:
        if aside.exists():
            aside.replace(file)


def _fitted(task: str, judged: Judged) -> Curve:
    """Return the map of a task. Raise InvalidRequest if there are too few objects to fit one."""
    right = sum(judged.correct)
    if len(judged.correct) < LEAST_OBJECTS or not LEAST_OF_EACH <= right <= len(judged.correct) - LEAST_OF_EACH:
        raise InvalidRequest(
            f"{TASKS[task].name} found {len(judged.correct):,} objects in the images, {right:,} of them right; a map "
            f"needs at least {LEAST_OBJECTS}, with {LEAST_OF_EACH} right and {LEAST_OF_EACH} wrong ones: add images"
        )
    return fit(judged.confidences, judged.correct)


def _require_known_labels(images: Sequence[LabeledImage], judged: Mapping[str, Judged]) -> None:
    """Raise InvalidRequest if a task that chooses its labels shares none with the images; note labels that it lacks."""
    labels = {label.casefold() for image in images for label, _ in image.objects}
    for task, found in judged.items():
        if TASKS[task].grammar is Grammar.LABELED_BOXES and TASKS[task].input is TaskInput.NONE:
            never = sorted(labels - {label.casefold() for label in found.labels})
            if len(never) == len(labels):
                raise InvalidRequest(
                    f"{TASKS[task].name} never names a label of the images ({', '.join(never[:5])}); it names "
                    f"{', '.join(sorted(set(found.labels))[:5]) or 'nothing'}: use the names that the model uses"
                )
            if never:
                complain(f"note: {TASKS[task].name} never names {', '.join(never[:10])}")


def _store(folder: Path, config: Path, calibration: Calibration) -> None:
    """Write the map, and name the calibrated tasks in the ensemble's parameters, which `florence2 info` shows."""
    text = config.read_text(encoding="utf-8")
    model = text_format.Parse(text, ModelConfig())
    model.parameters.pop(CALIBRATED, None)
    if calibration.curves:
        model.parameters[CALIBRATED].string_value = ", ".join(TASKS[task].name for task in calibration.curves)
    calibration.save(folder)
    heading = [line for line in text.splitlines() if line.startswith("#")]
    config.write_text("\n".join([*heading, text_format.MessageToString(model)]), encoding="utf-8")


def _report(judged: Mapping[str, Judged]) -> list[str]:
    """Return what calibration changes; its error is measured on half of the objects, with a map of the others."""
    rows = [("task", "objects", "right", "calibration error", "calibrated")]
    for task, found in judged.items():
        order = np.random.default_rng(0).permutation(len(found.correct))
        given, correct = np.array(found.confidences)[order], np.array(found.correct)[order]
        before = expected_calibration_error(given, correct)
        after = expected_calibration_error(fit(given[::2], correct[::2])(given[1::2]), correct[1::2])
        share = correct.mean()
        rows.append((TASKS[task].name, f"{len(correct):,}", f"{share:.0%}", f"{before:.3f}", f"{after:.3f}"))
    return table(rows)


def _tasks(names: str) -> list[str]:
    """Return the tokens. Raise InvalidPrompt on a task that does not answer with boxes."""
    tokens = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        task = parse_task(name).known
        if task is None or task.grammar not in GRAMMARS:
            known = ", ".join(row.name for row in TASKS.values() if row.grammar in GRAMMARS)
            raise InvalidPrompt(f"{name} does not answer with boxes; the tasks that do are {known}")
        tokens.append(task.token)
    if not tokens:
        raise InvalidPrompt("--tasks names no task")
    return list(dict.fromkeys(tokens))
