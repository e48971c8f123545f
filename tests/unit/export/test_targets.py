"""Test the vision encoder's configuration for each `--target` and `--precision`."""

import shutil

import pytest
import tritonclient.http
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from florence2.errors import CheckpointError
from florence2.server.embedded import EmbeddedServer
from florence2.server.options import ServingOptions
from florence2_client import cli
from florence2_export import repository, targets

DIMS = {"PIXELS": [192, 192, 3], "IMAGE_FEATURES": [37, 128]}  # the bundled checkpoint's


def fitted(folder, target, precision, role="vision", accelerator=None):
    repository.copy_template(folder, "florence2", 1, DIMS, {})
    accelerator = targets.choose_accelerator(target, accelerator, precision)
    targets.fit(folder, "florence2", target, precision, accelerator)
    return repository.read_config(folder / f"florence2_{role}")


@pytest.mark.parametrize(
    ("target", "precision", "meaning"),
    [
        ("cpu", "auto", "bfloat16"),
        ("cpu", "float32", "float32"),
        ("cpu", "bfloat16", "bfloat16"),
        ("cpu", "int8", "int8"),
        ("cpu", "int4", "bfloat16"),
        ("gpu", "auto", "float16"),
        ("gpu", "float32", "float32"),
        ("gpu", "float16", "float16"),
        ("gpu", "bfloat16", "float16"),
        ("gpu", "int4", "float16"),
    ],
)
def test_each_precision_has_a_meaning_for_the_encoder(target, precision, meaning):
    """One option sets both models. If a target cannot compute in a precision, it uses the nearest one."""
    assert targets.vision_precision(target, precision) == meaning


def test_an_unsupported_precision_is_refused_with_alternatives():
    """float16 has no benefit on a CPU, and int8 exists only for CPUs."""
    with pytest.raises(CheckpointError, match="float16 is for --target gpu; on a CPU choose auto, bfloat16"):
        targets.vision_precision("cpu", "float16")
    with pytest.raises(CheckpointError, match="int8 is for --target cpu; on a GPU choose auto, float16"):
        targets.vision_precision("gpu", "int8")


def test_the_command_line_offers_every_target():
    """The command line repeats the choices, so that --help does not load torch."""
    assert cli.parser().parse_args(["export", "x"]).target == "cpu"
    for target in targets.TARGETS:
        assert cli.parser().parse_args(["export", "x", "--target", target]).target == target


@pytest.mark.parametrize(("precision", "hint"), [("float32", "f32"), ("bfloat16", "bf16"), ("int8", "bf16")])
def test_a_cpu_gets_openvino_and_a_cache(tmp_path, precision, hint):
    """A CPU gets no batching, which would only delay requests. The warm-up uses the checkpoint's image size."""
    config = fitted(tmp_path, "cpu", precision)
    (accelerator,) = config.optimization.execution_accelerators.cpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("openvino", {"INFERENCE_PRECISION_HINT": hint})
    assert config.response_cache.enable and not config.HasField("dynamic_batching")
    assert [list(sample.inputs["PIXELS"].dims) for sample in config.model_warmup] == [DIMS["PIXELS"]]
    for role in repository.ROLES:
        groups = repository.read_config(tmp_path / f"florence2_{role}").instance_group
        assert all(group.kind == ModelInstanceGroup.KIND_CPU for group in groups)


@pytest.mark.parametrize(
    ("precision", "accelerator", "name", "parameters"),
    [
        ("float16", None, "cuda", {}),
        ("float32", None, "cuda", {"use_tf32": "0"}),
        ("float16", "cuda", "cuda", {}),
        ("float16", "tensorrt", "tensorrt", {"max_workspace_size_bytes": "2147483648"}),
    ],
)
def test_a_gpu_gets_cuda_unless_tensorrt_is_asked_for(tmp_path, precision, accelerator, name, parameters):
    """A GPU gets no cache, which takes only tensors in CPU memory. The decoder uses a GPU if there is one."""
    config = fitted(tmp_path, "gpu", precision, accelerator=accelerator)
    (chosen,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert chosen.name == name and parameters.items() <= dict(chosen.parameters).items()
    assert config.HasField("dynamic_batching") and not config.response_cache.enable
    assert [sample.batch_size for sample in config.model_warmup] == [1, config.max_batch_size]
    assert [list(sample.inputs["PIXELS"].dims) for sample in config.model_warmup] == [DIMS["PIXELS"]] * 2
    decoder = repository.read_config(tmp_path / "florence2_decoder")
    assert [group.kind for group in decoder.instance_group] == [ModelInstanceGroup.KIND_AUTO]
    assert decoder.parameters["rows"].string_value == "96"


def test_the_file_decides_what_tensorrt_computes_in_float32(tmp_path):
    """A precision mode would let TensorRT 10 compute layer norms in float16; TensorRT 11 has none."""
    (tensorrt,) = fitted(
        tmp_path, "gpu", "float16", accelerator="tensorrt"
    ).optimization.execution_accelerators.gpu_execution_accelerator
    assert "precision_mode" not in tensorrt.parameters


def test_an_accelerator_that_cannot_do_it_is_refused():
    with pytest.raises(CheckpointError, match=r"TensorRT computes float32 with .* choose --accelerator cuda"):
        targets.choose_accelerator("gpu", "tensorrt", "float32")
    with pytest.raises(CheckpointError, match="--accelerator is for --target gpu"):
        targets.choose_accelerator("cpu", "cuda", "bfloat16")
    assert targets.choose_accelerator("cpu", None, "bfloat16") is None


@pytest.mark.parametrize(("cores", "processes"), [(1, 2), (8, 4), (64, 8)])
def test_a_gpu_gets_enough_processes_that_decode_images(tmp_path, monkeypatch, cores, processes):
    monkeypatch.setattr(targets, "usable_cores", lambda: cores)
    (group,) = fitted(tmp_path, "gpu", "float16", role="preprocess").instance_group
    assert group.count == processes and group.kind == ModelInstanceGroup.KIND_CPU


@pytest.mark.live
def test_the_real_server_accepts_the_gpu_configuration(tmp_path, exported):
    """Without a GPU, tritonserver accepts every field, warms up, and serves the model with ONNX Runtime."""
    config = fitted(tmp_path, "gpu", "float32")
    served = tmp_path / "served"
    shutil.move(tmp_path / "florence2_vision", served / "florence2_vision")
    for file in (exported[0] / "florence2_vision" / "1").iterdir():
        shutil.copy(file, served / "florence2_vision" / "1")
    with EmbeddedServer(ServingOptions.on_free_ports(served), report=lambda line: None) as server:
        client = tritonclient.http.InferenceServerClient(server.http_url.removeprefix("http://"))
        seen = client.get_model_config("florence2_vision")
        (ran,) = client.get_inference_statistics("florence2_vision")["model_stats"]
        client.close()
    (accelerator,) = seen["optimization"]["execution_accelerators"]["gpu_execution_accelerator"]
    (written,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator["parameters"] == dict(written.parameters)
    assert [sample["name"] for sample in seen["model_warmup"]] == ["one image", "a full batch"]
    runs = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in ran["batch_stats"]}
    assert runs == {1: 1, config.max_batch_size: 1}, "the samples run before the first request"
