"""`florence2 calibrate`: what it refuses, and what it writes."""

import json
import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc.model_config_pb2 import ModelConfig

from florence2.calibration import Calibration, Curve
from florence2_client import cli
from florence2_client.cli import calibrate, info
from florence2_client.labeled import read_coco

TEMPLATE = Path(__file__).parents[4] / "model_repository"
ENSEMBLE = "florence2_ensemble/config.pbtxt"
POSTPROCESS = "florence2_postprocess/1"


@pytest.fixture
def repository(tmp_path):
    """A repository of configurations, as export writes them."""
    folder = tmp_path / "models"
    shutil.copytree(TEMPLATE, folder)
    config = text_format.Parse((folder / ENSEMBLE).read_text(), ModelConfig())
    config.parameters["checkpoint"].string_value = "a checkpoint"
    (folder / ENSEMBLE).write_text(f"# Written by a test\n{text_format.MessageToString(config)}")
    return folder


@pytest.fixture
def labeled(tmp_path):
    """A folder of 60 images with two dogs each."""
    folder = tmp_path / "labeled"
    folder.mkdir()
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    (folder / "annotations.json").write_text(json.dumps({
        "images": [{"id": number, "file_name": "a.png"} for number in range(60)],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [
            {"image_id": number, "category_id": 1, "bbox": box}
            for number in range(60) for box in ([1, 1, 9, 9], [20, 20, 9, 9])
        ],
    }))  # fmt: skip
    return folder


@pytest.fixture
def answers(monkeypatch):
    """Let a client answer with one right object of confidence 0.8 and one wrong one of 0.4, unless told otherwise."""
    given = {"objects": [("dog", (1, 1, 10, 10), 0.8), ("dog", (0, 0, 40, 30), 0.4)]}

    class FakeClient:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def run_many(self, questions, concurrency):
            for _ in questions:
                found = [calibrate_found(*one) for one in given["objects"]]
                yield type("Reply", (), {"unwrap": lambda self, found=found: type("R", (), {"objects": found})()})()

    def calibrate_found(label, box, confidence):
        from florence2_client import Found

        return Found(label, box, confidence=confidence)

    monkeypatch.setattr(calibrate, "Client", lambda **_: FakeClient())
    monkeypatch.setattr(calibrate, "ask_server", lambda *_: [])
    return given


def run(repository, *arguments):
    return cli.main(["calibrate", *map(str, arguments), "--repository", str(repository), "--url", "http://localhost:1"])


def test_it_stores_the_maps_and_says_so(repository, labeled, answers, capsys):
    """In the folder of the postprocess model, and in the ensemble's parameters, which info shows."""
    assert run(repository, labeled, "--tasks", "od") == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["od", "120", "50%", "0.300", "0.000"] in rows and "restart the server" in out
    curve = Calibration.load(repository / POSTPROCESS).curves["<OD>"]
    assert curve.objects == 120 and curve([0.4, 0.8]) == pytest.approx([0, 1])
    [model] = info.read_repository(repository)
    assert model.description == {"checkpoint": "a checkpoint", "calibrated": "od"}
    assert (repository / ENSEMBLE).read_text().startswith("# Written by a test\n")
    assert run(repository, labeled, "--tasks", "region_proposal") == 2  # labels are wrong: a proposal has none
    assert run(repository, "--reset") == 0
    assert not (repository / POSTPROCESS / "calibration.json").exists()
    assert info.read_repository(repository)[0].description == {"checkpoint": "a checkpoint"}


def test_other_tasks_keep_their_maps(repository, labeled, answers):
    Calibration({"<OPEN_VOCABULARY_DETECTION>": Curve([0.1], [0.2], 9)}).save(repository / POSTPROCESS)
    assert run(repository, labeled, "--tasks", "od") == 0
    assert set(Calibration.load(repository / POSTPROCESS).curves) == {"<OD>", "<OPEN_VOCABULARY_DETECTION>"}


@pytest.mark.parametrize(
    ("objects", "sentence"),
    [
        ([("dog", (1, 1, 10, 10), 0.8)], "60 objects in the images, 60 of them right; a map needs at least 100"),
        ([("horse", (1, 1, 10, 10), 0.8)] * 2, "od never names a label of the images (dog); it names horse"),
        ([("dog", (1, 1, 10, 10), None)] * 2, "no confidences; export its repository again"),
        ([], "od never names a label of the images (dog); it names nothing"),
    ],
)
def test_answers_that_cannot_be_used_are_explained(repository, labeled, answers, capsys, objects, sentence):
    """And nothing is written."""
    answers["objects"] = objects
    assert run(repository, labeled, "--tasks", "od") == 2
    assert sentence in capsys.readouterr().err
    assert not (repository / POSTPROCESS / "calibration.json").exists()


def test_categories_that_a_task_never_names_are_noted(repository, labeled, answers, capsys):
    coco = json.loads((labeled / "annotations.json").read_text())
    coco["categories"].append({"id": 2, "name": "zebra"})
    coco["annotations"].append({"image_id": 1, "category_id": 2, "bbox": [30, 3, 4, 4]})
    (labeled / "annotations.json").write_text(json.dumps(coco))
    assert run(repository, labeled, "--tasks", "od") == 0
    assert "od never names zebra" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tasks", "caption"], "caption does not answer with boxes; the tasks that do are od, dense"),
        (["--tasks", "ocr_with_region"], "does not answer with boxes"),
        (["--tasks", ","], "names no task"),
        (["--model", "other"], "has no model other; name one of florence2_ensemble"),
        (["--annotations", "no.json"], "no.json cannot be read"),
    ],
)
def test_mistakes_are_explained(repository, labeled, answers, capsys, arguments, sentence):
    assert run(repository, labeled, *arguments) == 2
    assert sentence in capsys.readouterr().err


def test_a_folder_is_needed(repository, capsys):
    assert run(repository) == 2
    assert "LABELED_DIR is missing" in capsys.readouterr().err
    assert run(repository, repository / "nowhere") == 2
    assert "there is no directory" in capsys.readouterr().err


def test_a_calibrated_server_is_refused(repository, labeled, answers, monkeypatch, capsys):
    """Its confidences are no longer those of the model."""
    told = [info.Model("florence2_ensemble", {"calibrated": "od"})]
    monkeypatch.setattr(calibrate, "ask_server", lambda *_: told)
    assert run(repository, labeled) == 2
    assert "is calibrated already" in capsys.readouterr().err


def test_a_repository_that_cannot_be_written_is_refused_first(repository, labeled, monkeypatch, capsys):
    """Before any image is sent."""
    monkeypatch.setattr(calibrate.os, "access", lambda *_: False)
    assert run(repository, labeled) == 2
    assert "cannot be written: permission denied" in capsys.readouterr().err
    assert len(read_coco(labeled)) == 60


@pytest.mark.parametrize("box", [[1, 1, -9, 9], [1, 1, 9, float("nan")], [float("inf"), 1, 9, 9], [1, 1, 9, 1e999]])
def test_a_box_that_is_none_is_refused(repository, labeled, answers, capsys, box):
    """It would only make the model look worse."""
    coco = json.loads((labeled / "annotations.json").read_text())
    coco["annotations"][3]["bbox"] = box
    (labeled / "annotations.json").write_text(json.dumps(coco))
    assert run(repository, labeled) == 2
    assert "is not a COCO file of boxes" in capsys.readouterr().err
