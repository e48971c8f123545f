"""The Helm chart: valid for Kubernetes, and in agreement with the server that it runs."""

from __future__ import annotations

import re

import promql_parser
import pytest
import yaml

from florence2.engine.metrics import INSIDE
from florence2.server.supervisor import UNLOAD_SECONDS
from florence2_client import cli
from florence2_client.cli.gateway import KEYS_VARIABLE
from tests.unit.deploy.conftest import CHART, ROOT
from tests.unit.deploy.fields import check_fields

EXAMPLES = (None, *sorted(path.stem for path in (CHART / "examples").glob("*.yaml")))
UNITS = {"Mi": 2**20, "Gi": 2**30}

example = pytest.mark.parametrize("example", EXAMPLES)


def the(manifests, kind, component="server"):
    """Return the only object of a kind; of several Deployments that of a component."""
    (manifest,) = (each for each in manifests[kind] if kind != "Deployment" or component_of(each) == component)
    return manifest


def component_of(deployment):
    return deployment["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]


def pod_of(manifest):
    return manifest["spec"]["template"]["spec"]


def server_of(manifests):
    (container,) = pod_of(the(manifests, "Deployment"))["containers"]
    return container


def options_of(container):
    """Parse the container's arguments like the real command line."""
    assert container["args"][0] == "florence2"
    return cli.parser().parse_args(container["args"][1:])


def bytes_of(quantity):
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


@example
@pytest.mark.parametrize("version", ["1.27", "1.37"])
def test_kubernetes_accepts_every_object(render, example, version):
    """They fit the schemas of the oldest version that the chart allows, and of the newest known here."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for kind, manifests in render(example).items():
        if kind not in ("ScaledObject", "ServiceMonitor"):
            for manifest in manifests:
                kubernetes_validate.validate(manifest, version, strict=True)


def test_keda_and_prometheus_know_every_field(render):
    """The fields are in the definitions of their types."""
    for kind in ("ScaledObject", "ServiceMonitor"):
        check_fields(the(render("cpu"), kind)["spec"], f"{kind}Spec")


@example
def test_helm_finds_no_fault(helm, example):
    """`helm lint --strict` passes, and so do the values with their schema."""
    helm("lint", "--strict", CHART, *(["-f", CHART / "examples" / f"{example}.yaml"] if example else []))


@pytest.mark.parametrize("value", ["replica=2", "replicas=two", "modelStore.type=nfs", "server.sharedMemory=64M"])
def test_mistaken_values_are_refused(render, value):
    """The schema refuses unknown keys, wrong types, meaningless words and units that Kubernetes reads differently."""
    with pytest.raises(RuntimeError, match="values don't meet the specifications"):
        render(None, value)


@example
def test_probes_ask_a_real_question(render, example):
    """The probes use `florence2 health`, which tells a busy server from a dead one; its own time limit ends first."""
    server = server_of(render(example))
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = server[name]
        program, *arguments = probe["exec"]["command"]
        options = cli.parser().parse_args(arguments)
        assert program == "florence2" and options.command.__module__ == "florence2_client.cli.health"
        assert options.timeout < probe["timeoutSeconds"]


@example
def test_stopping_gives_requests_their_time(render, example):
    """Kubernetes waits longer than the pause before the stop, the requests in flight and unloading take together."""
    manifests = render(example)
    server, pod = server_of(manifests), pod_of(the(manifests, "Deployment"))
    pause = int(server["lifecycle"]["preStop"]["exec"]["command"][-1])
    needed = pause + options_of(server).drain_seconds + UNLOAD_SECONDS
    assert pause > 0 and pod["terminationGracePeriodSeconds"] > needed


def test_an_update_takes_no_pod_away_first(render):
    """A rolling update starts a pod first, unless the values say that there is no spare GPU."""
    strategies = {name: the(render(name), "Deployment")["spec"]["strategy"]["rollingUpdate"] for name in EXAMPLES}
    assert strategies["gpu"]["maxUnavailable"] == 1
    assert all(strategy["maxUnavailable"] == 0 for name, strategy in strategies.items() if name != "gpu")


@example
def test_server_gets_what_it_needs(render, example):
    """Shared memory fits in memory (test_shared_memory: and suffices); the server listens on all addresses."""
    manifests = render(example)
    server, volumes = server_of(manifests), pod_of(the(manifests, "Deployment"))["volumes"]
    mounts = {mount["mountPath"]: mount for mount in server["volumeMounts"]}
    (shared,) = (volume for volume in volumes if volume["name"] == mounts["/dev/shm"]["name"])
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": values["server"]["sharedMemory"]}
    assert bytes_of(shared["emptyDir"]["sizeLimit"]) < bytes_of(server["resources"]["limits"]["memory"])
    options = options_of(server)
    assert options.host == "0.0.0.0" and mounts[str(options.repository.parent)]["readOnly"]
    assert {port["containerPort"] for port in server["ports"]} == {
        options.http_port, options.grpc_port, options.metrics_port,
    }  # fmt: skip


def test_gpu_is_asked_for_where_it_is_used(render):
    """Requests equal limits, as Kubernetes requires for devices. GPUs get NVIDIA's server, CPUs the embedded one."""
    gpu, cpu = server_of(render("gpu")), server_of(render("cpu"))
    assert gpu["resources"]["requests"]["nvidia.com/gpu"] == gpu["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert options_of(gpu).tritonserver and "florence2-gpu:" in gpu["image"]
    assert "nvidia.com/gpu" not in cpu["resources"]["limits"]
    assert options_of(cpu).tritonserver is None and "florence2-cpu:" in cpu["image"]


def test_a_pod_can_join_the_mps_daemon_of_its_node(render):
    """It needs the daemon's pipes and the node's shared memory, in place of its own."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    values = ("gpu.mpsPipeDirectory=/tmp/nvidia-mps", "server.env[0].name=A,server.env[0].value=b")
    deployment = the(render("gpu", *values), "Deployment")
    kubernetes_validate.validate(deployment, "1.37", strict=True)
    pod = pod_of(deployment)
    (server,) = pod["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in server["volumeMounts"]}
    (pipes,) = (volume for volume in pod["volumes"] if volume["name"] == mounts["/tmp/nvidia-mps"])
    assert pod["hostIPC"] and pipes["hostPath"]["path"] == "/tmp/nvidia-mps" and "/dev/shm" not in mounts
    assert server["env"] == [
        {"name": "CUDA_MPS_PIPE_DIRECTORY", "value": "/tmp/nvidia-mps"},
        {"name": "A", "value": "b"},
    ]
    assert "hostIPC" not in pod_of(the(render("gpu"), "Deployment"))


def test_a_pod_has_one_gpu_at_most(render):
    """One server uses one GPU; more of them are more replicas."""
    with pytest.raises(RuntimeError, match="/gpu/count"):
        render(None, "gpu.count=2")


@example
def test_containers_may_do_nothing_more(render, example):
    """Pods run without root, capabilities and cluster token, as the image's user, and write only to volumes."""
    manifests = render(example)
    for manifest in (*manifests["Deployment"], *manifests.get("Job", [])):
        pod = pod_of(manifest)
        assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False
        assert f"--uid {pod['securityContext']['runAsUser']} " in (ROOT / "Dockerfile").read_text()
        for container in (*pod["containers"], *pod.get("initContainers", [])):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
            assert security["capabilities"]["drop"] == ["ALL"] and container["resources"]["limits"]["memory"]


@example
def test_services_find_only_the_servers(render, example):
    """Services never select the export's pod. The one for gRPC resolves to the replicas' own addresses."""
    manifests = render(example)
    servers = the(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    exports = [job["spec"]["template"]["metadata"]["labels"] for job in manifests.get("Job", [])]
    services = [service for service in manifests["Service"] if not service["metadata"]["name"].endswith("-gateway")]
    selectors = [service["spec"]["selector"] for service in services]
    selectors += [the(manifests, kind)["spec"][key]["matchLabels"]
                  for kind, key in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector"))]  # fmt: skip
    for selector in selectors:
        assert selector.items() <= servers.items()
        assert not any(selector.items() <= labels.items() for labels in exports)
    (headless,) = (service for service in manifests["Service"] if service["spec"].get("clusterIP") == "None")
    assert [port["name"] for port in headless["spec"]["ports"]] == ["grpc"]
    if "ServiceMonitor" in manifests:
        wanted = the(manifests, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
        watched = [service for service in manifests["Service"] if wanted <= service["metadata"]["labels"].items()]
        assert len(watched) == 1 and "metrics" in {port["name"] for port in watched[0]["spec"]["ports"]}


def test_the_gateway_is_the_way_in(render):
    """It knows the server by the service that resolves to all replicas, and no other pod reaches the server."""
    manifests = render("cpu")
    pod = pod_of(the(manifests, "Deployment", "gateway"))
    (gateway,) = pod["containers"]
    options = options_of(gateway)
    services = {service["metadata"]["name"]: service["spec"] for service in manifests["Service"]}
    host, _, port = options.url.removeprefix("grpc://").partition(":")
    assert services[host]["clusterIP"] == "None" and int(port) == services[host]["ports"][0]["port"]
    assert options.host == "0.0.0.0" and [each["containerPort"] for each in gateway["ports"]] == [options.port]
    assert [variable["name"] for variable in gateway["env"]] == [KEYS_VARIABLE]
    assert pod["terminationGracePeriodSeconds"] > options.drain_seconds
    labels = the(manifests, "Deployment", "gateway")["spec"]["template"]["metadata"]["labels"]
    (front,) = (spec for spec in services.values() if spec["selector"].items() <= labels.items())
    assert front["ports"][0]["targetPort"] == "openai"
    requests, metrics = the(manifests, "NetworkPolicy")["spec"]["ingress"]
    (peer,) = requests["from"]
    assert peer["podSelector"]["matchLabels"].items() <= labels.items()
    assert metrics["from"] == [{"podSelector": {}}]
    more = the(render("cpu", "networkPolicy.clients[0].podSelector.matchLabels.app=x"), "NetworkPolicy")
    assert len(more["spec"]["ingress"][0]["from"]) == 2
    assert len(render("gpu")["Deployment"]) == 1


def test_the_gateway_reads_label_studio_s_images(render):
    """The address is in the arguments, the token in a secret; without them there is neither."""
    given = ("gateway.labelStudio.url=http://studio:8080", "gateway.labelStudio.secret=studio")
    (gateway,) = pod_of(the(render("cpu", *given), "Deployment", "gateway"))["containers"]
    assert options_of(gateway).label_studio == "http://studio:8080"
    *_, token = gateway["env"]
    assert token["valueFrom"]["secretKeyRef"] == {"name": "studio", "key": token["name"]}
    assert token["name"] == "LABEL_STUDIO_API_KEY" and len(gateway["env"]) == 2
    (open_to_all,) = pod_of(the(render("cpu", "gateway.keysSecret="), "Deployment", "gateway"))["containers"]
    assert "env" not in open_to_all and options_of(open_to_all).label_studio == ""


def test_scaling_looks_at_metrics_that_exist(render):
    """All requests from preprocess to the answer; the autoscaler's metric is the one that the adapter's rule makes."""
    adapter = yaml.safe_load((CHART.parent / "prometheus-adapter.yaml").read_text())["rules"]["custom"][0]
    (metric,) = the(render("gpu"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == adapter["name"]["as"]
    (trigger,) = the(render("cpu"), "ScaledObject")["spec"]["triggers"]
    kserve = yaml.safe_load((ROOT / "deploy" / "kserve" / "service.yaml").read_text())
    (external,) = kserve["spec"]["predictor"]["autoScaling"]["metrics"]
    filled = adapter["metricsQuery"].replace("<<.LabelMatchers>>", 'pod="x"').replace("<<.GroupBy>>", "pod")
    for query in (filled, trigger["metadata"]["query"], external["external"]["metric"]["query"]):
        promql_parser.parse(query)
        used = set(re.findall(r"\b(\w+)\{", query))
        assert used == {INSIDE.name}


def test_another_checkpoint_goes_to_another_folder(render):
    """An upgrade changes nothing under running servers: a job fills a new folder, which the new pods wait for."""
    folders, jobs = set(), set()
    for checkpoint in ("org/one", "org/two"):
        manifests = render("cpu", f"export.checkpoint={checkpoint}", "server.name=other")
        job, deployment = the(manifests, "Job"), the(manifests, "Deployment")
        options = cli.parser().parse_args(
            ["export", *(str(argument) for argument in pod_of(job)["containers"][0]["args"])]
        )
        served = options_of(server_of(manifests)).repository
        assert (options.checkpoint, options.name, options.target) == (checkpoint, "other", "cpu")
        assert (str(served.parent), str(options.repository)) == ("/models", f"/store/{served.name}")
        assert f"{served}/other_ensemble" in pod_of(deployment)["initContainers"][0]["command"]
        assert len(job["metadata"]["name"]) <= 63
        folders.add(served)
        jobs.add(job["metadata"]["name"])
    assert len(folders) == len(jobs) == 2
