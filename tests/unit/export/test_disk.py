"""Test places that cannot be written (a full disk, a file size limit, another user's folder) and a killed export."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from florence2.errors import CheckpointError
from florence2_client.cli import main
from florence2_export import installation, pipeline
from florence2_export.pipeline import export_checkpoint

ROOT = Path(__file__).parents[3]


@pytest.fixture
def limit(monkeypatch):
    """Limit files to 2 MB, less than the language model's weights. Skip the vision encoder to save time."""
    monkeypatch.setattr(pipeline.vision, "export_vision", lambda checkpoint, path, *_: path.touch())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_grow_is_one_sentence(demo, tmp_path, limit, capsys):
    """The system refuses more bytes in the middle of the weights. Nothing is left."""
    assert main(["export", str(demo), "--precision", "float32", "--repository", str(tmp_path / "repository")]) == 1
    error = capsys.readouterr().err
    assert "cannot be written: the disk is full or limits the size of a file" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 4 MB, if the tests may."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_one_sentence(demo, small_disk):
    """Earlier files stay, and the incomplete export is removed."""
    (small_disk / "repository").mkdir()
    (small_disk / "repository" / "README").write_text("mine")
    with pytest.raises(CheckpointError, match="cannot be written: the disk is full"):
        export_checkpoint(str(demo), small_disk / "repository", output=lambda line: None)
    assert [path.name for path in small_disk.rglob("*")] == ["repository", "README"]


@pytest.mark.parametrize(("mode", "trouble"), [(0o555, "cannot be written"), (0o700, "cannot be read")])
def test_an_inaccessible_folder_is_one_sentence(mode, trouble):
    """The export fails before any work. It never runs as root here, because root may write everywhere."""
    if os.geteuid() and mode == 0o700:
        pytest.skip("only root can test with another user's folder")
    # Not tmp_path, because other users cannot enter the folders above it.
    with tempfile.TemporaryDirectory() as parent:
        os.chmod(parent, 0o755)
        folder = Path(parent) / "theirs"
        folder.mkdir()
        folder.chmod(mode)
        script = (
            "import os\n"
            "from pathlib import Path\n"
            "from florence2_export import installation, repository\n"
            "from florence2.errors import CheckpointError\n"
            "os.geteuid() or os.setuid(65534)\n"
            f"target = Path({str(folder / 'repository')!r})\n"
            "try:\n"
            "    repository.check_target(target, 'florence2')\n"
            "    with installation.staging(target): pass\n"
            "except CheckpointError as error: print(error)"
        )
        run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
        assert run.stdout.startswith(str(folder)), run.stderr
        assert run.stdout.endswith(f"{trouble}: Permission denied\n")


def test_the_next_export_removes_the_remains_of_a_killed_one(demo, tmp_path):
    """`kill -9` leaves a hidden folder. The folder of a running export stays."""
    target = tmp_path / "repository"
    command = [sys.executable, "-m", "export", str(demo), "--repository", str(target)]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not list(tmp_path.glob(".repository-*/lock")):
        time.sleep(0.05)
        assert run.poll() is None, run.communicate()
    with installation.staging(target):
        assert len(list(tmp_path.glob(".repository-*"))) == 2, "the running export's folder stays"
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert len(list(tmp_path.glob(".repository-*"))) == 1
    with installation.staging(target):
        assert len(list(tmp_path.glob(".repository-*"))) == 1
    assert not list(tmp_path.iterdir())
