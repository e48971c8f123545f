"""Compare the exported vision encoder with transformers', which gets images from the checkpoint's processor."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import CLIPImageProcessorPil, Florence2ForConditionalGeneration
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig
from transformers.models.florence2.modeling_florence2 import Florence2VisionBackbone

from florence2.triton.onnx_session import OpenVino
from florence2_export.davit import ChannelAttention, Tower
from florence2_export.sample_images import calibration_images, draw_images
from florence2_export.vision import INPUT, OUTPUT, VisionEncoder, export_vision, quantize


@pytest.fixture(scope="module")
def file(exported):
    return exported[0] / "florence2_vision" / "1" / "model.onnx"


def random_images(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_features_equal_transformers_for_any_batch(demo, file, checkpoint, batch):
    """From uint8 pixels the model computes the `pooler_output` of the processor's pixel values, for any batch."""
    pixels = random_images(batch, checkpoint.config.image.width)
    pixel_values = CLIPImageProcessorPil.from_pretrained(demo)(list(pixels), return_tensors="pt").pixel_values
    with torch.inference_mode():
        reference = Florence2ForConditionalGeneration.from_pretrained(demo, dtype=torch.float32).eval()
        expected = reference.model.get_image_features(pixel_values).pooler_output.numpy()
    (features,) = onnxruntime.InferenceSession(file).run([OUTPUT], {INPUT: pixels})
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=2e-5)


def test_the_file_fits_the_oldest_server(file, checkpoint):
    """Opset, IR, inputs and outputs are those that ONNX Runtime 1.19 of Triton 24.10 and florence2_vision expect."""
    model = onnx.load(file)
    assert model.ir_version <= 10
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    (pixels,), (features,) = model.graph.input, model.graph.output
    image, text = checkpoint.config.image, checkpoint.config.text
    assert (pixels.name, pixels.type.tensor_type.elem_type) == (INPUT, onnx.TensorProto.UINT8)
    assert (features.name, features.type.tensor_type.elem_type) == (OUTPUT, onnx.TensorProto.FLOAT)
    assert dims(pixels) == ["batch", image.height, image.width, 3]
    assert dims(features) == ["batch", image.tokens, text.d_model]


def dims(value) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_the_file_names_its_provenance_but_nothing_of_the_machine(file, checkpoint):
    """Its metadata names the checkpoint and versions. No path of the exporting machine is left."""
    metadata = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert metadata["checkpoint"] == checkpoint.source.name
    assert metadata.keys() >= {"weights_sha256", "vision_precision", "target", "florence2", "torch", "transformers"}
    assert "exported" not in metadata, "equal exports are equal files"
    data = file.read_bytes()
    assert b"stack_trace" not in data and b"site-packages" not in data and b".py" not in data


@pytest.fixture(scope="module")
def float16(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("float16") / "model.onnx"
    export_vision(checkpoint, path, "float16", {})
    return path


def test_float16_leaves_norms_softmax_and_channel_attention_in_float32(float16):
    """All other layers with weights compute in float16. Pixels and features keep their types."""
    model = onnx.shape_inference.infer_shapes(onnx.load(float16))
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    kinds |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    computed = {
        kind: {kinds.get(node.input[0]) for node in model.graph.node if node.op_type == kind}
        for kind in ("LayerNormalization", "Softmax", "Conv", "MatMul")
    }
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert computed["LayerNormalization"] == computed["Softmax"] == {single}
    assert computed["Conv"] == {half}
    weights = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            assert kinds[node.input[0]] == half
    blocks = 5  # of the bundled checkpoint: two products of channel attention each are float32, two of windows float16
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] not in weights]
    assert [kinds[node.input[0]] for node in products].count(single) == 2 * blocks
    assert len(products) == 4 * blocks
    assert model.graph.output[0].type.tensor_type.elem_type == single


def test_float16_stays_close_to_float32(file, float16, checkpoint):
    """ONNX Runtime's CPU kernels can run the file for GPUs."""
    pixels = random_images(2, checkpoint.config.image.width)
    (exact,), (half,) = (onnxruntime.InferenceSession(path).run([OUTPUT], {INPUT: pixels}) for path in (file, float16))
    assert np.linalg.norm(half - exact) < 0.01 * np.linalg.norm(exact)


def test_a_channel_sum_over_many_places_stays_finite_in_float16():
    """The query's weights include the scale, so that even the sum over 36,864 places of base's first stage fits."""
    attention = ChannelAttention(32, 1, bias=True)
    for parameter in attention.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    x = torch.full((1, 192 * 192, 32), 2.0)
    exact = attention.split(x)
    attention.fold_scale(192, 192)
    query, key, _ = attention.split(x)
    torch.testing.assert_close(query, exact[0] / 192)
    assert torch.isinf((exact[0].transpose(-2, -1) @ exact[1]).half()).all()
    assert torch.isfinite((query.transpose(-2, -1) @ key).half()).all()


def test_windows_that_do_not_fit_are_padded_as_in_transformers():
    """Image sizes of fine-tunes may need padding; the published one does not."""
    config = Florence2VisionConfig(
        embed_dim=[32, 64], depths=[1, 1], num_heads=[1, 2], num_groups=[1, 2], patch_size=[7, 3], patch_stride=[4, 2],
        patch_padding=[3, 1], patch_prenorm=[False, True], window_size=5, projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = Florence2VisionBackbone(config).eval()
    ours = Tower(config, 96, 72).eval()
    ours.load_state_dict(theirs.state_dict())
    ours.fold_scales()
    pixels = torch.randn(2, 3, 96, 72)
    with torch.inference_mode():
        expected = theirs(pixels).last_hidden_state.flatten(2).transpose(1, 2)
        torch.testing.assert_close(ours(pixels.permute(0, 2, 3, 1).flatten(1, 2)), expected, atol=2e-5, rtol=1e-4)


def test_int8_keeps_the_features_near(file, checkpoint, tmp_path):
    """All products with weights except the last are quantized. The features stay close, in OpenVINO too."""
    path = tmp_path / "model.onnx"
    quantize(file, path, calibration_images(checkpoint.config.image))
    model = onnx.load(path)
    assert model.ir_version <= 10 and max(opset.version for opset in model.opset_import) <= 21
    assert {entry.key: entry.value for entry in model.metadata_props}["checkpoint"] == checkpoint.source.name
    assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in model.graph.initializer) >= 40
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    pixels = np.stack([np.asarray(image) for image in draw_images(checkpoint.config.image, 2)])
    (exact,) = onnxruntime.InferenceSession(file).run([OUTPUT], {INPUT: pixels})
    (quantized,) = onnxruntime.InferenceSession(path).run([OUTPUT], {INPUT: pixels})
    served = OpenVino(path, 2, True, {"INFERENCE_PRECISION_HINT": "bf16"}).run({INPUT: pixels})[OUTPUT]
    for features in (quantized, served):
        assert np.linalg.norm(features - exact) < 0.2 * np.linalg.norm(exact)


def test_the_module_equals_the_onnx_file(file, checkpoint):
    """Tracing did not fix a branch that depends on the example image."""
    pixels = random_images(1, checkpoint.config.image.width)
    encoder = VisionEncoder(checkpoint).eval()
    with torch.inference_mode():
        expected = encoder(torch.from_numpy(pixels)).numpy()
    (features,) = onnxruntime.InferenceSession(file).run([OUTPUT], {INPUT: pixels})
    np.testing.assert_allclose(features, expected, atol=2e-5)
