"""Reading a checkpoint: which of its files is believed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Florence2ForConditionalGeneration, Florence2Processor, GenerationConfig

from florence2_export.checkpoint import read_checkpoint
from florence2_export.layouts import EMBEDDING, TIED, UNTIED


def test_the_config_is_what_transformers_reads_from_the_same_files(demo, checkpoint):
    """This holds for ids, image size, tokens per image, geometry and generation defaults."""
    processor, generation = Florence2Processor.from_pretrained(demo), GenerationConfig.from_pretrained(demo)
    tokenizer, config = AutoTokenizer.from_pretrained(demo), checkpoint.config
    assert (config.tokens.bos, config.tokens.pad, config.tokens.eos) == tuple(
        tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>"])
    )
    assert config.tokens.first_location == tokenizer.convert_tokens_to_ids("<loc_0>")
    assert config.tokens.known == tokenizer.convert_tokens_to_ids("<image>")
    assert config.image.tokens == processor.image_processor.image_seq_length
    assert config.image.mean == tuple(processor.image_processor.image_mean)
    assert set(config.banned_phrases) == processor.post_processor.banned_grounding_tokens
    assert config.generation.num_beams == generation.num_beams
    assert config.generation.no_repeat_ngram_size == generation.no_repeat_ngram_size
    assert config.generation.early_stopping == generation.early_stopping
    assert config.generation.forced_bos == generation.forced_bos_token_id
    assert config.tokens.decoder_start == generation.decoder_start_token_id
    assert not checkpoint.notes


def test_shards_are_one_checkpoint(demo, checkpoint, tmp_path):
    """transformers splits large checkpoints into files under an index."""
    Florence2ForConditionalGeneration.from_pretrained(demo).save_pretrained(tmp_path, max_shard_size="2MB")
    for name in ("tokenizer.json", "processor_config.json"):
        shutil.copy(demo / name, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_weights(read_checkpoint(str(tmp_path)), checkpoint)


@pytest.mark.parametrize("settings", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_pickled_weights_are_the_same_checkpoint(copy, checkpoint, settings):
    """Older checkpoints are pytorch_model.bin; the legacy form of the file cannot be mapped into memory."""
    weights = load_file(copy.path / "model.safetensors")
    (copy.path / "model.safetensors").unlink()
    torch.save(weights, copy.path / "pytorch_model.bin", **settings)
    assert_same_weights(copy.read(), checkpoint)


def test_pickled_shards_are_one_checkpoint(copy, checkpoint):
    """transformers 4 saved them with safe_serialization=False."""
    weights = load_file(copy.path / "model.safetensors")
    (copy.path / "model.safetensors").unlink()
    places = {name: f"pytorch_model-0000{1 + place % 2}-of-00002.bin" for place, name in enumerate(weights)}
    for shard in set(places.values()):
        torch.save({name: weights[name] for name in weights if places[name] == shard}, copy.path / shard)
    (copy.path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_same_weights(copy.read(), checkpoint)


def assert_same_weights(read, checkpoint):
    assert read.weights.keys() == checkpoint.weights.keys()
    assert all(torch.equal(read.weights[name], checkpoint.weights[name]) for name in read.weights)


@pytest.mark.parametrize("stored", TIED)
def test_any_copy_of_the_embedding_will_do(copy, checkpoint, stored):
    """Checkpoints store one or more of the four tied matrices, depending on the program that saved them."""
    copy.reweigh(lambda weights: weights.update({stored: weights.pop(EMBEDDING)}))
    assert torch.equal(copy.read().weights[EMBEDDING], checkpoint.weights[EMBEDDING])


@pytest.mark.parametrize("name", UNTIED)
def test_an_untied_copy_of_the_embedding_is_kept_and_an_equal_one_is_not(copy, name):
    """Some fine-tunes untie the output head or the decoder's embedding; most store copies of the embedding."""
    copy.reweigh(lambda weights: weights.update({name: weights[EMBEDDING]}))
    assert name not in copy.read().weights
    copy.reweigh(lambda weights: weights.update({name: weights[EMBEDDING] * 1.5}))
    assert name in copy.read().weights


def test_the_encoders_copy_of_the_embedding_changes_nothing(copy, checkpoint):
    """transformers embeds the prompt with the shared embedding, so the encoder's copy is never used."""
    copy.reweigh(lambda weights: weights.update({TIED[1]: weights[EMBEDDING] * 2}))
    assert_same_weights(copy.read(), checkpoint)


def test_ids_come_from_the_tokenizer_not_from_stale_configs(copy, checkpoint):
    """Many fine-tunes still have the wrong ids of Florence-2's first configs."""
    copy.edit("config.json", lambda config: config.update(bos_token_id=2, eos_token_id=1, pad_token_id=0))
    read = copy.read()
    assert read.config.tokens == checkpoint.config.tokens
    assert len(read.notes) == 3 and "pad_token_id is 0 in config.json" in " ".join(read.notes)


def test_generation_defaults_fall_back_file_by_file(copy):
    """The order is generation_config.json, the language model's own config, Florence-2's defaults."""
    (copy.path / "generation_config.json").unlink()
    copy.edit("config.json", lambda config: config["text_config"].update(num_beams=5))
    defaults = copy.read().config.generation
    assert (defaults.num_beams, defaults.no_repeat_ngram_size, defaults.early_stopping) == (5, 3, True)
    (copy.path / "generation_config.json").write_text(json.dumps({"num_beams": 1, "no_repeat_ngram_size": 0}))
    defaults = copy.read().config.generation
    assert (defaults.num_beams, defaults.no_repeat_ngram_size) == (1, 0)


def test_the_older_pair_of_processor_files_is_read_too(copy, checkpoint):
    """transformers 4 keeps the image settings in preprocessor_config.json."""
    processor = json.loads((copy.path / "processor_config.json").read_text())
    (copy.path / "preprocessor_config.json").write_text(json.dumps(processor.pop("image_processor")))
    (copy.path / "processor_config.json").write_text(json.dumps(processor))
    read = copy.read().config
    assert (read.image, read.banned_phrases) == (checkpoint.config.image, checkpoint.config.banned_phrases)


def test_the_vocabulary_size_is_that_of_the_embedding(copy, checkpoint):
    """config.json is often outdated after tokens were added."""
    copy.edit("config.json", lambda config: config["text_config"].update(vocab_size=1600))
    read = copy.read()
    assert read.config.text == checkpoint.config.text
    assert "config.json says 1600 tokens, but the embedding has" in read.notes[0]


def test_truncation_and_padding_left_by_training_are_switched_off(copy):
    """A saved tokenizer may still cut prompts to the length of training batches."""
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    copy.edit("tokenizer.json", lambda tokenizer: tokenizer.update(truncation=cut))
    assert len(copy.read().tokenizer.encode("What does the image describe?").ids) > 4


def test_unknown_weights_are_noted(copy):
    """An extra head does not stop an export, but causes a note."""
    copy.reweigh(lambda weights: weights.update({"classifier.weight": torch.zeros(3)}))
    assert "classifier.weight" in copy.read().notes[0]


@pytest.mark.parametrize("size", [(128, 128), (160, 96), (192, 256)])
def test_images_may_have_another_size(copy, size):
    """Fine-tunes change it, and the number of image tokens follows."""
    height, width = size
    edit = {"height": height, "width": width}
    copy.edit("processor_config.json", lambda config: config["image_processor"].update(size=edit, crop_size=edit))
    read = copy.read()
    assert (read.config.image.height, read.config.image.width) == size
    assert read.config.image.tokens == 1 + height // 32 * (width // 32)
    assert "image_seq_length" in read.notes[0]


def test_tokens_added_by_a_fine_tune_may_be_generated(copy, checkpoint):
    """Its tokenizer has more tokens, and its embedding more rows, some of them often unused."""
    rows, added = checkpoint.config.text.vocab_size, checkpoint.tokenizer.get_vocab_size()
    token = {"id": added, "content": "<invoice>", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}  # fmt: skip
    copy.edit("tokenizer.json", lambda tokenizer: tokenizer["added_tokens"].append(token))
    copy.reweigh(lambda weights: weights.update({EMBEDDING: torch.cat([weights[EMBEDDING], torch.zeros(13, 128)])}))
    config = copy.read().config
    assert config.text.vocab_size == rows + 13
    assert config.tokens.known == added + 1
