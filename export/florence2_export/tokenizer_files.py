"""Read a checkpoint's tokenizer: from tokenizer.json, or from the older vocab.json, merges.txt and lists of tokens.

`checkpoint` calls it. transformers reads the older files too, but fails on some lists that it wrote itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from florence2.config import read_json
from florence2.errors import CheckpointError
from florence2_export import layouts
from florence2_export.hub import one_line

BEGIN, END = "<s>", "</s>"
# What the vocabulary holds for BART, with the flags that files may change. `<mask>` swallows the space before it.
SPECIAL = {
    token: {"special": True, "normalized": True, "lstrip": token == "<mask>"}
    for token in (BEGIN, "<pad>", END, "<unk>", "<mask>")
}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_tokenizer(directory: Path, complete: bool, hint: str) -> Tokenizer:
    """Return the tokenizer without padding and truncation left by training.

    `complete` adds the tokens that Microsoft's processor adds. `hint` says where to get files that are missing.
    """
    fast, vocabulary, merges = (directory / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    whole = fast.exists()
    if not whole and not (vocabulary.exists() and merges.exists()):
        raise CheckpointError(
            f"{directory} holds no tokenizer: tokenizer.json is missing, and so is one of vocab.json and merges.txt; "
            f"{hint}"
        )
    try:
        tokenizer = Tokenizer.from_file(os.fspath(fast)) if whole else _byte_level(directory, vocabulary, merges)
        _add_listed(tokenizer, directory, complete, begin=not whole)
    except CheckpointError:
        raise
    except Exception as error:  # the Rust library raises bare Exception
        name = "tokenizer.json" if whole else "vocab.json or merges.txt"
        raise CheckpointError(f"{name} in {directory} cannot be read ({one_line(error)}); {hint}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _byte_level(directory: Path, vocabulary: Path, merges: Path) -> Tokenizer:
    """Return BART's tokenizer with a checkpoint's vocabulary."""
    space = bool(_optional(directory, "tokenizer_config.json").get("add_prefix_space", False))
    files = os.fspath(vocabulary), os.fspath(merges)
    tokenizer = Tokenizer(models.BPE.from_file(*files, continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.decoder = decoders.ByteLevel()
    ids = tokenizer.get_vocab()
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, ids[END]), (BEGIN, ids[BEGIN]), add_prefix_space=space
    )
    return tokenizer


def _add_listed(tokenizer: Tokenizer, directory: Path, complete: bool, begin: bool) -> None:
    """Add the tokens that the files next to a vocabulary list, with their ids and flags.

    `begin` marks special tokens of the vocabulary first, which tokenizer.json has done already. Raise CheckpointError
    if a token would get another id than the one in its list.
    """
    flags: dict[str, dict[str, bool]] = dict(SPECIAL) if begin else {}
    ids: dict[str, int] = dict(_optional(directory, "added_tokens.json"))
    for entries in _optional(directory, "special_tokens_map.json").values():
        for entry in entries if isinstance(entries, list) else [entries]:
            content = entry["content"] if isinstance(entry, dict) else entry
            given = {flag: entry[flag] for flag in FLAGS if flag in entry} if isinstance(entry, dict) else {}
            flags[content] = {**flags.get(content, {"normalized": False}), **given, "special": True}
    for id, entry in (_optional(directory, "tokenizer_config.json").get("added_tokens_decoder") or {}).items():
        ids[entry["content"]] = int(id)
        flags[entry["content"]] = {flag: entry[flag] for flag in FLAGS if flag in entry}

    def add(content: str) -> None:
        tokenizer.add_tokens([AddedToken(content, **flags.get(content, {"special": True, "normalized": False}))])

    if begin:
        known = tokenizer.get_vocab()
        for content in sorted(known.keys() & {*flags, *ids}, key=lambda token: known[token]):
            add(content)
    if complete:
        layouts.complete_tokenizer(tokenizer)
    for content in (*sorted(ids, key=lambda token: ids[token]), *(token for token in flags if token not in ids)):
        if tokenizer.token_to_id(content) is None:
            add(content)
            if tokenizer.token_to_id(content) != ids.get(content, tokenizer.token_to_id(content)):
                raise CheckpointError(
                    f"the tokenizer's files in {directory} contradict each other: {content} should have the id "
                    f"{ids[content]}, but the vocabulary has only {tokenizer.get_vocab_size() - 1} tokens before it"
                )


def _optional(directory: Path, name: str) -> dict[str, Any]:
    """Return a JSON file's content, empty if there is no such file."""
    return read_json(directory / name) if (directory / name).exists() else {}
