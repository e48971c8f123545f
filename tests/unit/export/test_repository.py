"""Test the repository that an export writes: settings are kept, names and dims corrected."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from florence2.errors import CheckpointError
from florence2_export import repository

PROVENANCE = {"checkpoint": "example/florence-2", "exported": "2026-01-01T00:00:00Z"}
DIMS = {"PIXELS": [192, 192, 3], "IMAGE_FEATURES": [37, 128]}


def parse(path: Path) -> ModelConfig:
    return text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())


@pytest.mark.parametrize("role", repository.ROLES)
def test_a_copied_config_differs_from_the_committed_one_only_in_dims_and_versions(tmp_path, role):
    """Batching, instances and parameters are tuned in model_repository/ and stay as they are."""
    repository.copy_template(tmp_path, "florence2", 7, DIMS, PROVENANCE)
    committed = parse(repository.TEMPLATE / f"florence2_{role}" / "config.pbtxt")
    copied = parse(tmp_path / f"florence2_{role}" / "config.pbtxt")
    for tensor in (*copied.input, *copied.output):
        if tensor.name in DIMS:
            assert list(tensor.dims) == DIMS[tensor.name]
    for config in (committed, copied):
        for tensor in (*config.input, *config.output):
            if tensor.name in DIMS:
                del tensor.dims[:]
    if role == "ensemble":
        assert {key: value.string_value for key, value in copied.parameters.items()} == PROVENANCE
        assert {step.model_version for step in copied.ensemble_scheduling.step} == {7}
        copied.parameters.clear()
        for step in copied.ensemble_scheduling.step:
            step.model_version = -1
    else:
        assert copied.version_policy.latest.num_versions == 2
        copied.ClearField("version_policy")
    assert copied == committed


def test_a_name_reaches_every_model_and_every_step(tmp_path):
    """Two checkpoints side by side must not call each other's models."""
    repository.copy_template(tmp_path, "large-ft", 1, DIMS, PROVENANCE)
    names = {f"large-ft_{role}" for role in repository.ROLES}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert {parse(path / "config.pbtxt").name for path in tmp_path.iterdir()} == names
    steps = parse(tmp_path / "large-ft_ensemble" / "config.pbtxt").ensemble_scheduling.step
    assert {step.model_name for step in steps} == names - {"large-ft_ensemble"}


def test_nothing_but_code_and_configs_is_copied(tmp_path):
    """No bytecode is copied. Each model has a version directory, and a file keeps the ensemble's in object stores."""
    repository.copy_template(tmp_path, "florence2", 1, DIMS, PROVENANCE)
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"config.pbtxt", "model.py", ".keep"}
    assert all((model / "1").is_dir() for model in tmp_path.iterdir())


def test_unusable_targets_are_refused_before_any_work(tmp_path):
    """These are the checkout's own repository, a file, and names that Triton does not accept."""
    with pytest.raises(CheckpointError, match="is the template of every export"):
        repository.check_target(repository.TEMPLATE, "florence2")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        repository.check_target(tmp_path / "file", "florence2")
    for name in ("", "a/b", "..", "-x", "a b", "é"):
        with pytest.raises(CheckpointError, match="must consist of"):
            repository.check_target(tmp_path, name)
