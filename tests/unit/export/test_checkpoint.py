"""Test reading a checkpoint: which of its files is believed, and the one sentence that each damage causes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Florence2ForConditionalGeneration, Florence2Processor, GenerationConfig

from florence2_client.cli import main
from florence2_export.checkpoint import read_checkpoint
from florence2_export.layouts import EMBEDDING, TIED, UNTIED

LAST_NORM = "model.multi_modal_projector.image_proj_norm.weight"


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


def write(name, text):
    return lambda copy: (copy.path / name).write_text(text)


def remove(name):
    return lambda copy: (copy.path / name).unlink()


def only_a_pickle(copy):
    (copy.path / "model.safetensors").rename(copy.path / "pytorch_model.bin")


def truncate(copy):
    data = (copy.path / "model.safetensors").read_bytes()
    (copy.path / "model.safetensors").write_bytes(data[: len(data) // 2])


class Code:
    """An object that calls print when it is unpickled."""

    def __reduce__(self):
        return print, ("code of a checkpoint ran",)


def pickled(content, **settings):
    def change(copy):
        (copy.path / "model.safetensors").unlink()
        torch.save(content, copy.path / "pytorch_model.bin", **settings)

    return change


def half_a_pickle(copy):
    torch.save(load_file(copy.path / "model.safetensors"), copy.path / "pytorch_model.bin")
    (copy.path / "model.safetensors").write_bytes((copy.path / "pytorch_model.bin").read_bytes())
    truncate(copy)
    (copy.path / "model.safetensors").rename(copy.path / "pytorch_model.bin")


def index(weight_map):
    def change(copy):
        (copy.path / "model.safetensors").rename(copy.path / "model-00001-of-00002.safetensors")
        (copy.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return change


def only_an_adapter(copy):
    (copy.path / "config.json").rename(copy.path / "adapter_config.json")


lose_a_shard = index({EMBEDDING: "model-00001-of-00002.safetensors", LAST_NORM: "model-00002-of-00002.safetensors"})


DAMAGE = {
    "no config": (remove("config.json"), "config.json is missing"),
    "broken config": (write("config.json", "{"), "cannot be read"),
    "a list for a config": (write("config.json", "[]"), "not a JSON object"),
    "another model": (write("config.json", '{"model_type": "bart"}'), "'bart'"),
    "a nonsensical config": (
        lambda copy: copy.edit("config.json", lambda config: config["vision_config"].update(depths="many")),
        "not a Florence-2 configuration",
    ),
    "a config that fits no model": (
        lambda copy: copy.edit("config.json", lambda config: config["vision_config"].update(num_heads=[5])),
        "does not describe a working model",
    ),
    "a nonsensical default": (
        write("generation_config.json", '{"num_beams": "some"}'),
        'num_beams is "some" in generation_config.json, but it must be a whole number',
    ),
    "a default out of range": (
        write("generation_config.json", '{"num_beams": 50}'),
        "num_beams is 50 in generation_config.json, but it must be a whole number, 1 to 16; correct it there",
    ),
    "no image size": (
        lambda copy: copy.edit("processor_config.json", lambda values: values["image_processor"].pop("size")),
        "missing or invalid (KeyError: 'size')",
    ),
    "no weights": (remove("model.safetensors"), "holds no model.safetensors or pytorch_model.bin"),
    "a file that is no pickle": (only_a_pickle, "pytorch_model.bin"),
    "a pickle that runs code": (pickled({"weight": Code()}), "would run code"),
    "an old pickle that runs code": (pickled({"weight": Code()}, _use_new_zipfile_serialization=False), "run code"),
    "a pickle of something else": (pickled([1, 2]), "something other than tensors by name"),
    "half a pickle": (half_a_pickle, "damaged"),
    "an index of nothing": (index({}), "lists no weights"),
    "an index of a file outside": (index({EMBEDDING: "../../etc/passwd"}), "outside of the checkpoint"),
    "only an adapter": (only_an_adapter, "give the checkpoint that it was trained on"),
    "quantized weights": (
        lambda copy: copy.reweigh(lambda weights: weights.update({LAST_NORM: weights[LAST_NORM].to(torch.int8)})),
        "quantized",
    ),
    "half a file": (truncate, "damaged or incomplete"),
    "text for weights": (write("model.safetensors", "<html>404</html>"), "damaged or incomplete"),
    "a lost shard": (lose_a_shard, "model-00002-of-00002.safetensors is missing"),
    "a missing weight": (lambda copy: copy.reweigh(lambda weights: weights.pop(LAST_NORM)), f"among them {LAST_NORM}"),
    "no embedding": (lambda copy: copy.reweigh(lambda weights: weights.pop(EMBEDDING)), "no token embedding"),
    "a weight of another size": (
        lambda copy: copy.reweigh(lambda weights: weights.update({LAST_NORM: torch.zeros(7)})),
        "has the shape [7]",
    ),
    "another model's weights": (
        lambda copy: copy.reweigh(lambda weights: [weights.pop(name) for name in list(weights)[1:]]),
        "the checkpoint",
    ),
    "no tokenizer": (remove("tokenizer.json"), "tokenizer.json is missing"),
    "a broken tokenizer": (write("tokenizer.json", "{}"), "cannot be read"),
    "a tokenizer without locations": (
        lambda copy: copy.edit("tokenizer.json", lambda values: values["added_tokens"].clear()),
        "not Florence-2's",
    ),
    "no image settings": (remove("processor_config.json"), "or preprocessor_config.json are missing"),
    "another crop": (
        lambda copy: copy.edit(
            "processor_config.json", lambda values: values["image_processor"].update(do_resize=False)
        ),
        "do_resize",
    ),
    "too large an image": (
        lambda copy: copy.edit(
            "processor_config.json", lambda values: values["image_processor"].update(size={"height": 768, "width": 768})
        ),
        "images of 768 x 768 pixels give a feature map of 24 x 24",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_sentence_and_exit_code_1(copy, case, capsys, tmp_path):
    """There is no traceback and no export. One line says what is wrong with the files."""
    damage, sentence = DAMAGE[case]
    damage(copy)
    assert main(["export", str(copy.path), "--repository", str(tmp_path / "repository")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("florence2: ") and sentence in error and error.count("\n") == 1
    assert not (tmp_path / "repository").exists()


def test_nothing_in_a_checkpoint_is_executed(copy, tmp_path):
    """Code files and auto_map entries of Microsoft's repositories are ignored."""
    trace = tmp_path / "executed"
    (copy.path / "modeling_florence2.py").write_text(f"open({str(trace)!r}, 'w')")
    (copy.path / "configuration_florence2.py").write_text(f"open({str(trace)!r}, 'w')")
    code = {"AutoConfig": "configuration_florence2.Florence2Config", "AutoModelForCausalLM": "modeling_florence2.X"}
    copy.edit("config.json", lambda config: config.update(auto_map=code))
    copy.read()
    assert not trace.exists()
