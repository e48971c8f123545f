"""Places that cannot be written: a full disk, a limit on file size, someone else's folder; and a killed export."""

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
    """Files may grow to 2 MB: less than the language model's weights. The vision encoder is left out for speed."""
    monkeypatch.setattr(pipeline.vision, "export_vision", lambda checkpoint, path, *_: path.touch())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_grow_is_one_sentence(demo, tmp_path, limit, capsys):
    """The system refuses further bytes in the middle of the weights; nothing is left."""
    assert main(["export", str(demo), "--precision", "float32", "--repository", str(tmp_path / "repository")]) == 1
    error = capsys.readouterr().err
    assert "cannot be written: the disk is full, or a file too large" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB, where tests may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_one_sentence(demo, small_disk):
    """What was there stays, what was begun goes."""
    (small_disk / "repository").mkdir()
    (small_disk / "repository" / "README").write_text("mine")
    with pytest.raises(CheckpointError, match="cannot be written: the disk is full"):
        export_checkpoint(str(demo), small_disk / "repository", output=lambda line: None)
    assert [path.name for path in small_disk.rglob("*")] == ["repository", "README"]


@pytest.mark.parametrize(("mode", "trouble"), [(0o555, "cannot be written"), (0o700, "cannot be read")])
def test_a_folder_of_others_is_one_sentence(mode, trouble):
    """Before any work. Root may write everywhere, so where the tests run as root the export runs as another user."""
    if os.geteuid() and mode == 0o700:
        pytest.skip("only root can make a folder of someone else")
    # Not tmp_path: pytest keeps what is above it to its own user.
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


def test_what_a_killed_export_left_is_removed_by_the_next(demo, tmp_path):
    """kill -9 leaves a hidden folder; an export that still runs keeps its own."""
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
