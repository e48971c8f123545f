"""Test generation settings of a checkpoint: applied and compared with transformers, noted, or refused by name."""

import json
import shutil

import pytest

from florence2.errors import CheckpointError
from florence2_export import parity
from florence2_export.reference import load_reference

FILE = "generation_config.json"
APPLIED = {
    "greedy": ({"num_beams": 1}, {"num_beams": 1}),
    "beams": ({"num_beams": 5.0}, {"num_beams": 5}),
    "length": ({"length_penalty": 2, "early_stopping": False}, {"length_penalty": 2.0, "early_stopping": False}),
    "never": ({"early_stopping": "never"}, {"early_stopping": False}),
    "minimum": ({"min_new_tokens": 12}, {"min_new_tokens": 12}),
    "minimum with the start token": ({"min_length": 13}, {"min_new_tokens": 12}),
    "both minimums": ({"min_length": 20, "min_new_tokens": 5}, {"min_new_tokens": 5}),
    "penalty": ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
    "repetition": ({"no_repeat_ngram_size": 0}, {"no_repeat_ngram_size": 0}),
    "forced": ({"forced_bos_token_id": 40, "forced_eos_token_id": 41}, {"forced_bos": 40, "forced_eos": 41}),
    "stale forced": ({"forced_bos_token_id": 2, "forced_eos_token_id": [2]}, {"forced_bos": 0, "forced_eos": 2}),
    "sampling": (
        {"do_sample": True, "num_beams": 1, "temperature": 0.6, "top_k": 20, "top_p": 0.9},
        {"num_beams": 1, "temperature": 0.6, "top_k": 20, "top_p": 0.9},
    ),
    "sampling at 1": ({"do_sample": True, "num_beams": 1}, {"num_beams": 1, "temperature": 1.0, "top_k": 50}),
    "no sampling": ({"do_sample": False, "temperature": 0.6, "top_k": 20}, {"temperature": 0.0, "top_k": 20}),
    "repeated start": ({"bad_words_ids": [[0, 0]]}, {"suppress_repeated_bos": True}),
    "seed of training": ({"seed": 42}, {"seed": None}),
    "stock limit": ({"max_length": 20}, {"max_new_tokens": 512}),
}
COMPARED = ("penalty", "forced", "length", "never", "sampling", "repeated start")
NOTED = {
    "bad_words_ids": [[40], [41, 42]],
    "begin_suppress_tokens": [40, 41],
    "diversity_penalty": 0.5,
    "do_sample": True,
    "encoder_no_repeat_ngram_size": 2,
    "encoder_repetition_penalty": 1.5,
    "exponential_decay_length_penalty": [5, 1.5],
    "guidance_scale": 1.5,
    "max_length": 10,
    "max_new_tokens": 10,
    "max_time": 1.0,
    "num_beam_groups": 3,
    "num_return_sequences": 4,
    "penalty_alpha": 0.6,
    "renormalize_logits": True,
    "sequence_bias": [[[40], -10.0]],
    "stop_strings": ["a"],
    "suppress_tokens": list(range(40, 300)),
}
OFF = {
    "bad_words_ids": None, "diversity_penalty": 0.0, "do_sample": False, "num_beam_groups": 1, "suppress_tokens": [],
    "num_return_sequences": 1, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_length": 0, "max_length": 512,
    "encoder_no_repeat_ngram_size": 0, "use_cache": True, "eos_token_id": [2], "transformers_version": "4.41.0",
}  # fmt: skip


@pytest.mark.parametrize("case", APPLIED)
def test_what_the_server_can_apply_becomes_its_default(copy, checkpoint, case):
    """Values are those of transformers' GenerationConfig, whose min_length counts the start token."""
    written, expected = APPLIED[case]
    copy.edit(FILE, lambda values: values.update(written))
    defaults = copy.read().config.generation
    stock = checkpoint.config.generation
    fields = ("num_beams", "no_repeat_ngram_size", "max_new_tokens", "forced_bos", "forced_eos", *expected)
    assert {name: getattr(defaults, name) for name in fields} == {
        **{name: getattr(stock, name) for name in fields},
        **expected,
    }


@pytest.mark.parametrize("key", NOTED)
def test_a_rule_that_the_server_does_not_have_is_noted(copy, checkpoint, key):
    """The note names the rule, its value and its file, on one line of bearable length."""
    copy.edit(FILE, lambda values: values.update({key: NOTED[key]}))
    read = copy.read()
    assert read.config.generation == checkpoint.config.generation
    (note,) = read.notes
    assert note.startswith(f"{key} is {json.dumps(NOTED[key])[:20]}") and FILE in note and len(note) < 200


def test_a_rule_that_is_switched_off_is_not_noted(copy, checkpoint):
    """Older versions of transformers wrote every setting into every file."""
    copy.edit(FILE, lambda values: values.update(OFF))
    copy.edit("config.json", lambda config: config["text_config"].update(OFF, max_length=20))
    read = copy.read()
    assert not read.notes and read.config.generation == checkpoint.config.generation


@pytest.fixture(scope="module")
def features(exported, checkpoint):
    images = parity.draw_images(checkpoint.config.image, 3)
    session, _ = parity.open_encoder(exported[0] / "florence2_vision" / "1" / "model.onnx", "cpu")
    return parity.run_vision(session, images)


@pytest.mark.parametrize(
    "written",
    [NOTED, {"num_return_sequences": 4}, *(APPLIED[case][0] for case in COMPARED)],
    ids=["noted", "returned", *COMPARED],
)
def test_transformers_generates_with_the_servers_rules(copy, exported, features, tmp_path, written):
    """Otherwise the report would compare answers to different rules, or transformers would raise an exception."""
    copy.edit(FILE, lambda values: values.update(written))
    copy.edit("config.json", lambda config: config["text_config"].update(written))
    read = copy.read()
    decoder = shutil.copytree(exported[0] / "florence2_decoder" / "1", tmp_path / "decoder")
    read.config.save(decoder / "florence2.json")
    cases = parity.requests(read)
    answers = parity.run_language(decoder, features, cases)
    report = parity.compare_answers(answers, load_reference(read), read.config, features, cases)
    assert report.passed and "6 of 6" in str(report)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("num_beams", 20, "a whole number, 1 to 16"),
        ("num_beams", 0, "a whole number, 1 to 16"),
        ("num_beams", 2.5, "a whole number"),
        ("num_beams", "3", "a whole number"),
        ("num_beams", True, "a whole number"),
        ("num_beams", 10**400, "a whole number"),
        ("no_repeat_ngram_size", -1, "0 to the model's positions"),
        ("length_penalty", -5, "a number, -2 to 10"),
        ("length_penalty", "long", "a number"),
        ("repetition_penalty", 0, "a number, 0.01 to 100"),
        ("repetition_penalty", float("nan"), "a number"),
        ("min_new_tokens", 513, "0 to the model's positions"),
        ("min_length", -3, "0 to the model's positions"),
        ("early_stopping", 1, "true or false"),
        ("top_p", 1.5, "a number, 0 to 1"),
        ("top_k", -1, "a whole number, 0 or more"),
    ],
)
def test_a_value_out_of_range_is_refused(copy, key, value, allowed):
    """The sentence names the file, the key, and what is allowed."""
    copy.edit(FILE, lambda values: values.update({key: value}))
    with pytest.raises(CheckpointError, match=rf"^{key} is .* in {FILE}, but it must be .*correct it there$") as caught:
        copy.read()
    assert allowed in str(caught.value)


def test_a_refusal_names_the_file_that_decides(copy):
    """This is generation_config.json if it has the setting, then config.json, then its text_config."""
    for file in ("text_config of config.json", "config.json", FILE):
        copy.edit(FILE, lambda values: values.pop("num_beams", None))
        if file == "text_config of config.json":
            copy.edit("config.json", lambda config: config["text_config"].update(num_beams=20))
        else:
            copy.edit(file, lambda values: values.update(num_beams=20))
        with pytest.raises(CheckpointError, match=f"^num_beams is 20 in {file}, but"):
            copy.read()
