"""KServe's manifests: known fields, Kubernetes' parts valid, and the same server as the chart's."""

from __future__ import annotations

import pytest
import yaml

from florence2.server.supervisor import UNLOAD_SECONDS
from florence2_client import cli
from tests.unit.deploy.conftest import ROOT
from tests.unit.deploy.fields import check_fields
from tests.unit.deploy.test_chart import options_of, server_of


@pytest.fixture(scope="module")
def runtime():
    return yaml.safe_load((ROOT / "deploy" / "kserve" / "runtime.yaml").read_text())


@pytest.fixture(scope="module")
def service():
    return yaml.safe_load((ROOT / "deploy" / "kserve" / "service.yaml").read_text())


def test_kserve_knows_every_field(runtime, service):
    """Both objects fit their schema."""
    check_fields(runtime["spec"], "ServingRuntimeSpec")
    check_fields(service["spec"], "InferenceServiceSpec")
    with pytest.raises(KeyError):
        check_fields({"predictor": {"model": {"storage_url": "x"}}}, "InferenceServiceSpec")


def test_kubernetes_accepts_the_pod(runtime, service):
    """The runtime's containers and volumes form a valid pod, and the service's strategy is valid for a Deployment."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    spec, predictor = runtime["spec"], service["spec"]["predictor"]
    pod = {"containers": spec["containers"], "volumes": spec["volumes"],
           "terminationGracePeriodSeconds": predictor["terminationGracePeriodSeconds"]}  # fmt: skip
    labels = {"app": "x"}
    deployment = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"},
        "spec": {"selector": {"matchLabels": labels}, "strategy": predictor["deploymentStrategy"],
                 "template": {"metadata": {"labels": labels}, "spec": pod}},
    }  # fmt: skip
    kubernetes_validate.validate(deployment, "1.37", strict=True)


def test_runtime_serves_the_model(runtime, service):
    """The service's model has the runtime's format and protocol, and is where KServe puts it."""
    (container,) = runtime["spec"]["containers"]
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"] and container["name"] == "kserve-container"
    assert model["modelFormat"]["name"] == runtime["spec"]["supportedModelFormats"][0]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert str(options_of(container).repository) == "/mnt/models"


def test_the_server_is_run_as_in_the_chart(runtime, service, render):
    """Probes, command, pause and security equal the chart's; Kubernetes waits until all of it is over."""
    (container,), chart = runtime["spec"]["containers"], server_of(render(None))
    for same in ("image", "lifecycle", "resources"):
        assert container[same] == chart[same]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked, charts = (cli.parser().parse_args(one[probe]["exec"]["command"][1:]) for one in (container, chart))
        assert asked == charts and container[probe]["timeoutSeconds"] == chart[probe]["timeoutSeconds"]
    assert vars(options_of(container)) | {"repository": None} == vars(options_of(chart)) | {"repository": None}
    assert chart["securityContext"].items() <= container["securityContext"].items()
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    needed = pause + options_of(container).drain_seconds + UNLOAD_SECONDS
    assert service["spec"]["predictor"]["terminationGracePeriodSeconds"] > needed
