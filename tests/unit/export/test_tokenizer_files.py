"""Test tokenizers in their older form, and checkpoints whose tokenizer and image settings are elsewhere."""

import json
import shutil

import pytest
from tokenizers import Tokenizer
from transformers import BartTokenizer

from florence2.errors import CheckpointError
from florence2_client.cli import main
from florence2_export.checkpoint import read_checkpoint
from florence2_export.repository import read_provenance
from florence2_export.tokenizer_files import read_tokenizer
from tests.reference import shared

PROCESSOR = ("tokenizer.json", "tokenizer_config.json", "processor_config.json")
SLOW = ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
TEXTS = (
    "<s>What is the region <loc_5><loc_999>?</s>", "<s>café\n中文  <mask> a<mask>b \t🙂 </s>", "<od> <my_task>x<poly>",
    "Locate the phrases in the caption: I'll'd 12345 _x_ \u00a0 end",
)  # fmt: skip


def write_slow(source, directory):
    """Write the files that transformers 4 wrote for a tokenizer.json."""
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    vocabulary, added = tokenizer["model"]["vocab"], tokenizer["added_tokens"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    ids = {token["content"]: token["id"] for token in added if token["content"] not in vocabulary}
    (directory / "added_tokens.json").write_text(json.dumps(ids))
    flags = {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added}
    (directory / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": flags}))


def assert_equal(ours, theirs):
    assert ours.get_vocab() == theirs.get_vocab()
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, skip_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids)


def test_the_older_files_make_the_tokenizer_of_tokenizer_json(copy, checkpoint, demo):
    """It is also the one that transformers makes of them."""
    write_slow(demo, copy.path)
    (copy.path / "tokenizer.json").unlink()
    read = copy.read()
    assert read.config == checkpoint.config and not read.notes
    assert_equal(read.tokenizer, Tokenizer.from_file(str(demo / "tokenizer.json")))
    assert_equal(read.tokenizer, BartTokenizer.from_pretrained(copy.path).backend_tokenizer)


@pytest.mark.parametrize("files", [SLOW, SLOW[:4], SLOW[:3], (*SLOW[:2], SLOW[4])], ids=len)
def test_the_published_files_in_their_older_form_are_equal(tmp_path, files):
    """Some lists are missing in folders that people share; transformers fails on the second set."""
    published = shared("checkpoints/Florence-2-base")
    for name in files:
        shutil.copy(published / name, tmp_path)
    ours, theirs = read_tokenizer(tmp_path, False, ""), Tokenizer.from_file(str(published / "tokenizer.json"))
    assert_equal(ours, theirs)
    if "tokenizer_config.json" in files:
        assert ours.to_str() == theirs.to_str()


def test_microsofts_vocabulary_is_completed(tmp_path):
    """Microsoft's processor adds its tokens to the older form, too; those of a fine-tune follow them."""
    published = shared("checkpoints/Florence-2-base")
    for name in SLOW[:2]:
        shutil.copy(published / name, tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<my_task>": 51289}')
    vocabulary = Tokenizer.from_file(str(published / "tokenizer.json")).get_vocab()
    del vocabulary["<image>"]
    assert read_tokenizer(tmp_path, True, "").get_vocab() == {**vocabulary, "<my_task>": 51289}
    (tmp_path / "added_tokens.json").write_text('{"<my_task>": 51300}')
    with pytest.raises(CheckpointError, match="<my_task> should have the id 51300, but the vocabulary has only 51289"):
        read_tokenizer(tmp_path, True, "")


def test_tokens_that_only_the_lists_have_are_added_to_tokenizer_json(copy, checkpoint):
    """transformers adds them when it loads the tokenizer; without them a prompt would be split into pieces."""
    token = {"content": "<my_task>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
             "special": True}  # fmt: skip
    size = checkpoint.tokenizer.get_vocab_size()
    copy.edit("tokenizer_config.json", lambda config: config.update(added_tokens_decoder={str(size): token}))
    read = copy.read()
    assert read.tokenizer.encode("<my_task>", add_special_tokens=False).ids == [size]
    assert read.notes == (
        "the tokenizer has 1 tokens that the embedding has no row for, among them <my_task>; "
        "the server refuses prompts with them",
    )


@pytest.mark.parametrize("damage", ["vocab.json", "merges.txt"])
def test_damaged_older_files_are_named(copy, demo, damage):
    """One sentence says which files, and where to get others."""
    write_slow(demo, copy.path)
    (copy.path / "tokenizer.json").unlink()
    (copy.path / damage).write_text("{" if damage == "vocab.json" else "one two three four\n")
    with pytest.raises(CheckpointError, match=r"vocab.json or merges.txt in .* cannot be read .* with --processor$"):
        copy.read()
    (copy.path / damage).unlink()
    with pytest.raises(CheckpointError, match=r"holds no tokenizer: tokenizer.json is missing, and so is one of vocab"):
        copy.read()


@pytest.fixture
def bare(copy):
    """Return a checkpoint as a trainer leaves it: weights, config, and the state of the training."""
    for name in PROCESSOR:
        (copy.path / name).unlink()
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin"):
        (copy.path / name).write_bytes(b"x")
    return copy


def test_a_folder_without_a_processor_takes_it_from_elsewhere(bare, demo, checkpoint):
    """The report and the provenance name its source."""
    with pytest.raises(CheckpointError, match=r"such as microsoft/Florence-2-base, with --processor$"):
        bare.read()
    read = read_checkpoint(str(bare.path), processor=str(demo))
    assert read.notes == ("the tokenizer and the image settings are those of checkpoint",)
    assert read.readable and read.processor.directory == demo and read.config == checkpoint.config
    assert read_provenance(read, {})["processor"] == "checkpoint"


def test_image_settings_may_be_missing_without_a_tokenizer_missing(copy):
    """The hint is the same."""
    (copy.path / "processor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json are missing .* with --processor$"):
        copy.read()


def test_a_given_processor_takes_precedence(copy, demo):
    """It is what the user asks for. Generation settings stay those of the checkpoint."""
    copy.edit("processor_config.json", lambda config: config["image_processor"].update(size="broken"))
    copy.edit("generation_config.json", lambda config: config.update(num_beams=5))
    (copy.path / "tokenizer.json").write_text("{}")
    assert read_checkpoint(str(copy.path), processor=str(demo)).config.generation.num_beams == 5


def test_a_subfolder_is_the_checkpoint(bare, demo, tmp_path, checkpoint):
    """A trainer's output folder holds one for each step, and only the folder may have a config."""
    bare.path.rename(tmp_path / "checkpoint-500")
    read = read_checkpoint(str(tmp_path), processor=str(demo), subfolder="checkpoint-500")
    assert (read.source.name, read.config.tokens) == ("checkpoint-500", checkpoint.config.tokens)
    for subfolder, words in (
        ("checkpoint-5", "has no folder checkpoint-5"), ("../x", "leads out of"), ("/tmp", "leads out of"),
        (None, "config.json is missing in .*; add --subfolder checkpoint-500"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=words):
            read_checkpoint(str(tmp_path), subfolder=subfolder)


def test_the_command_exports_a_subfolder_with_a_processor(bare, demo, tmp_path, capsys):
    """The whole way through the command line."""
    arguments = [str(tmp_path), "--subfolder", bare.path.name, "--processor", str(demo)]
    assert main(["export", *arguments, "--repository", str(tmp_path / "models"), "--precision", "float32"]) == 0
    out = capsys.readouterr().out
    assert "note: the tokenizer and the image settings are those of checkpoint" in out and "6 of 6" in out
