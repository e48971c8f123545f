"""The repository on disk: settings kept, dims corrected, and all models swapped in or none."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export import repository
from florence2.errors import CheckpointError

DIMS = {"PIXELS": [192, 192, 3], "IMAGE_FEATURES": [37, 128]}


def parse(path: Path) -> ModelConfig:
    return text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())


def snapshot(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


@pytest.mark.parametrize("role", repository.ROLES)
def test_a_copied_config_differs_from_the_committed_one_in_dims_alone(tmp_path, role):
    """Batching, instances and parameters are tuned in model_repository/ and arrive unchanged."""
    repository.copy_template(tmp_path, "florence2", DIMS)
    committed = parse(repository.TEMPLATE / f"florence2_{role}" / "config.pbtxt")
    copied = parse(tmp_path / f"florence2_{role}" / "config.pbtxt")
    for tensor in (*copied.input, *copied.output):
        if tensor.name in DIMS:
            assert list(tensor.dims) == DIMS[tensor.name]
    for config in (committed, copied):
        for tensor in (*config.input, *config.output):
            if tensor.name in DIMS:
                del tensor.dims[:]
    assert copied == committed


def test_a_name_reaches_every_model_and_every_step(tmp_path):
    """Two checkpoints side by side must not call each other's models."""
    repository.copy_template(tmp_path, "large-ft", DIMS)
    names = {f"large-ft_{role}" for role in repository.ROLES}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert {parse(path / "config.pbtxt").name for path in tmp_path.iterdir()} == names
    steps = parse(tmp_path / "large-ft_ensemble" / "config.pbtxt").ensemble_scheduling.step
    assert {step.model_name for step in steps} == names - {"large-ft_ensemble"}


def test_nothing_but_code_and_configs_is_copied(tmp_path):
    """No bytecode and no git files; every model has its version directory, the ensemble's is empty."""
    repository.copy_template(tmp_path, "florence2", DIMS)
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"config.pbtxt", "model.py"}
    assert all((model / "1").is_dir() for model in tmp_path.iterdir())


def stage_models(stage: Path, content: str, *names: str) -> None:
    for name in names:
        (stage / name / "1").mkdir(parents=True)
        (stage / name / "1" / "file").write_text(content)


def test_only_models_of_the_same_name_are_replaced(tmp_path):
    """Another export's models, and whatever else lies there, stay."""
    target = tmp_path / "repository"
    stage_models(target, "old", "a_vision", "a_decoder", "b_vision")
    (target / "a_vision" / "1" / "stale").touch()
    with repository.staging(target) as stage:
        stage_models(stage, "new", "a_vision", "a_decoder")
        repository.install(stage, target)
    assert snapshot(target) == {
        "a_decoder": None, "a_decoder/1": None, "a_decoder/1/file": b"new",
        "a_vision": None, "a_vision/1": None, "a_vision/1/file": b"new",
        "b_vision": None, "b_vision/1": None, "b_vision/1/file": b"old",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["repository"], "nothing is left beside it"


@pytest.mark.parametrize("failing", range(4))
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_swap_that_fails_half_way_is_undone(tmp_path, monkeypatch, failing, error):
    """Whichever of the four renames fails, the old models are back."""
    target = tmp_path / "repository"
    stage_models(target, "old", "a_vision", "a_decoder")
    before, rename, calls = snapshot(target), Path.rename, []

    def rename_until_failure(self, destination):
        calls.append(destination)
        if len(calls) == failing + 1:
            raise error
        return rename(self, destination)

    monkeypatch.setattr(Path, "rename", rename_until_failure)
    with (
        pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt),
        repository.staging(target) as stage,
    ):
        stage_models(stage, "new", "a_vision", "a_decoder")
        repository.install(stage, target)
    assert snapshot(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_targets_that_cannot_be_are_refused_before_any_work(tmp_path):
    """The checkout's own repository, a file, and names Triton would not take."""
    with pytest.raises(CheckpointError, match="stays clean"):
        repository.check_target(repository.TEMPLATE, "florence2")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        repository.check_target(tmp_path / "file", "florence2")
    for name in ("", "a/b", "..", "-x", "a b", "é"):
        with pytest.raises(CheckpointError, match="must consist of"):
            repository.check_target(tmp_path, name)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    """A parent that is a file stands for every unwritable place; the tests may run as root."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(CheckpointError, match="cannot be written"),
        repository.staging(tmp_path / "file" / "repository"),
    ):
        pass
