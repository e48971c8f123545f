"""Test that each stage of the parity report notices errors. test_pipeline tests that a correct export passes."""

import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Florence2ForConditionalGeneration

from florence2.engine.cuda.step import PaddedStep
from florence2.errors import ServerError
from florence2_export import parity
from florence2_export.language import export_language_model
from florence2_export.layouts import EMBEDDING, HEAD, UNTIED
from florence2_export.reference import load_reference


@pytest.fixture(scope="module")
def reference(checkpoint) -> Florence2ForConditionalGeneration:
    return load_reference(checkpoint)


@pytest.fixture
def decoder(exported, tmp_path):
    """Return a copy of the exported decoder to damage."""
    return shutil.copytree(exported[0] / "florence2_decoder" / "1", tmp_path / "decoder")


def nudge(decoder, name: str) -> None:
    weights = load_file(decoder / "model.safetensors")
    torch.manual_seed(0)
    weights[name] += 0.5 * torch.randn_like(weights[name])
    save_file(weights, decoder / "model.safetensors")


def test_one_wrong_feature_fails_the_vision_stage_of_float32():
    """The largest error decides, not the mean, and NaN always fails."""
    theirs = np.zeros((3, 5, 7), np.float32)
    assert parity.compare_features(theirs, theirs).passed
    for wrong in (0.1, np.nan, np.inf):
        ours = theirs.copy()
        ours[1, 2, 3] = wrong
        assert not parity.compare_features(ours, theirs).passed


@pytest.mark.parametrize("precision", [name for name, bound in parity.BOUNDS.items() if bound.features])
def test_lower_precisions_may_have_outliers_but_no_shift(precision):
    """Their mean error counts, in standard deviations of the features, so that their unit does not matter."""
    random = np.random.default_rng(0)
    theirs = 40 * random.standard_normal((3, 50, 70)).astype(np.float32)
    bound = parity.BOUNDS[precision].features
    ours = theirs + 40 * bound / 2 * random.standard_normal(theirs.shape).astype(np.float32)
    ours[0, 0, 0] += 30
    assert parity.compare_features(ours, theirs, precision).passed
    assert not parity.compare_features(ours, theirs).passed
    assert not parity.compare_features(theirs + 40 * 1.1 * bound, theirs, precision).passed
    ours[0, 0, 0] = np.nan
    assert not parity.compare_features(ours, theirs, precision).passed


def test_images_have_the_models_size_and_are_always_the_same(checkpoint):
    """This makes the reports of two exports comparable."""
    config = checkpoint.config.image
    first, second = parity.draw_images(config, 3), parity.draw_images(config, 3)
    assert [image.tobytes() for image in first] == [image.tobytes() for image in second]
    assert {image.size for image in first} == {(config.width, config.height)}
    assert len({image.tobytes() for image in first}) == 3


def test_a_changed_or_missing_tensor_fails_the_language_stage(decoder, reference):
    """The report names it."""
    assert parity.compare_weights(decoder, reference).passed
    nudge(decoder, "decoder.layers.0.fc1.bias")
    report = parity.compare_weights(decoder, reference)
    assert not report.passed and "decoder.layers.0.fc1.bias" in str(report)
    weights = load_file(decoder / "model.safetensors")
    del weights["decoder.layers.0.fc1.bias"]
    save_file(weights, decoder / "model.safetensors")
    assert not parity.compare_weights(decoder, reference).passed


@dataclass(frozen=True)
class Compared:
    """Answers of the engine, and what the report compares them with."""

    answers: list
    arguments: tuple

    def language(self, precision="float32"):
        reference, config, features, cases = self.arguments
        return parity.compare_log_probs(self.answers, reference, config, features, cases, precision)

    def tokens(self, exact=True):
        reference, config, features, cases = self.arguments
        return parity.compare_answers(self.answers, reference, config, features, cases, exact)


def compare(decoder, checkpoint, reference, target="cpu") -> Compared:
    image, text = checkpoint.config.image, checkpoint.config.text
    features = np.random.default_rng(0).standard_normal((3, image.tokens, text.d_model)).astype(np.float32)
    cases = parity.requests(checkpoint)
    answers = parity.run_language(decoder, features, cases, target)
    return Compared(answers, (reference, checkpoint.config, features, cases))


@pytest.mark.parametrize("name", UNTIED)
def test_an_untied_copy_of_the_embedding_is_exported_and_compared(copy, decoder, name):
    """The head or the decoder's embedding of such a fine-tune differs from the prompt's, here and in transformers."""
    copy.reweigh(lambda weights: weights.update({name: weights[EMBEDDING].flip(0)}))
    untied = copy.read()
    reference = load_reference(untied)
    assert not parity.compare_weights(decoder, reference).passed
    export_language_model(untied.weights, decoder / "model.safetensors")
    assert parity.compare_weights(decoder, reference).passed
    assert compare(decoder, untied, reference).tokens().passed


def test_wrong_weights_fail_the_language_and_the_answers_stage(decoder, checkpoint, reference):
    """The language stage compares scores of the same tokens, the answers stage tokens, greedy and with beams."""
    right = compare(decoder, checkpoint, reference)
    assert right.language().passed and right.tokens().passed
    assert "6 of 6" in str(right.tokens()) and "1 and 3 beams" in str(right.tokens())
    nudge(decoder, "decoder.layers.1.fc1.weight")
    wrong = compare(decoder, checkpoint, reference)
    assert not wrong.language().passed and not wrong.language("int8").passed
    assert not wrong.tokens().passed


def test_a_lower_precision_reports_changed_answers_and_is_judged_by_its_scores(decoder, checkpoint, reference):
    """bfloat16 weights exceed float32's bound, but not their own."""
    weights = load_file(decoder / "model.safetensors")
    save_file({name: tensor.bfloat16().float() for name, tensor in weights.items()}, decoder / "model.safetensors")
    rounded = compare(decoder, checkpoint, reference)
    assert not rounded.language().passed and rounded.language("bfloat16").passed
    assert rounded.tokens(exact=False).passed


def test_a_checkpoint_that_answers_with_nothing_fails_the_language_stage(copy, decoder):
    """Its head always prefers the end token, so there are no scores to compare, which the report says."""

    def silence(weights):
        norm = "model.language_model.decoder.layers.2.final_layer_norm"
        weights[f"{norm}.weight"].zero_()
        weights[f"{norm}.bias"].zero_()[0] = 10
        weights[HEAD] = torch.zeros_like(weights[EMBEDDING])
        weights[HEAD][2, 0] = 1

    copy.reweigh(silence)
    silent = copy.read()
    export_language_model(silent.weights, decoder / "model.safetensors")
    result = compare(decoder, silent, load_reference(silent))
    report = result.language()
    assert not report.passed and "the checkpoint's plain answers are empty" in str(report)
    assert result.tokens().passed


def test_features_that_are_not_finite_fail_two_stages(exported, checkpoint, monkeypatch):
    """Weights may be finite and still overflow. The engine refuses such features, which the report shows."""
    models = [exported[0] / f"florence2_{role}" / "1" for role in ("vision", "decoder")]
    shape = (3, checkpoint.config.image.tokens, checkpoint.config.text.d_model)
    monkeypatch.setattr(parity, "run_vision", lambda *_: np.full(shape, np.nan, np.float32))
    vision, language = parity.parity_report(checkpoint, models[0] / "model.onnx", models[1])
    assert not vision.passed and not language.passed
    assert "the exported model does not answer: IMAGE_FEATURES must be" in str(language)


def test_the_checkpoints_minimum_and_penalty_are_exported_and_compared(copy, decoder):
    """generation_config.json sets both defaults, and the reference generates with them."""
    rules = {"repetition_penalty": 1.7, "min_new_tokens": 20, "num_beams": 1, "no_repeat_ngram_size": 0}
    copy.edit("generation_config.json", lambda values: values.update(rules))
    tuned = copy.read()
    defaults = tuned.config.generation
    assert (defaults.repetition_penalty, defaults.min_new_tokens) == (1.7, 20)
    tuned.config.save(decoder / "florence2.json")
    result = compare(decoder, tuned, load_reference(tuned))
    assert result.language().passed and result.tokens().passed
    plain, usual = result.answers[::2], result.answers[1::2]
    assert all(len(answer.tokens) >= 20 for answer in usual) and any(len(answer.tokens) < 20 for answer in plain)
    reference, config, features, cases = result.arguments
    others = [
        replace(case, options=plain_case.options) for plain_case, case in zip(cases[::2], cases[1::2], strict=True)
    ]
    assert not parity.compare_answers(usual, reference, config, features, others).passed
    # A minimum above the report's own limit counts as that limit.
    copy.edit("generation_config.json", lambda values: values.update(min_new_tokens=parity.NEW_TOKENS + 10))
    assert parity.requests(copy.read())[1].options.min_new_tokens == parity.NEW_TOKENS


def test_an_export_for_a_gpu_is_judged_by_the_steps_of_a_gpu(decoder, checkpoint, reference, monkeypatch):
    """An error in the padded step shows in the report of a GPU's export, and in no other."""
    right = compare(decoder, checkpoint, reference, "gpu")
    assert right.language().passed and right.tokens().passed and "6 of 6" in str(right.tokens())
    monkeypatch.setattr(PaddedStep, "attend_to_encoder", lambda self, layer, queries: torch.zeros_like(queries))
    wrong = compare(decoder, checkpoint, reference, "gpu")
    assert not wrong.language().passed and not wrong.tokens().passed
    assert not any(wrong.language(precision).passed for precision in parity.BOUNDS)
    assert compare(decoder, checkpoint, reference, "cpu").tokens().passed


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precisions_of_a_gpu_are_emulated_and_the_report_says_so(exported, checkpoint, tmp_path, precision):
    encoder = exported[0] / "florence2_vision" / "1" / "model.onnx"
    export_language_model(checkpoint.weights, tmp_path / "model.safetensors", precision)
    checkpoint.config.save(tmp_path / "florence2.json")
    reports = list(parity.parity_report(checkpoint, encoder, tmp_path, "float32", precision, "gpu"))
    assert [report.stage for report in reports] == ["vision", "language", "answers"]
    assert all(report.passed for report in reports)
    assert all("emulated on a CPU" in report.detail for report in reports[:2])
    assert f"in {precision}, emulated" in reports[1].detail and "rounding changes the others" in reports[2].detail


def test_a_gpu_is_used_where_there_is_one(exported, monkeypatch):
    """The report names it. If only ONNX Runtime cannot use it, the encoder runs on the CPU, and the report says why."""
    encoder, opened = exported[0] / "florence2_vision" / "1" / "model.onnx", []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card of {device}")
    monkeypatch.setattr(parity, "open_session", lambda path, config, gpu=None: opened.append(gpu))
    assert parity.decoder_device("gpu") == torch.device("cuda:0")
    assert parity.open_encoder(encoder, "gpu")[1] == "on Card of cuda:0"
    assert parity.open_encoder(encoder, "cpu")[1] == "on a CPU"
    assert opened == [0, None]

    def no_provider(path, config, gpu=None):
        if gpu is not None:
            raise ServerError("the installed onnxruntime is a CPU build")

    monkeypatch.setattr(parity, "open_session", no_provider)
    assert parity.open_encoder(encoder, "gpu")[1] == "emulated on a CPU (the installed onnxruntime is a CPU build)"
