"""Tritonserver gets threads that fit the machine, our Python, and enough shared memory."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from florence2.errors import ServerError
from florence2.server import launch
from florence2.server.addresses import Addresses
from florence2.server.installation import Installation
from florence2.server.options import ServingOptions


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1)])
def test_a_container_s_quota_limits_the_cores(monkeypatch, tmp_path, quota, cores):
    """Round a quota of one and a half processors up to two threads, however many the machine has."""
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(launch, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    assert launch.usable_cores() == cores
    monkeypatch.setattr(launch, "CPU_QUOTA", tmp_path / "missing")
    assert launch.usable_cores() == 8


def test_environment_puts_this_python_first_and_keeps_the_users_settings(monkeypatch, tmp_path):
    """The stub takes the first python3 on PATH. A thread count that the user has set stays."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/theirs")
    triton = Installation(tmp_path, tmp_path, tmp_path, (tmp_path / "libs", tmp_path / "lib"))
    given = launch.environment(triton)
    assert given["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert given["OMP_NUM_THREADS"] == "3"
    assert given["LD_LIBRARY_PATH"].split(":") == [str(tmp_path / "libs"), str(tmp_path / "lib"), "/opt/theirs"]
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert launch.environment(triton)["OMP_NUM_THREADS"] == str(launch.usable_cores())


def test_small_shared_memory_is_refused_with_dockers_option(monkeypatch):
    """With Docker's 64 MiB the server would start, and die in the middle of a request. The option suffices."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(64 * 2**20, 0, 64 * 2**20))
    with pytest.raises(ServerError, match=r"has 64 MiB free and the 6 model processes need 198 MiB; .* --shm-size=1g"):
        launch.require_shared_memory([33 * 2**20] * 6)
    with pytest.raises(ServerError, match=r"the 40 model processes need 1320 MiB; .* --shm-size=2g"):
        launch.require_shared_memory([33 * 2**20] * 40)


def test_missing_shared_memory_is_reported(monkeypatch):
    """Some sandboxes have none."""
    monkeypatch.setattr(launch, "SHARED_MEMORY", Path("/nowhere/shm"))
    with pytest.raises(ServerError, match="/dev/shm is missing"):
        launch.require_shared_memory([33 * 2**20])


@pytest.mark.parametrize(("cache_mib", "sizes"), [(3, ["--cache-config=local,size=3145728"]), (0, [])])
def test_triton_s_response_cache_is_only_for_its_own_backend(tmp_path, cache_mib, sizes):
    """The embedded server's onnxruntime backend has a cache of its own, which must not stand behind another one."""
    triton = Installation(tmp_path / "tritonserver", tmp_path / "backends", tmp_path / "caches")
    options = ServingOptions(cache_mib=cache_mib)

    def cache_config() -> list[str]:
        line = launch.command_line(triton, tmp_path, "shm", Addresses("127.0.0.1", 1, 2, 3), options)
        return [word for word in line if word.startswith("--cache-config")]

    assert cache_config() == sizes
    stand_in = triton.backends / "onnxruntime" / "model.py"
    stand_in.parent.mkdir(parents=True)
    stand_in.touch()
    assert cache_config() == []
