"""Run Florence-2 in OpenVINO as a user would build it from OpenVINO's public notebook, for bench.compare.

The design is that of `notebooks/florence2/ov_florence2_helper.py` in openvinotoolkit/openvino_notebooks (commit
2a4f1f4): four converted models (image encoder, token embedding, language encoder, and a decoder that keeps its keys and
values as state and reorders them by `beam_idx`), default settings of `save_model` and `compile_model`, and
transformers' `generate` on top. The notebook pins transformers 4.51 and Microsoft's remote code; this port, written
anew, uses the Florence-2 that current transformers contains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13
from openvino._offline_transformations import apply_make_stateful_transformation
from torch import nn
from transformers import AutoProcessor, EncoderDecoderCache, Florence2Config, Florence2ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

IMAGE, EMBEDDING, ENCODER, DECODER = "image_encoder.xml", "embedding.xml", "encoder.xml", "decoder.xml"
POSITIONS = 2  # BART's position embeddings begin with two unused rows


class Past(EncoderDecoderCache):
    """Keys and values as plain lists: transformers' own caches begin with empty tensors, which do not convert."""

    class Layers:
        def __init__(self, tensors: list[torch.Tensor]) -> None:
            self.tensors = tensors

        def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
            if self.tensors:
                keys = torch.cat([self.tensors[2 * layer], keys], 2)
                values = torch.cat([self.tensors[2 * layer + 1], values], 2)
                self.tensors[2 * layer : 2 * layer + 2] = keys, values
            return keys, values

    def __init__(self, past: list[torch.Tensor]) -> None:
        self.self_attention_cache, self.cross_attention_cache = self.Layers(list(past)), self.Layers([])
        self.is_updated: dict[int, bool] = {}


class Decoder(nn.Module):
    """One decode step over the keys and values so far, [beams, heads, tokens, d] for each layer."""

    def __init__(self, model: Florence2ForConditionalGeneration) -> None:
        super().__init__()
        self.decoder, self.lm_head = model.model.language_model.decoder, model.lm_head

    def forward(self, token: torch.Tensor, encoded: torch.Tensor, past: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return the logits [beams, 1, words] of one token for each beam, and its layers' keys and values."""
        cache = Past(past)
        position = torch.ones_like(token[:1]) * past[0].shape[2]
        places = nn.functional.embedding(position + POSITIONS, self.decoder.embed_positions.weight)
        hidden = self.decoder.layernorm_embedding(self.decoder.embed_tokens(token) + places)
        mask = nn.functional.pad(past[0][:, :1, :, :1].transpose(2, 3) * 0, (0, 1))  # [beams, 1, 1, tokens + 1]
        for layer in self.decoder.layers:
            hidden = layer(hidden, mask, encoded, past_key_values=cache)
        return (self.lm_head(hidden), *cache.self_attention_cache.tensors)


class ImageEncoder(nn.Module):
    def __init__(self, model: Florence2ForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.get_image_features(pixels).pooler_output


class LanguageEncoder(nn.Module):
    def __init__(self, model: Florence2ForConditionalGeneration) -> None:
        super().__init__()
        self.encoder = model.model.language_model.encoder

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        return self.encoder(inputs_embeds=embeddings).last_hidden_state


def convert(checkpoint: Path, folder: Path) -> None:
    """Convert a checkpoint to four OpenVINO models, unless that was done before."""
    if (folder / DECODER).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    model = Florence2ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    model.eval().requires_grad_(False)
    text, size = model.config.text_config, AutoProcessor.from_pretrained(checkpoint).image_processor.size

    pixels = torch.zeros(1, 3, size["height"], size["width"])
    encoded = torch.ones(2, 20, text.d_model)
    ones = torch.ones(2, 1, dtype=torch.long)
    heads = text.decoder_attention_heads
    past = [torch.randn(2, heads, 3, text.d_model // heads) for _ in range(2 * text.decoder_layers)]
    with torch.inference_mode():
        _save(ImageEncoder(model), (pixels,), folder / IMAGE)
        _save(model.get_input_embeddings(), (ones,), folder / EMBEDDING)
        _save(LanguageEncoder(model), (encoded[:1],), folder / ENCODER)
        decoder = ov.convert_model(Decoder(model), example_input=(ones, encoded, past))
    make_stateful(decoder, (heads, text.d_model // heads))
    ov.save_model(decoder, folder / DECODER)


def _save(model: nn.Module, example: tuple[torch.Tensor, ...], path: Path) -> None:
    ov.save_model(ov.convert_model(model.eval(), example_input=example), path)


def make_stateful(model: ov.Model, head: tuple[int, int]) -> None:
    """Keep keys and values in the decoder: of the tokens, reordered by a new input `beam_idx`, and of the image."""
    token, encoded, *past = model.inputs
    beam_idx = opset13.parameter([-1], ov.Type.i32, "beam_idx")
    beam_idx.output(0).get_tensor().set_names({"beam_idx"})
    model.add_parameters([beam_idx])
    names = {}
    for number, (before, after) in enumerate(zip(past, model.outputs[1:], strict=True)):
        before.get_tensor().set_names({f"past.{number}"})
        after.get_tensor().set_names({f"present.{number}"})
        before.get_node().set_partial_shape(ov.PartialShape([-1, head[0], -1, head[1]]))
        consumers = before.get_target_inputs()
        chosen = opset13.gather(before, beam_idx, opset13.constant(0))
        for consumer in consumers:
            consumer.replace_source_output(chosen.output(0))
        names[f"past.{number}"] = f"present.{number}"
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, names)
    beams = opset13.gather(opset13.shape_of(token), opset13.constant([0]), opset13.constant(0))
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":  # an empty state has as many rows as there are beams
            shape = opset13.concat([beams, *(opset13.constant([size]) for size in (head[0], 0, head[1]))], axis=0)
            node.set_arguments([opset13.broadcast(opset13.constant(0.0, node.get_output_element_type(0)), shape)])
    model.validate_nodes_and_infer_types()
    _remember_encoded(model, encoded.get_node())  # valid once saved and read again, as in the notebook


def _remember_encoded(model: ov.Model, encoded: ov.Node) -> None:
    """Compute what follows from the encoder's output only, the keys and values of the image, once per answer."""
    fixed, depends = {encoded}, set[ov.Node]()
    for node in model.get_ordered_ops():
        sources = {value.get_node() for value in node.input_values()}
        if (node.get_type_name() in ("Parameter", "ReadValue", "ShapeOf") and node != encoded) or sources & depends:
            depends.add(node)
        elif sources & fixed:
            fixed.add(node)
    for number, node in enumerate(sorted(fixed - {encoded}, key=lambda node: str(node.get_friendly_name()))):
        uses = [use for use in node.output(0).get_target_inputs() if use.get_node() in depends]
        if uses:
            read = opset13.read_value(node.output(0), f"encoded.{number}")
            for use in uses:
                use.replace_source_output(read.output(0))
            model.add_sinks([opset13.assign(read, f"encoded.{number}")])


class OpenVinoFlorence2(Florence2ForConditionalGeneration):
    """transformers' model whose parts run in OpenVINO, with these settings; its own weights have no data."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, config: Florence2Config, folder: Path, **settings: str) -> None:
        with torch.device("meta"):
            super().__init__(config)
        core = ov.Core()
        self._image, self._embedding, self._encoder, decoder = (
            core.compile_model(folder / name, "CPU", settings) for name in (IMAGE, EMBEDDING, ENCODER, DECODER)
        )
        self._decoder = decoder.create_infer_request()
        self._beam_idx: np.ndarray | None = None

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any], *_arguments: object
    ) -> dict[str, Any]:
        """Encode the image and the prompt, and forget the state of the last answer."""
        features = self._image(model_kwargs.pop("pixel_values"))[0]
        embeddings = self._embedding(inputs_tensor)[0].copy()
        embeddings[(inputs_tensor == self.config.image_token_id).numpy()] = features.reshape(-1, features.shape[-1])
        encoded = torch.from_numpy(self._encoder(embeddings)[0].copy())
        self._decoder.reset_state()
        self._beam_idx = None
        return model_kwargs | {"encoder_outputs": BaseModelOutput(last_hidden_state=encoded)}

    def _reorder_cache(self, past_key_values: Any, beam_idx: torch.Tensor) -> Any:
        self._beam_idx = beam_idx.numpy()
        return past_key_values

    def forward(
        self,
        decoder_input_ids: torch.Tensor,
        encoder_outputs: BaseModelOutput,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        **_options: object,
    ) -> Seq2SeqLMOutput:
        beams = np.arange(len(decoder_input_ids)) if self._beam_idx is None else self._beam_idx
        encoded = encoder_outputs.last_hidden_state
        result = self._decoder.infer([decoder_input_ids[:, -1:], encoded, beams.astype(np.int32)])
        return Seq2SeqLMOutput(logits=torch.from_numpy(result[0].copy()), past_key_values=past_key_values)
