"""One configuration, two runtimes: what of config.pbtxt counts when an ONNX file is run, on a graph of three nodes."""

import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from florence2.errors import ServerError
from florence2.triton.onnx_session import CPU, CUDA, TENSORRT, OnnxRuntime, OpenVino, gpu_providers, open_session

WEIGHTS = np.random.default_rng(0).standard_normal((8, 4), dtype=np.float32)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """uint8 [batch, 8] -> its product with WEIGHTS, and their sum."""
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["float", "weights"], ["product"]),
        helper.make_node("ReduceSum", ["product", "axes"], ["sum"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", 8])],
        [
            helper.make_tensor_value_info("product", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch"]),
        ],
        [onnx.numpy_helper.from_array(WEIGHTS, "weights"), onnx.numpy_helper.from_array(np.array([1]), "axes")],
    )
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def config(name: str, batch: int = 8, threads: str | None = None, **properties: str) -> dict:
    accelerators = {"cpu_execution_accelerator": [{"name": name, "parameters": properties}]}
    return {
        "max_batch_size": batch,
        "optimization": {"execution_accelerators": accelerators},
        "parameters": {"intra_op_thread_count": {"string_value": threads}} if threads else {},
    }


def check(session, batch: int) -> None:
    x = np.random.default_rng(batch).integers(0, 256, (batch, 8), dtype=np.uint8)
    outputs = session.run({"x": x})
    np.testing.assert_allclose(outputs["product"], x @ WEIGHTS, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(outputs["sum"], (x @ WEIGHTS).sum(1), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 3])
def test_without_an_accelerator_it_is_onnx_runtime(file, batch):
    """The C++ backend does the same, also when the configuration names only a GPU's accelerator."""
    session = open_session(
        file, {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": [{"name": "tensorrt"}]}}}
    )
    assert isinstance(session, OnnxRuntime)
    check(session, batch)


@pytest.mark.parametrize(("most", "batch"), [(8, 1), (8, 3), (0, 3)])
def test_openvino_gives_every_image_of_a_batch_its_own_result(file, most, batch):
    """Whether it computes them one by one or, in a model that does not batch, leaves the shape as it is."""
    session = open_session(file, config("openvino", most, INFERENCE_PRECISION_HINT="f32"))
    assert isinstance(session, OpenVino)
    check(session, batch)


def test_results_of_one_run_survive_the_next(file):
    """OpenVINO reuses the memory of its outputs; what was handed out must not change."""
    session = open_session(file, config("openvino"))
    first = session.run({"x": np.full((1, 8), 1, np.uint8)})["product"]
    before = first.copy()
    session.run({"x": np.full((1, 8), 9, np.uint8)})
    np.testing.assert_array_equal(first, before)


def test_threads_are_what_the_config_says_and_else_the_servers(file, monkeypatch):
    """`intra_op_thread_count` wins over OMP_NUM_THREADS, which `florence2 serve` sets for all libraries."""
    seen = []
    monkeypatch.setattr("florence2.triton.onnx_session.OpenVino", lambda *given: seen.append(given[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    open_session(file, config("openvino"))
    open_session(file, config("openvino", threads="3"))
    assert seen == [5, 3]


def test_a_property_that_openvino_does_not_know_is_named(file):
    """The parameters of the accelerator are OpenVINO's own properties."""
    with pytest.raises(ServerError, match=r"OpenVINO cannot run the model with .*WARP_SPEED"):
        open_session(file, config("openvino", WARP_SPEED="9"))


def test_an_unknown_accelerator_is_refused_as_by_the_real_backend(file):
    """A typing mistake must not silently cost half the speed."""
    with pytest.raises(ServerError, match="unknown execution accelerator 'openwine'; on a CPU there is 'openvino'"):
        open_session(file, config("openwine"))


def test_missing_openvino_is_one_sentence_with_the_remedy(file, monkeypatch):
    """It is part of the serve extra, but a repository may be served where it is not installed."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ServerError, match="asks for OpenVINO, which is not installed; run: pip install openvino"):
        open_session(file, config("openvino"))


def on_gpu(*accelerators: dict) -> dict:
    return {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": list(accelerators)}}}


@pytest.mark.parametrize(
    ("accelerators", "expected"),
    [
        ([], [(CUDA, {"device_id": "1"})]),
        ([{"name": "cuda"}], [(CUDA, {"device_id": "1"})]),
        ([{"name": "cuda", "parameters": {"use_tf32": "0"}}], [(CUDA, {"device_id": "1", "use_tf32": "0"})]),
        (
            [{"name": "tensorrt", "parameters": {"max_workspace_size_bytes": "7", "trt_engine_cache_enable": "true"}}],
            [
                (TENSORRT, {"device_id": "1", "trt_max_workspace_size": "7", "trt_engine_cache_enable": "true"}),
                (CUDA, {"device_id": "1"}),
            ],
        ),
        (
            [{"name": "tensorrt", "parameters": {"precision_mode": "FP16"}}],
            [(TENSORRT, {"device_id": "1", "trt_fp16_enable": "1"}), (CUDA, {"device_id": "1"})],
        ),
    ],
)
def test_a_gpus_providers_are_those_of_the_real_backend(accelerators, expected):
    """Its CUDA provider follows in any case, for what TensorRT does not run."""
    assert gpu_providers(on_gpu(*accelerators), 1) == expected


def test_unknown_accelerators_and_modes_of_a_gpu_are_refused():
    with pytest.raises(ServerError, match="unknown execution accelerator 'openvino'; on a GPU there are 'cuda' and"):
        gpu_providers(on_gpu({"name": "openvino"}), 0)
    with pytest.raises(ServerError, match="unknown precision_mode 'FP8'; TensorRT has FP32, FP16, BF16, INT8"):
        gpu_providers(on_gpu({"name": "tensorrt", "parameters": {"precision_mode": "FP8"}}), 0)


def test_a_cpu_build_of_onnxruntime_names_the_command_that_replaces_it(file):
    """Otherwise a server on a rented GPU would silently run its encoder on the CPU."""
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this is the build for GPUs")
    with pytest.raises(ServerError, match=r"onnxruntime is a CPU build, without CUDAExec.*; run: .* onnxruntime-gpu"):
        open_session(file, on_gpu({"name": "cuda"}), gpu=0)


def test_a_provider_that_does_not_start_is_an_error_and_not_a_slow_server(file, monkeypatch):
    """ONNX Runtime prints why it cannot load a provider and continues on the CPU."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: None)
    on_the_cpu = onnxruntime.InferenceSession(file, providers=[CPU])
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda path, options, providers: on_the_cpu)
    with pytest.raises(ServerError, match="onnxruntime could not start its CUDAExecutionProvider"):
        open_session(file, on_gpu({"name": "cuda"}), gpu=0)
