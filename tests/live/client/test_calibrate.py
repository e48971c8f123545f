"""`florence2 calibrate` with a real server: what it fits is what the next server answers with."""

import json
import shutil

import pytest

from bench import calibration as bench
from florence2.calibration import Calibration
from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions
from florence2_client import Client, cli


def test_confidences_are_calibrated_after_a_restart(server, repository, tmp_path, capsys):
    """By the map in the repository, which info names; scores stay as they are."""
    images = bench.draw_scenes(tmp_path, range(bench.FIRST_SEED, bench.FIRST_SEED + 70))
    kinds = sorted({label for image in images for label, _ in image.objects})
    coco = {
        "images": [{"id": number, "file_name": image.path.name} for number, image in enumerate(images)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(kinds)],
        "annotations": [
            {"image_id": number, "category_id": kinds.index(label), "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for number, image in enumerate(images)
            for label, (x1, y1, x2, y2) in image.objects
        ],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(coco))
    copy = shutil.copytree(repository, tmp_path / "models")
    arguments = ["calibrate", tmp_path, "--tasks", "od", "--repository", copy, "--url", server.grpc_url]
    assert cli.main([*map(str, arguments)]) == 0
    assert cli.main(["info", "--repository", str(copy), "--json"]) == 0
    *_, told = capsys.readouterr().out.splitlines()
    assert json.loads(told)["calibrated"] == "od"
    curve = Calibration.load(copy / "florence2_postprocess" / "1").curves["<OD>"]
    with Client(server.grpc_url) as client:
        before = client.detect(images[0].path).answer
    with EmbeddedServer(ServingOptions.on_free_ports(copy)) as calibrated, Client(calibrated.grpc_url) as client:
        after = client.detect(images[0].path).answer
        assert client.propose_regions(images[0].path).answer.confidences
        assert cli.main([*map(str, arguments[:-1]), calibrated.grpc_url]) == 2
    assert "is calibrated already" in capsys.readouterr().err
    assert after.confidences == pytest.approx(curve(before.confidences), abs=1e-3)
    assert (after.bboxes, after.labels) == (before.bboxes, before.labels)
    assert after.scores == pytest.approx(before.scores, abs=1e-4)
