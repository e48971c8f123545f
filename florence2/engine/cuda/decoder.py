"""The decoder's layers in torch, over the rows of a padded step.

The linear layers run on all rows together, which reads the weights once.

R rows of a step, D d_model, V rows of the embedding.
"""

from __future__ import annotations

from torch import Tensor

from florence2.engine.bart import DecoderLayer, LanguageModel, PackedLayer
from florence2.engine.cuda.step import PaddedStep
from florence2.engine.linear import pack


class PaddedLayer(PackedLayer):
    """A decoder layer."""

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__(layer)
        attention = layer.encoder_attn
        self.cross_query, self.cross_out = pack(attention.q_proj), pack(attention.out_proj)
        self.cross_norm = layer.encoder_attn_layer_norm

    def __call__(self, x: Tensor, step: PaddedStep, index: int) -> Tensor:
        """[R, D] -> [R, D]"""
        attended = step.attend_to_self(index, *self.project(x)).flatten(1)
        x = self.self_norm(x + self.self_out(attended))
        attended = step.attend_to_encoder(index, self.split(self.cross_query(x) * self.scale)).flatten(1)
        x = self.cross_norm(x + self.cross_out(attended))
        return self.feed_forward(x)


class PaddedDecoder:
    """The decoder of a model, from which it takes the decoder layers and the head."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._layers = [PaddedLayer(layer) for layer in model.decoder.take_layers()]
        self._head = pack(model.take_head())

    def decode(self, step: PaddedStep) -> Tensor:
        """Return the float32 logits [R, V] of the tokens that follow the step's."""
        model = self._model
        x = model.decoder.embed(model.embed(step.tokens), step.positions)
        for index, layer in enumerate(self._layers):
            x = layer(x, step, index)
        return self._head(x).float()
