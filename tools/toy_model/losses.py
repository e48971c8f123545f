"""The losses of the training: of the dense head, and of the answers' tokens."""

import math

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Florence2ForConditionalGeneration

from tools.toy_model.architecture import EOS, IMAGE_TOKENS, LOCATION_COUNT, PAD
from tools.toy_model.batches import NOTHING, TASKS_PER_IMAGE, Batch
from tools.toy_model.shapes import COLORS, KINDS, WORDS

# The dense head's outputs per grid cell, in this order.
DENSE_SIZES = {
    "shape": 1,
    "shape_box": 4,
    "kind": len(KINDS),
    "color": len(COLORS),
    "word": 1,
    "word_box": 4,
    "text": len(WORDS),
}


def dense_loss(outputs: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of `outputs` [B, G, G, sum of DENSE_SIZES] against the cells' contents, and figures to report."""
    parts = dict(zip(DENSE_SIZES, outputs.split(list(DENSE_SIZES.values()), dim=-1), strict=True))
    shapes, words = labels["kind"] != NOTHING, labels["text"] != NOTHING
    loss = 4 * presence_loss(parts["shape"], shapes) + 4 * presence_loss(parts["word"], words)
    loss = loss + 10 * functional.l1_loss(parts["shape_box"][shapes], labels["shape_box"][shapes])
    loss = loss + functional.cross_entropy(parts["kind"][shapes], labels["kind"][shapes])
    loss = loss + functional.cross_entropy(parts["color"][shapes], labels["color"][shapes])
    if words.any():
        loss = loss + functional.cross_entropy(parts["text"][words], labels["text"][words])
        loss = loss + 10 * functional.l1_loss(parts["word_box"][words], labels["word_box"][words])
    with torch.no_grad():
        figures = {
            "kind": accuracy(parts["kind"][shapes], labels["kind"][shapes]),
            "word": accuracy(parts["text"][words], labels["text"][words]),
            "box error": 1000 * (parts["shape_box"][shapes] - labels["shape_box"][shapes]).abs().mean().item(),
        }
    return loss, figures


def presence_loss(logits: Tensor, present: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits[..., 0], present.float())


def accuracy(logits: Tensor, truth: Tensor) -> float:
    return (logits.argmax(-1) == truth).float().mean().item() if len(truth) else math.nan


def text_loss(logits: Tensor, truth: Tensor, first_location: int, softness: float) -> tuple[Tensor, dict[str, float]]:
    """Return the cross entropy of `logits` [N, V] and `truth` [N]; a location's target is spread over its neighbors.

    A location next to the right one is nearly right, which is faster to learn than a thousand unrelated tokens. The
    spread's own entropy is subtracted, so that a perfect answer costs nothing.
    """
    log_probs = logits.log_softmax(-1)
    is_location = (truth >= first_location) & (truth < first_location + LOCATION_COUNT)
    bins = truth[is_location] - first_location
    location_log_probs = log_probs[is_location, first_location : first_location + LOCATION_COUNT]
    distance = torch.arange(LOCATION_COUNT)[None] - bins[:, None]
    spread = torch.softmax(-0.5 * (distance / softness) ** 2, dim=1)
    entropy = -(spread * spread.clamp_min(1e-9).log()).sum(1)
    location_loss = -(spread * location_log_probs).sum(1) - entropy
    word_loss = functional.nll_loss(log_probs[~is_location], truth[~is_location], reduction="sum")
    with torch.no_grad():
        error = (location_log_probs.argmax(-1) - bins).abs().float()
        figures = {
            "text": accuracy(logits[~is_location], truth[~is_location]),
            "location error": error.mean().item(),
            "median": error.median().item(),
        }
    return (word_loss + location_loss.sum()) / len(truth), figures


def answer_logits(model: Florence2ForConditionalGeneration, images: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return logits [N, V] and truth [N] of all answer tokens after the forced <s>; `images` is [B, 37, d].

    Rows run in three groups by answer length: padding all of them to one length would double the work.
    """
    images = images.repeat_interleave(TASKS_PER_IMAGE, 0)
    order = (batch.answers != PAD).sum(1).argsort()
    half, most = len(order) // 2, len(order) * 5 // 6
    groups = (order[:half], order[half:most], order[most:])
    logits, truth = zip(*(group_logits(model, images, batch, rows) for rows in groups), strict=True)
    return torch.cat(logits), torch.cat(truth)


def group_logits(
    model: Florence2ForConditionalGeneration, images: Tensor, batch: Batch, rows: Tensor
) -> tuple[Tensor, Tensor]:
    prompts, answers = trimmed(batch.prompts[rows]), trimmed(batch.answers[rows])
    embeddings = torch.cat([images[rows], model.get_input_embeddings()(prompts)], dim=1)
    seen = torch.ones(len(rows), IMAGE_TOKENS, dtype=torch.long)
    states = model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask=torch.cat([seen, (prompts != PAD).long()], dim=1),
        decoder_input_ids=torch.cat([torch.full((len(rows), 1), EOS), answers[:, :-1]], dim=1),
    ).last_hidden_state
    counted = answers != PAD
    counted[:, 0] = False
    return model.lm_head(states[counted]), answers[counted]


def trimmed(ids: Tensor) -> Tensor:
    return ids[:, : int((ids != PAD).sum(1).max())]
