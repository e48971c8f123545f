"""The bundled checkpoint and its scenes: a seed gives one scene, and the model can and does give the answers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from florence2.tasks import TASKS
from tools.toy_model import scenes

DEMO = Path(__file__).parents[3] / "demo"
CHECKPOINT = DEMO / "checkpoint"
MAX_CHECKPOINT_BYTES = 12_000_000
# Neither training nor the table of demo/README.md uses these.
SEEDS = range(5000, 5012)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_seed_gives_the_same_scene():
    once, again = scenes.make_scene(11), scenes.make_scene(11)
    assert once == again
    assert scenes.make_examples(once, 11) == scenes.make_examples(again, 11)
    assert once.draw(96).tobytes() == again.draw(96).tobytes()
    assert once != scenes.make_scene(12)


def test_scenes_stay_within_what_the_answers_can_say():
    for seed in range(200):
        scene = scenes.make_scene(seed)
        assert 1 <= len(scene.shapes) <= 3 and len(scene.words) <= 2
        assert len({shape.color for shape in scene.shapes}) == len(scene.shapes)
        assert len(scenes.make_examples(scene, seed)) == (15 if scene.words else 14)
        for thing in (*scene.shapes, *scene.words):
            assert min(thing.box) >= 0 and max(thing.box) <= 1


def test_no_answer_repeats_three_tokens():
    """Default decoding never writes the same three tokens twice, so it could not give such an answer."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    for seed in range(300):
        for example in scenes.make_examples(scenes.make_scene(seed), seed).values():
            ids = tokenizer.encode(f"</s><s>{example.target}</s>", add_special_tokens=False).ids
            trigrams = list(zip(ids, ids[1:], ids[2:], strict=False))
            assert len(trigrams) == len(set(trigrams)), example


def test_the_bundled_image_has_an_answer_for_every_task():
    truth = json.loads((DEMO / "images" / "scene.json").read_text())
    assert set(truth["tasks"]) == set(TASKS)
    examples = scenes.make_examples(scenes.make_scene(truth["seed"]), truth["seed"])
    assert truth["tasks"]["<OD>"]["answer"] == examples["<OD>"].target


def test_the_checkpoint_is_small():
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= MAX_CHECKPOINT_BYTES


def test_the_checkpoint_answers_unseen_scenes():
    pytest.importorskip("transformers")
    from tools.toy_model.evaluate import evaluate

    tasks = ("<CAPTION>", "<OCR>", "<OD>", "<CAPTION_TO_PHRASE_GROUNDING>", "<REGION_TO_CATEGORY>")
    with one_torch_thread():  # threads that wait for each other are slow on a busy machine
        scores = evaluate(CHECKPOINT, SEEDS, tasks=tasks)
    assert scores["<CAPTION>"].exact_share >= 0.7
    assert scores["<OCR>"].exact_share >= 0.7
    assert scores["<OD>"].f1 >= 0.8 and scores["<OD>"].mean_overlap >= 0.7
    assert scores["<CAPTION_TO_PHRASE_GROUNDING>"].found_share >= 0.7
    assert scores["<REGION_TO_CATEGORY>"].exact_share >= 0.8
