"""The contract is written once: what is generated from it is current, and what reads it follows it."""

from __future__ import annotations

import dataclasses

import pytest

from florence2 import contract
from florence2.config import GenerationDefaults, ModelConfig
from florence2.contract import OPTIONS, GenerationOptions
from florence2.errors import ERROR_CODES, SERVER_CODES, Florence2Error, InvalidOption
from tools import generate

POSITIONS = 1024


@pytest.fixture
def config() -> ModelConfig:
    """Return a configuration of which only the generation options and the positions matter."""
    text = dataclasses.make_dataclass("Text", ["max_positions"])(POSITIONS)
    generation = GenerationDefaults(max_new_tokens=POSITIONS, num_beams=5, repetition_penalty=1.5)
    return ModelConfig(None, text, None, generation, (), "test")  # type: ignore[arg-type]


@pytest.mark.parametrize("path", generate.BLOCKS)
def test_a_generated_file_is_current(path):
    """On failure, run `make generate`."""
    assert generate.generated(path) == (generate.ROOT / path).read_text(encoding="utf-8")


def test_a_stale_block_is_noticed_and_written_anew(monkeypatch, tmp_path):
    """Text outside of the block stays."""
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "BLOCKS", {"page.md": {"errors": generate.errors_table}})
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- generated: errors -->\nold\n<!-- end of generated: errors -->\nafter\n")
    assert generate.stale_files() == ["page.md"]
    page.write_text(generate.generated("page.md"))
    assert generate.stale_files() == []
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "QUEUE_FULL" in text and "old" not in text


def test_a_file_without_its_block_is_an_error(monkeypatch, tmp_path):
    """A marker that was deleted by hand must not go unnoticed."""
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "BLOCKS", {"page.md": {"errors": generate.errors_table}})
    (tmp_path / "page.md").write_text("nothing\n")
    with pytest.raises(SystemExit, match="generated: errors"):
        generate.generated("page.md")


def test_what_is_left_out_is_the_checkpoints(config):
    """And so is None, which is how the adapter passes a tensor that a request does not have."""
    options = config.generation_options(num_beams=None, length_penalty=2.0)
    assert options == GenerationOptions(
        max_new_tokens=POSITIONS, num_beams=5, length_penalty=2.0, repetition_penalty=1.5
    )


def test_more_new_tokens_than_positions_means_all_positions(config):
    """A client need not know the checkpoint's limit."""
    assert config.generation_options(max_new_tokens=10**6).max_new_tokens == POSITIONS


LIMITS = {
    "max_new_tokens": (1, None),
    "num_beams": (1, 16),
    "no_repeat_ngram_size": (0, POSITIONS),
    "length_penalty": (-2.0, 10.0),
    "min_new_tokens": (0, POSITIONS),
    "repetition_penalty": (0.01, 100.0),
    "temperature": (0.0, 100.0),
    "top_k": (0, None),
    "top_p": (0.0, 1.0),
    "seed": (0, None),
}


def test_every_option_with_a_range_has_its_limits_tested():
    """A new option needs a row in LIMITS."""
    assert {option.keyword for option in OPTIONS if option.range} == set(LIMITS)


@pytest.mark.parametrize("keyword", LIMITS)
def test_the_limits_themselves_are_allowed(config, keyword):
    """Ranges include both ends."""
    for limit in LIMITS[keyword]:
        if limit is not None:
            assert getattr(config.generation_options(**{keyword: limit}), keyword) == limit


@pytest.mark.parametrize("keyword", LIMITS)
def test_a_value_out_of_range_is_refused_by_name(config, keyword):
    """The sentence names the tensor, the range, and the value."""
    low, high = LIMITS[keyword]
    for value in [low - 1, *([] if high is None else [high + 1]), float("nan"), float("inf")]:
        with pytest.raises(InvalidOption, match=rf"^{keyword.upper()} must be .*, not {value}$"):
            config.generation_options(**{keyword: value})


def test_the_least_tokens_must_fit_below_the_most(config):
    """Both are in range by themselves."""
    with pytest.raises(InvalidOption, match="MIN_NEW_TOKENS must be at most MAX_NEW_TOKENS, 5, not 6"):
        config.generation_options(max_new_tokens=5, min_new_tokens=6)


def test_a_checkpoints_least_tokens_yield_to_the_requests_most(config):
    """A client that sets only MAX_NEW_TOKENS has made no mistake."""
    generation = dataclasses.replace(config.generation, min_new_tokens=20)
    options = dataclasses.replace(config, generation=generation).generation_options(max_new_tokens=5)
    assert (options.min_new_tokens, options.max_new_tokens) == (5, 5)


SAMPLING = {  # what a request gives: the beams and the temperature that it gets
    "nothing": ({}, (5, 0)),
    "temperature": (dict(temperature=0.7), (1, 0.7)),
    "one beam": (dict(temperature=0.7, num_beams=1), (1, 0.7)),
    "top k": (dict(top_k=5), (1, 1)),
    "top p": (dict(top_p=0.5), (1, 1)),
    "all tokens": (dict(top_k=0, top_p=1.0), (5, 0)),
    "switched off": (dict(temperature=0.0, top_k=5, top_p=0.5, seed=1), (5, 0)),
    "beams": (dict(temperature=0.0, num_beams=3), (3, 0)),
    "seed": (dict(seed=1), (5, 0)),
}


@pytest.mark.parametrize("case", SAMPLING)
def test_what_makes_a_request_sample(config, case):
    """A temperature above 0, or a limit on the tokens to draw from; then there is one beam unless a request says so."""
    given, expected = SAMPLING[case]
    options = config.generation_options(**given)
    assert (options.num_beams, options.temperature) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (1, 0.6)),
        (dict(top_k=5), (1, 0.6)),
        (dict(temperature=0.9), (1, 0.9)),
        (dict(temperature=0.0), (1, 0)),
        (dict(num_beams=3), (3, 0)),
    ],
)
def test_a_request_overrides_a_checkpoint_that_samples(config, given, expected):
    """It can search instead, by a temperature of 0 or by beams."""
    generation = dataclasses.replace(config.generation, num_beams=1, temperature=0.6)
    options = dataclasses.replace(config, generation=generation).generation_options(**given)
    assert (options.num_beams, options.temperature) == expected


@pytest.mark.parametrize("given", [dict(temperature=0.7), dict(top_k=5), dict(top_p=0.5)], ids=str)
def test_beams_cannot_be_sampled(config, given):
    """transformers has beam sampling; this server has not."""
    with pytest.raises(
        InvalidOption, match=r"^NUM_BEAMS must be 1 or left out with TEMPERATURE, TOP_K or TOP_P, not 3$"
    ):
        config.generation_options(num_beams=3, **given)


def test_the_largest_numbers_are_taken(config):
    """A seed has 64 bits, and more tokens than there are means all of them."""
    options = config.generation_options(temperature=1.0, seed=2**63 - 1, top_k=2**31 - 1)
    assert (options.seed, options.top_k) == (2**63 - 1, 2**31 - 1)


def test_wires_of_an_ensemble_join_equal_tensors():
    """Each input reads a tensor of the same type and dims that was written before."""
    for steps in (contract.STEPS, contract.STREAM_STEPS):
        written = {tensor.name: tensor for tensor in contract.INPUTS}
        for wiring in contract.wire(steps):
            inputs = {tensor.name: tensor for tensor in wiring.model.inputs}
            outputs = {tensor.name: tensor for tensor in wiring.model.outputs}
            for name, source in wiring.inputs.items():
                assert (inputs[name].type, inputs[name].dims) == (written[source].type, written[source].dims)
            assert not set(wiring.outputs.values()) & set(written), "a wire has one writer"
            written |= {wire: outputs[name] for name, wire in wiring.outputs.items()}
        assert {tensor.name for tensor in contract.OUTPUTS} <= set(written)


def test_each_error_has_a_code_of_its_own():
    """The code on the wire names the exception; the base class is never raised by itself."""
    assert [kind.code for kind in ERROR_CODES.values()] == list(ERROR_CODES)
    assert len(ERROR_CODES) == len({*Florence2Error.__subclasses__(), *ERROR_CODES.values()})
    assert set(SERVER_CODES) <= set(ERROR_CODES)
    assert InvalidOption("NUM_BEAMS is wrong").wire_message == "INVALID_OPTION: NUM_BEAMS is wrong"
