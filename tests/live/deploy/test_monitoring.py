"""Prometheus' rules and Grafana's dashboard: a live server publishes every metric that they use."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from florence2_client import Client, Florence2Error, InvalidRequest

ROOT = Path(__file__).parents[3]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "florence2.json").read_text())
IMAGE = ROOT / "docs" / "images" / "answers.png"
# What a machine without a GPU lacks, from Triton's user guide on metrics.
OF_GPUS = {f"nv_gpu_{what}" for what in (
    "utilization", "memory_used_bytes", "memory_total_bytes", "power_usage", "power_limit")}  # fmt: skip
OF_PROMETHEUS = {"up"}
# What an idle, healthy server has no series of.
MAY_BE_EMPTY = {"nv_inference_request_failure"}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> dict[str, str]:
    """Return panel and legend -> PromQL with the dashboard's variables filled in."""
    filled = {"$__rate_interval": "1m", "$instance": ".*"}
    return {
        f"{panel['title']} {target['refId']}": re.sub(r"\$\w+", lambda variable: filled[variable[0]], target["expr"])
        for panel in panels()
        for target in panel["targets"]
    }


def alerts() -> dict[str, str]:
    (group,) = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def metrics_of(query: str) -> set[str]:
    """Return the names of all selectors of a query. Fail if it is not PromQL."""
    promql_parser.parse(query)
    return set(re.findall(r"\b((?:florence2|nv)_\w+|up)\b(?=[{\[ )]|$)", query))


@pytest.fixture(scope="module")
def asked_server(server):
    with Client(server.grpc_url) as client:
        for _ in range(2):
            client.detect(IMAGE)
    time.sleep(1.5)  # published once a second
    return server


def published(server) -> set[str]:
    with urllib.request.urlopen(server.metrics_url) as answer:
        lines = answer.read().decode().splitlines()
    return {re.split(r"[{ ]", line)[0] for line in lines if line and not line.startswith("#")}


def test_every_metric_of_ours_names_its_model_and_device(asked_server):
    with urllib.request.urlopen(asked_server.metrics_url) as answer:
        ours = re.findall(r"^florence2_\w+\{.*\}", answer.read().decode(), re.M)
    assert ours and all('model="florence2_' in line and 'device="cpu"' in line for line in ours)


@pytest.mark.parametrize("asked", [queries, alerts])
def test_every_metric_asked_for_is_published(asked_server, asked):
    """A renamed metric must not leave an empty panel or an alert that never fires."""
    there = published(asked_server) | OF_GPUS | OF_PROMETHEUS
    missing = {name: gone for name, query in asked().items() if (gone := metrics_of(query) - there)}
    assert missing == {}
    assert all(metrics_of(query) for query in asked().values())


def triton_counts(server) -> dict[tuple[str, str], float]:
    """Return the values of Triton's request counters by name and labels."""
    with urllib.request.urlopen(server.metrics_url) as answer:
        found = re.findall(r"^(nv_inference_request_\w+)\{(.*?)\} (\S+)$", answer.read().decode(), re.M)
    return {(name, labels): float(value) for name, labels, value in found}


def increase(query: str, before: dict, after: dict) -> float:
    """Evaluate `sum(rate(counter{matchers}[...])) / divisor` as an increase between two scrapes."""
    (counter,) = metrics_of(query)
    matchers = re.findall(r'(\w+)([=!]~)"(.*?)"', query)
    divisor = re.search(r" / (\d+)$", query)
    total = 0.0
    for (name, text), value in after.items():
        labels = dict(re.findall(r'(\w+)="(.*?)"', text))
        fits = [bool(re.fullmatch(wanted, labels.get(label, ""))) == (kind == "=~") for label, kind, wanted in matchers]
        if name == counter and all(fits):
            total += value - before.get((name, text), 0.0)
    return total / float(divisor[1] if divisor else 1)


def test_each_failed_request_is_counted_once(asked_server):
    """Triton counts a failed ensemble request twice, and one that preprocess refuses as a success of preprocess."""
    panel = queries()["Failed requests A"]
    before = triton_counts(asked_server)
    with Client(asked_server.grpc_url) as client:
        for _ in range(3):
            with pytest.raises(InvalidRequest):
                client.caption(b"no image")
        with pytest.raises(Florence2Error):  # in the decoder, and too late
            client.detect(IMAGE, timeout=0.01)
        client.caption(IMAGE, num_beams=1)
    deadline = time.monotonic() + 10
    while increase(panel, before, after := triton_counts(asked_server)) < 4 and time.monotonic() < deadline:
        time.sleep(0.2)  # the late request ends in the server after the client has given up
    assert increase(panel, before, after) == 4
    assert increase(queries()["Failed requests B"], before, after) == 0
    accepted = 'nv_inference_request_success{model=~".*_preprocess"}'
    assert increase(accepted, before, after) == 5


def test_the_dashboard_is_whole():
    """Panels have unique numbers, do not overlap, and use the provisioned data source."""
    provisioned = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    (source,) = provisioned["datasources"]
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {panel["datasource"]["uid"]}
        assert panel["datasource"]["uid"] == source["uid"] == "prometheus"


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name}; on Debian: apt install prometheus")
    return found


def test_promtool_accepts_the_configuration_and_the_alerts_fire_when_they_should():
    """promtool runs the rules on the invented series in tests/live/deploy/alerts_test.yml."""
    for command in (["check", "config", PROMETHEUS / "prometheus.yml"],
                    ["test", "rules", Path(__file__).with_name("alerts_test.yml")]):  # fmt: skip
        done = subprocess.run([tool("promtool"), *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def prometheus(asked_server, tmp_path: Path) -> Iterator[str]:
    """A real Prometheus with the committed configuration; only the target and the interval differ."""
    program = tool("prometheus")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = (PROMETHEUS / "prometheus.yml").read_text()
    target = urllib.parse.urlparse(asked_server.metrics_url).netloc
    config = config.replace("triton:8002", target).replace("15s", "1s")
    (tmp_path / "prometheus.yml").write_text(config)
    shutil.copyfile(PROMETHEUS / "alerts.yml", tmp_path / "alerts.yml")
    process = subprocess.Popen(
        [program, f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}",
         f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def ask(prometheus: str, route: str, **parameters: str) -> Any:
    url = f"{prometheus}/api/v1/{route}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)["data"]


def scrapes(prometheus: str) -> int:
    try:
        series = ask(prometheus, "query", query='count_over_time(up{job="triton"}[1m])')["result"]
    except OSError:  # it has not started yet
        return 0
    return int(series[0]["value"][1]) if series else 0


def test_the_dashboard_shows_a_live_server(prometheus: str, asked_server):
    """Each query of each panel returns numbers, except those about GPUs, and no alert fires."""
    with Client(asked_server.grpc_url) as client:
        until = time.monotonic() + 30
        while scrapes(prometheus) < 5 and time.monotonic() < until:
            client.detect(IMAGE)
            time.sleep(0.5)
    empty = {}
    for name, query in queries().items():
        if not metrics_of(query) & (OF_GPUS | MAY_BE_EMPTY):
            result = ask(prometheus, "query", query=query)["result"]
            if not result or any(series["value"][1] == "NaN" for series in result[:1]):
                empty[name] = query
    assert empty == {}
    (group,) = ask(prometheus, "rules")["groups"]
    assert {rule["name"]: (rule["health"], rule["state"]) for rule in group["rules"]} == {
        name: ("ok", "inactive") for name in alerts()
    }
