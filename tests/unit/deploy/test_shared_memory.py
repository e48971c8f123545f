"""The `/dev/shm` of every deployment, and the figures in its files and docs: one formula, that of `florence2 serve`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from florence2.config import ImageConfig
from florence2.server.installation import Installation
from florence2.server.launch import MIB, expected_regions
from florence2.server.streaming import write_streaming_models
from florence2_export import repository, targets
from tests.unit.deploy.conftest import CHART, ROOT

WIDTHS = {"base": 768, "large": 1024}
GIVEN = 1024  # MiB, by compose, the chart and KServe's runtime

Needed = Callable[..., int]


@pytest.fixture
def needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Needed:
    """Return the MiB that `florence2 serve` asks for, on a machine of many cores."""

    def compute(target: str, model: str = "base", *, container: bool = False, stream: bool = False,
                versions: int = 1) -> int:  # fmt: skip
        monkeypatch.setattr(targets, "usable_cores", lambda: 64)
        folder = tmp_path / f"{target}-{model}-{container}-{stream}-{versions}"
        backends = folder / "backends"
        (backends / "onnxruntime").mkdir(parents=True)
        if not container:
            (backends / "onnxruntime" / "model.py").touch()
        image = ImageConfig(768, 768, (0.5,) * 3, (0.5,) * 3, 3, tokens=577)
        models, precision = folder / "models", targets.vision_precision(target, "auto")
        repository.copy_template(models, "florence2", 1, repository.true_dims(image, WIDTHS[model]), {})
        targets.fit(models, "florence2", target, precision, targets.choose_accelerator(target, None, precision))
        for role in ("preprocess", "vision", "decoder", "postprocess"):
            for version in range(2, versions + 1):
                (models / f"florence2_{role}" / str(version)).mkdir()
        if stream:
            write_streaming_models(models, models)
        return sum(expected_regions(models, Installation(folder, backends, folder))) // MIB

    return compute


def test_a_process_needs_its_first_mebibyte_and_a_growth(needed: Needed):
    """Five processes on a CPU; a stream adds a decoder, and a new version all of them again."""
    assert needed("cpu") == needed("cpu", "large") == 5 * 33
    assert needed("cpu", stream=True) == 6 * 33
    assert needed("cpu", versions=2) == 10 * 33


def test_a_gpu_has_more_processes_and_larger_batches(needed: Needed):
    """Up to eight decode images. Batches of 8 of large do not fit into one growth, as measured with a real server."""
    assert needed("gpu", container=True) == needed("gpu", "large", container=True) == 10 * 33
    assert needed("gpu") == 11 * 33
    assert needed("gpu", "large") == 11 * 33 + 32


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("deploy/helm/florence2/values.yaml", "at least {cpu stream}Mi on a CPU and {gpu container stream}Mi on a GPU"),
        (
            "docker-compose.yml",
            "{cpu stream} MiB for six model processes on a CPU and {gpu container stream} for eleven",
        ),
        ("docs/containers.md", "a server needs {cpu} MiB on a CPU and {gpu container} MiB in the GPU image"),
        ("docs/gpu.md", "{gpu} MiB of it with base and {gpu large} MiB with large"),
        ("docs/capacity.md", "{cpu} MiB at most"),
    ],
)
def test_documented_figures_follow_the_formula(needed: Needed, file: str, text: str):
    def figure(match: re.Match[str]) -> str:
        target, *words = match[1].split()
        model = "large" if "large" in words else "base"
        return str(needed(target, model, container="container" in words, stream="stream" in words))

    written = " ".join((ROOT / file).read_text().replace("#", "").split())
    assert re.sub(r"\{(.*?)\}", figure, text) in written


def test_every_deployment_gives_enough(needed: Needed):
    """The largest case: the large model on a GPU, with streams, while a version is replaced by the next."""
    assert needed("gpu", "large", stream=True, versions=2) <= GIVEN
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert {compose[f"triton-{target}"]["shm_size"] for target in targets.TARGETS} == {f"{GIVEN // 1024}gb"}
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    (runtime,) = (
        volume["emptyDir"]["sizeLimit"]
        for volume in yaml.safe_load((ROOT / "deploy" / "kserve" / "runtime.yaml").read_text())["spec"]["volumes"]
        if volume["name"] == "shared-memory"
    )
    assert values["server"]["sharedMemory"] == runtime == f"{GIVEN // 1024}Gi"
