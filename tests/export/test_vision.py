"""The exported vision encoder against transformers' own, through the checkpoint's own image processor."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import CLIPImageProcessorPil, Florence2ForConditionalGeneration
from transformers.models.florence2.modeling_florence2 import eager_attention_forward

from export.vision import ATTENTION, INPUT, OUTPUT, VisionEncoder, query_scaled_first


@pytest.fixture(scope="module")
def file(exported):
    return exported[0] / "florence2_vision" / "1" / "model.onnx"


def random_pictures(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_features_equal_transformers_for_any_batch(demo, file, checkpoint, batch):
    """uint8 pixels in, `pooler_output` of processor-made pixel values out, whatever the batch."""
    pixels = random_pictures(batch, checkpoint.config.image.width)
    pixel_values = CLIPImageProcessorPil.from_pretrained(demo)(list(pixels), return_tensors="pt").pixel_values
    with torch.inference_mode():
        reference = Florence2ForConditionalGeneration.from_pretrained(demo, dtype=torch.float32).eval()
        expected = reference.model.get_image_features(pixel_values).pooler_output.numpy()
    (features,) = onnxruntime.InferenceSession(file).run([OUTPUT], {INPUT: pixels})
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=2e-5)


def test_the_file_fits_the_oldest_server(file, checkpoint):
    """Opset, IR and interface that Triton 24.10's ONNX Runtime 1.19 and florence2_vision's config expect."""
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


def test_the_file_says_what_made_it_and_nothing_of_the_machine(file, checkpoint):
    """Metadata names the checkpoint and the versions; no path of the exporting machine is left."""
    metadata = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert metadata.keys() == {"checkpoint", "florence2-triton", "torch", "transformers"}
    assert metadata["checkpoint"] == checkpoint.config.source
    data = file.read_bytes()
    assert b"stack_trace" not in data and b"site-packages" not in data and b".py" not in data


def test_scaling_the_query_first_changes_nothing_but_the_range():
    """Equal to transformers' attention in float32; in float16 the product of many tokens stays finite."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 7) for _ in range(3))
    ours, _ = query_scaled_first(torch.nn.Module(), query, key, value, None, scaling=0.3)
    theirs, _ = eager_attention_forward(torch.nn.Module(), query, key, value, None, scaling=0.3)
    torch.testing.assert_close(ours, theirs)

    tokens = 192 * 192
    many = torch.full((1, 1, 2, tokens), 2.0, dtype=torch.float16)
    assert torch.isinf(many @ many.transpose(-2, -1)).all()
    ours, _ = query_scaled_first(torch.nn.Module(), many, many, many, None, scaling=tokens**-0.5)
    assert torch.isfinite(ours).all()


def test_the_wrapper_alone_equals_the_onnx_file(file, checkpoint):
    """The traced graph took no branch of the example picture."""
    pixels = random_pictures(1, checkpoint.config.image.width)
    encoder = VisionEncoder(checkpoint).eval()
    assert checkpoint.architecture.vision_config._attn_implementation != ATTENTION, "the reference stays transformers"
    with torch.inference_mode():
        expected = encoder(torch.from_numpy(pixels)).numpy()
    (features,) = onnxruntime.InferenceSession(file).run([OUTPUT], {INPUT: pixels})
    np.testing.assert_allclose(features, expected, atol=2e-5)
