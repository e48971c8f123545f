"""Test that a finished export is moved to its place completely or not at all."""

from pathlib import Path

import pytest

from florence2.errors import CheckpointError
from florence2_export import installation


def snapshot(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def stage_models(stage: Path, content: str, *names: str) -> None:
    for name in names:
        (stage / name / "1").mkdir(parents=True)
        (stage / name / "1" / "file").write_text(content)


def test_only_models_of_the_same_name_are_replaced(tmp_path):
    """Another export's models and any other files stay."""
    target = tmp_path / "repository"
    stage_models(target, "old", "a_vision", "a_decoder", "b_vision")
    (target / "a_vision" / "1" / "stale").touch()
    with installation.staging(target) as stage:
        stage_models(stage, "new", "a_vision", "a_decoder")
        installation.replace(stage, target)
    assert snapshot(target) == {
        "a_decoder": None, "a_decoder/1": None, "a_decoder/1/file": b"new",
        "a_vision": None, "a_vision/1": None, "a_vision/1/file": b"new",
        "b_vision": None, "b_vision/1": None, "b_vision/1/file": b"old",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["repository"], "nothing is left next to it"


@pytest.mark.parametrize("failing", range(4))
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_swap_that_fails_half_way_is_undone(tmp_path, monkeypatch, failing, error):
    """The old models are back after a failure of any of the four renames."""
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
        installation.staging(target) as stage,
    ):
        stage_models(stage, "new", "a_vision", "a_decoder")
        installation.replace(stage, target)
    assert snapshot(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    """A parent that is a file is not writable even for root, which may run the tests."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(CheckpointError, match="cannot be written"),
        installation.staging(tmp_path / "file" / "repository"),
    ):
        pass
