"""Test `florence2 export` end to end on the bundled checkpoint."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from florence2.config import ModelConfig
from florence2.engine.engine import Engine
from florence2.errors import CheckpointError
from florence2_client.cli import main
from florence2_export import pipeline
from florence2_export.parity import StageReport
from florence2_export.pipeline import export_checkpoint

ROOT = Path(__file__).parents[3]
GENERATED = {
    "florence2_preprocess": {"florence2.json", "tokenizer.json", "model.py"},
    "florence2_vision": {"model.onnx", "model.onnx.data"},
    "florence2_decoder": {"florence2.json", "model.safetensors", "model.py"},
    "florence2_postprocess": {"florence2.json", "tokenizer.json", "model.py"},
    "florence2_ensemble": {".keep"},
}


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_an_export_is_a_complete_repository(exported, checkpoint):
    """Each model has its files, which any user can read and which hold the checkpoint's settings."""
    repository, _ = exported
    for model, files in GENERATED.items():
        assert {path.name for path in (repository / model / "1").iterdir()} == files
    assert {path.name for path in repository.iterdir()} == GENERATED.keys()
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in repository.rglob("*"))
    for path in repository.rglob("florence2.json"):
        assert ModelConfig.load(path) == checkpoint.config
    assert Engine.load(repository / "florence2_decoder" / "1").config == checkpoint.config


def test_the_exported_tokenizer_is_the_checkpoints(exported, demo):
    """It gives the same ids and text as the one that transformers reads from the checkpoint."""
    theirs = AutoTokenizer.from_pretrained(demo)
    ours = Tokenizer.from_file(str(exported[0] / "florence2_preprocess" / "1" / "tokenizer.json"))
    for text in ("<s>What is the region <loc_5><loc_999>?</s>", "<s>café\n中文 </s>"):
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, skip_special_tokens=False)


def test_the_report_shows_every_stage_with_its_time(exported):
    """It has one line for each step and for each compared stage."""
    repository, said = exported
    assert all(re.match(r"\[ *\d+\.\d s\] ", line) for line in said)
    lines = [line.split("] ", 1)[1] for line in said]
    assert [line.split()[0] for line in lines] == [
        "reading", "writing", "writing", "comparing", "vision", "weights", "language", "answers", str(repository)
    ]  # fmt: skip
    assert "6 of 6" in lines[7]


def test_a_second_name_joins_the_first_and_repeats_it_byte_for_byte(exported, demo, monkeypatch):
    """Exports are reproducible except for the time, which SOURCE_DATE_EPOCH sets. Models of both names are kept."""
    repository, _ = exported
    before = snapshot(repository)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert export_checkpoint(str(demo), repository, name="other", output=lambda line: None, precision="float32")
    after = snapshot(repository)
    renamed = {path.replace("florence2_", "other_", 1): data for path, data in before.items()}
    assert after.keys() == before.keys() | renamed.keys()
    assert all(after[path] == before[path] for path in before)
    time = re.compile(rb"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ")
    assert time.search(after["other_ensemble/config.pbtxt"])[0] == b"2023-11-14T22:13:20Z"
    for path, data in renamed.items():
        if path.endswith("config.pbtxt"):
            data = time.sub(b"2023-11-14T22:13:20Z", data.replace(b'"florence2_', b'"other_'))
        assert after[path] == data, path


@pytest.fixture
def standing(tmp_path) -> Path:
    """Return a repository that holds an earlier export."""
    repository = tmp_path / "place" / "repository"
    (repository / "florence2_vision" / "1").mkdir(parents=True)
    (repository / "florence2_vision" / "1" / "model.onnx").write_text("earlier")
    return repository


def test_a_failed_export_leaves_the_repository_as_it_was(standing, demo, monkeypatch):
    """Nothing changes and nothing is left next to it if the disk is full or the export is interrupted."""
    before = snapshot(standing)

    def full_disk(checkpoint, path, *_settings):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline.vision, "export_vision", full_disk)
    with pytest.raises(CheckpointError, match="No space left on device"):
        export_checkpoint(str(demo), standing, output=lambda line: None)
    assert snapshot(standing.parent) == {f"repository/{path}": data for path, data in before.items()}

    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.vision, "export_vision", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(str(demo), standing, output=lambda line: None)
    assert snapshot(standing.parent) == {f"repository/{path}": data for path, data in before.items()}


def test_a_report_that_does_not_pass_is_exit_code_1(standing, demo, monkeypatch, capsys):
    """A model that answers differently never replaces the present one."""
    before = snapshot(standing)
    monkeypatch.setattr(pipeline.vision, "export_vision", lambda checkpoint, path, *_settings: path.touch())
    monkeypatch.setattr(pipeline, "parity_report", lambda *_: iter([StageReport("vision", False, "far off")]))
    assert main(["export", str(demo), "--repository", str(standing)]) == 1
    assert "FAILED far off" in capsys.readouterr().out
    assert snapshot(standing.parent) == {f"repository/{path}": data for path, data in before.items()}


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_the_report_is_told_the_target(standing, demo, monkeypatch, target):
    """It runs the language model by the steps of that target."""
    judged, failed = [], StageReport("vision", False, "far off")
    monkeypatch.setattr(pipeline, "_build", lambda *arguments: None)
    monkeypatch.setattr(pipeline, "parity_report", lambda *settings: judged.append(settings[-1]) or iter([failed]))
    export_checkpoint(str(demo), standing, output=lambda line: None, device=target)
    assert judged == [target]


def test_help_does_not_wait_for_torch():
    """The command line is parsed before any slow import."""
    code = "import sys; from florence2_client import cli; cli.parser().parse_args(['export', 'x'])\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("<my_task>=box", "a FORM is one of text, boxes, quads, polygons, boxes_or_polygons"),
        ("<my_task>", "PROMPT=FORM"),
        ("=boxes", "PROMPT=FORM"),
        ("<OD>=quads", "<OD> is a task of Florence-2"),
    ],
)
def test_a_form_of_answers_that_does_not_exist_is_refused(value, sentence, capsys):
    """Before anything is read."""
    assert main(["export", "no-such-checkpoint", "--answers", value]) == 2
    assert sentence in capsys.readouterr().err


def test_forms_of_answers_are_exported(standing, demo, monkeypatch):
    """They reach the models' settings."""
    built = []
    monkeypatch.setattr(pipeline, "_build", lambda checkpoint, *rest: built.append(checkpoint.config.answers))
    monkeypatch.setattr(pipeline, "_compare", lambda *arguments: False)
    arguments = ["--answers", "<my_task>=boxes", "--answers", "Read=quads", "--repository", str(standing)]
    assert main(["export", str(demo), *arguments]) == 1
    assert built == [{"<my_task>": "boxes", "Read": "quads"}]
