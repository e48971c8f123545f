"""Read a checkpoint's generation settings: the server applies some of them, and each of the others becomes a note.

`settings` calls it. The names and meanings are those of transformers' `GenerationConfig`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from florence2.config import GenerationDefaults, TokenConfig
from florence2.contract import OPTIONS, Option
from florence2.errors import CheckpointError, InvalidOption

TYPES = {"BOOL": "true or false", "FP32": "a number", "INT32": "a whole number", "INT64": "a whole number"}
# Rules that the server does not apply, with the value besides null that turns each off.
UNSUPPORTED: dict[str, Any] = {
    "bad_words_ids": [],
    "begin_suppress_tokens": [],
    "constraints": [],
    "diversity_penalty": 0,
    "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1,
    "exponential_decay_length_penalty": None,
    "force_words_ids": [],
    "forced_decoder_ids": [],
    "guidance_scale": 1,
    "max_time": None,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "penalty_alpha": 0,
    "renormalize_logits": False,
    "sequence_bias": {},
    "stop_strings": [],
    "suppress_tokens": [],
    "token_healing": False,
    "watermarking_config": {},
}
NOT_SETTINGS = ("max_new_tokens", "seed")  # which requests choose; a seed in a config is that of training
STOCK_MAX_LENGTH = 20  # transformers' own, which older versions wrote into every config


@dataclass(frozen=True)
class Setting:
    """A setting and the name of its file."""

    key: str
    value: Any
    file: str

    def __str__(self) -> str:
        text = json.dumps(self.value, ensure_ascii=False)
        return f"{self.key} is {text if len(text) <= 60 else f'{text[:60]}…'} in {self.file}"


class Settings:
    """The settings of several files. The first file that has one decides; null counts as absent."""

    def __init__(self, files: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        self._files = files

    def find(self, *keys: str) -> Setting | None:
        """Return the setting of the first file that has one of `keys`, of which the first takes precedence."""
        for file, values in self._files:
            for key in keys:
                if values.get(key) is not None:
                    return Setting(key, values[key], file)
        return None

    def all(self, *keys: str) -> Iterator[Setting]:
        """Yield all settings of these names."""
        for file, values in self._files:
            yield from (Setting(key, values[key], file) for key in keys if values.get(key) is not None)


def read_defaults(settings: Settings, tokens: TokenConfig, positions: int, notes: list[str]) -> GenerationDefaults:
    """Return each option's value, or Florence-2's where no file has one. Raise CheckpointError if one is out of range.

    The limit on new tokens is the decoder's `positions`: checkpoints carry limits of training or of transformers.
    """
    given: dict[str, Any] = {"max_new_tokens": positions}
    for option in OPTIONS:
        keys = ("min_new_tokens", "min_length") if option.keyword == "min_new_tokens" else (option.keyword,)
        setting = settings.find(*keys)
        if setting is not None and option.keyword not in NOT_SETTINGS:
            given[option.keyword] = _value(option, setting, positions, notes)
    given |= _sampling(settings, given, notes)
    bad_words, repeated_bos = settings.find("bad_words_ids"), [[tokens.bos, tokens.bos]]
    if bad_words is not None and bad_words.value == repeated_bos:
        given["suppress_repeated_bos"] = True
    limit = settings.find("max_new_tokens", "max_length")
    if limit is not None and limit.value not in (STOCK_MAX_LENGTH, positions):
        notes.append(
            f"{limit}, which is left out: an answer may have {positions} tokens unless a request sets MAX_NEW_TOKENS"
        )
    for key, off in UNSUPPORTED.items():
        setting = settings.find(key)
        if setting is not None and setting.value not in (off, repeated_bos):
            notes.append(f"{setting}, which is left out: the server does not have this rule")
    for key, expected in {
        "bos_token_id": tokens.bos,
        "pad_token_id": tokens.pad,
        "eos_token_id": tokens.eos,
        "decoder_start_token_id": tokens.decoder_start,
    }.items():
        _note_contradictions(settings.all(key), expected, notes)
    return GenerationDefaults(
        **given,
        forced_bos=_forced(settings, "forced_bos_token_id", tokens.bos, tokens, notes),
        forced_eos=_forced(settings, "forced_eos_token_id", tokens.eos, tokens, notes),
    )


def _value(option: Option, setting: Setting, positions: int, notes: list[str]) -> Any:
    """Return an option's value in its own type. Raise CheckpointError if it has another type or is out of range."""
    value = setting.value
    if setting.key == "early_stopping" and value == "never":
        notes.append(f"{setting}, but the server knows true and false; false is used")
        return False
    number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = number and (isinstance(value, int) or value.is_integer())
    fits = {"BOOL": isinstance(value, bool), "FP32": number}.get(option.type, whole)
    if fits and setting.key == "min_length" and value > 0:
        value -= 1  # it counts the start token
    try:
        if not fits:
            raise InvalidOption(option.name)
        option.check(value, positions)
    except (InvalidOption, OverflowError) as error:
        allowed = f"{TYPES[option.type]}{option.range and ', '}{option.range}"
        raise CheckpointError(f"{setting}, but it must be {allowed}; correct it there") from error
    return value if option.type == "BOOL" else float(value) if option.type == "FP32" else int(value)


def _sampling(settings: Settings, given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the temperature, which is 0 unless the checkpoint samples with one beam, and the beams if it does."""
    setting = settings.find("do_sample")
    if setting is None or not setting.value:
        return {"temperature": 0.0}
    if given.get("num_beams", 1) > 1:
        notes.append(f"{setting}, which is left out: the server samples only if num_beams is 1")
        return {"temperature": 0.0}
    return {"temperature": given.get("temperature", 1.0), "num_beams": 1}


def _forced(settings: Settings, key: str, expected: int, tokens: TokenConfig, notes: list[str]) -> int:
    """Return the token that a file forces, if it is one of the vocabulary's, otherwise the `expected` one.

    Many fine-tunes have outdated ids, which are those of other special tokens.
    """
    setting = settings.find(key)
    outdated = (tokens.bos, tokens.pad, tokens.eos)
    if setting is not None and setting.value in range(tokens.known) and setting.value not in outdated:
        return int(setting.value)
    _note_contradictions(settings.all(key), expected, notes)
    return expected


def _note_contradictions(found: Iterator[Setting], expected: int, notes: list[str]) -> None:
    """Add a note for each id that contradicts the tokenizer."""
    for setting in found:
        if setting.value not in (expected, [expected]):
            notes.append(f"{setting}, but {expected} in the tokenizer; {expected} is used")
