"""Test which files and settings of an adapter are used, noted, or refused in one sentence."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Florence2ForConditionalGeneration

from florence2.errors import CheckpointError
from florence2_client.cli import main
from florence2_export.adapter import CONFIG
from florence2_export.checkpoint import read_checkpoint
from tests.unit.export.test_lora import logits, model_of, train


def test_an_adapter_next_to_a_checkpoint_is_noted_and_merged_on_request(demo, copy):
    """A folder may hold both. Without --adapter, the checkpoint is exported as it is."""
    train(demo, copy.path, target_modules=["q_proj"])
    merged = read_checkpoint(str(copy.path), adapter=str(copy.path))
    assert any("is not merged; to merge it, add --adapter" in note for note in copy.read().notes)
    assert not any("is not merged" in note for note in merged.notes)
    name = "model.language_model.decoder.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged.weights[name], copy.read().weights[name].float())


@pytest.mark.parametrize("name", ["adapter_model.pt", "pytorch_model.bin", "lora.pt", "lora.safetensors"])
def test_an_adapters_file_may_have_another_name(demo, tmp_path, name):
    """Training programs save the tensors of an adapter themselves, next to files of their own."""
    train(demo, tmp_path, target_modules=["q_proj"])
    expected = read_checkpoint(str(demo), adapter=str(tmp_path)).weights
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    (torch.save if name.endswith(("pt", "bin")) else save_file)(tensors, tmp_path / name)
    torch.save({"step": torch.ones(1)}, tmp_path / "optimizer.pt")
    read = read_checkpoint(str(demo), adapter=str(tmp_path)).weights
    assert all(torch.equal(read[key], expected[key]) for key in expected)


TASK = "<my_task>"
NEW = 1675  # its id, after `<image>`


def train_a_task(demo, folder, save=None, **settings) -> peft.PeftModel:
    """Save an adapter with a tokenizer that has a new token, and return PEFT's model, whose embedding has its row."""
    torch.manual_seed(3)
    model = Florence2ForConditionalGeneration.from_pretrained(demo, dtype=torch.float32)
    model.resize_token_embeddings(NEW + 1)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"], **settings))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    wrapped.save_pretrained(folder, **(save or {}))
    tokenizer = AutoTokenizer.from_pretrained(demo)
    tokenizer.add_tokens([TASK], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return wrapped.eval()


@pytest.mark.parametrize(
    ("save", "settings"),
    [
        pytest.param({"save_embedding_layers": True}, {}, id="the whole embedding"),
        pytest.param({}, {"modules_to_save": ["shared", "embed_tokens", "lm_head"]}, id="each copy"),
        pytest.param({}, {"trainable_token_indices": [11, NEW]}, id="its row"),
    ],
)
def test_a_token_that_an_adapter_adds_can_be_used(demo, tmp_path, save, settings):
    """A fine-tune often has a task token of its own, in the tokenizer that was saved with the adapter."""
    wrapped = train_a_task(demo, tmp_path, save, **settings)
    read = read_checkpoint(str(demo), adapter=str(tmp_path))
    assert read.tokenizer.encode(f"<s>{TASK}</s>", add_special_tokens=False).ids == [0, NEW, 2]
    assert read.config.tokens.known == read.config.text.vocab_size == NEW + 1
    assert f"the adapter adds 1 tokens: {TASK}" in read.notes
    reread = model_of(read)
    torch.testing.assert_close(logits(reread, read, NEW), logits(wrapped, read, NEW), rtol=0, atol=2e-4)


@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["shared"]}], ids=["not at all", "for the prompt only"])
def test_a_token_that_was_saved_without_its_row_is_refused(demo, tmp_path, settings):
    """Its row was random in training and is not in any file."""
    train_a_task(demo, tmp_path, **settings)
    with pytest.raises(CheckpointError, match="has only 1675 rows; save the adapter with peft's save_embedding_layers"):
        read_checkpoint(str(demo), adapter=str(tmp_path))


def test_a_tokenizer_that_contradicts_the_checkpoints_is_refused(demo, tmp_path):
    """An adapter of another tokenizer would answer with other words."""
    train(demo, tmp_path, target_modules=["q_proj"])
    tokenizer = json.loads((demo / "tokenizer.json").read_text())
    swapped = {"<loc_5>": "<loc_6>", "<loc_6>": "<loc_5>"}
    for token in tokenizer["added_tokens"]:
        token["content"] = swapped.get(token["content"], token["content"])
    vocabulary = tokenizer["model"]["vocab"]
    for one, other in swapped.items():
        if one in vocabulary and one < other:
            vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=r"has <loc_\d> as \d+, but the checkpoint's has it as"):
        read_checkpoint(str(demo), adapter=str(tmp_path))


def test_an_adapters_own_image_and_generation_settings_are_used(demo, tmp_path):
    """It was trained with them. --processor takes precedence."""
    train(demo, tmp_path, target_modules=["q_proj"])
    processor = json.loads((demo / "processor_config.json").read_text())["image_processor"]
    processor["size"] = {"height": 96, "width": 96}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    (tmp_path / "generation_config.json").write_text(json.dumps({"num_beams": 2}))
    read = read_checkpoint(str(demo), adapter=str(tmp_path))
    assert (read.config.image.height, read.config.image.width, read.config.generation.num_beams) == (96, 96, 2)
    assert read.processor.directory == tmp_path
    notes = " | ".join(read.notes)
    assert "image settings are those of the adapter" in notes and "takes precedence over the checkpoint's" in notes
    stock = read_checkpoint(str(demo), adapter=str(tmp_path), processor=str(demo)).config.image
    assert stock == read_checkpoint(str(demo)).config.image


def test_what_an_adapter_says_of_its_training_is_noted(demo, tmp_path):
    """It may name another checkpoint, hold a quantized one, or ask for ties that PEFT does not make."""
    train(demo, tmp_path, target_modules=["q_proj"], modules_to_save=["shared"], ensure_weight_tying=True)
    edited(base_model_name_or_path="someone/Florence-2-other", revision="abc123")(tmp_path)
    quantized = {
        "base_model.model.model.language_model.decoder.layers.0.fc1.base_layer.weight": torch.ones(1, 9).byte(),
        "base_model.model.model.language_model.decoder.layers.0.fc1.base_layer.weight.absmax": torch.ones(9),
    }
    refilled(lambda factors: factors.update(quantized))(tmp_path)
    notes = " | ".join(read_checkpoint(str(demo), adapter=str(tmp_path)).notes)
    for sentence in ("trained on someone/Florence-2-other", "revision abc123", "quantized base model", "does not tie"):
        assert sentence in notes
    edited(base_model_name_or_path=f"someone/{demo.name}", revision=None)(tmp_path)
    assert "trained on" not in " | ".join(read_checkpoint(str(demo), adapter=str(tmp_path)).notes)


def edited(**changes):
    def damage(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def refilled(change):
    def damage(folder):
        factors = load_file(folder / "adapter_model.safetensors")
        change(factors)
        save_file(factors, folder / "adapter_model.safetensors")

    return damage


FIRST = "base_model.model.model.language_model.decoder.layers.0.encoder_attn.q_proj.lora_A.weight"
TOKENS = "base_model.model.model.language_model.shared.token_adapter.trainable_tokens_delta"
NAMES = ("one", "two")
DEPTHWISE = "base_model.model.model.vision_tower.blocks.0.0.spatial_block.conv1"
depthwise = {
    f"{DEPTHWISE}.lora_A.weight": torch.zeros(24, 24, 3, 3),
    f"{DEPTHWISE}.lora_B.weight": torch.zeros(24, 1, 1, 1),
}
REFUSED = {
    "another kind": (edited(peft_type="LOHA"), "peft_type LOHA"),
    "DoRA without magnitudes": (edited(use_dora=True), "DoRA's magnitude"),
    "an initialization that changes the checkpoint": (edited(init_lora_weights="pissa"), "init_lora_weights=pissa"),
    "a setting of the future": (edited(use_something_new={"a": 1}), "use_something_new"),
    "a scale of nonsense": (edited(lora_alpha="much"), "adapter_config.json of"),
    "no scale": (edited(lora_alpha=None), "adapter_config.json of"),
    "half a pair": (refilled(lambda factors: factors.pop(FIRST)), "lacks one of its two factors"),
    "an adapter of another size": (
        refilled(lambda factors: factors.update({FIRST: torch.zeros(4, 7)})),
        "does not fit this checkpoint",
    ),
    "a factor that is a line": (
        refilled(lambda factors: factors.update({FIRST: torch.zeros(4)})),
        "lacks one of its two factors",
    ),
    "a head of another size": (
        refilled(lambda factors: factors.update({"base_model.model.lm_head.weight": torch.zeros(1576, 64)})),
        "does not fit this checkpoint at lm_head.weight",
    ),
    "an adapted head of another size": (
        refilled(
            lambda factors: factors.update(
                {f"base_model.model.lm_head.lora_{side}.weight": torch.zeros(4, 4) for side in "AB"}
            )
        ),
        "does not fit this checkpoint at lm_head.weight",
    ),
    "an adapter of another model": (
        refilled(lambda factors: factors.update({FIRST.replace("language_model", "text"): factors.pop(FIRST)})),
        "lacks one of its two factors",
    ),
    "a whole weight of another model": (
        refilled(lambda factors: factors.update({"base_model.model.classifier.weight": torch.zeros(2, 2)})),
        "does not fit this checkpoint at classifier.weight",
    ),
    "half an embedding": (
        refilled(lambda factors: factors.update({"base_model.model.shared.lora_embedding_A": torch.zeros(4, 9)})),
        "lacks one of its two factors",
    ),
    "several adapters": (
        refilled(
            lambda factors: factors.update(
                {
                    FIRST.replace("A.w", f"{side}.{name}.w"): torch.zeros(4, 4)
                    for side in "AB"
                    for name in ("one", "two")
                }
            )
        ),
        "holds several adapters (one, two)",
    ),
    "adapters in folders": (
        lambda folder: [(folder / "one").mkdir(), (folder / "adapter_config.json").rename(folder / "one" / CONFIG)],
        "holds adapters in folders (one)",
    ),
    "a depthwise convolution": (
        refilled(lambda factors: factors.update(depthwise)),
        "a depthwise convolution",
    ),
    "settings of the wrong type": (edited(alpha_pattern=[1]), "a setting in adapter_config.json"),
    "tokens without ids": (
        refilled(lambda factors: factors.update({TOKENS: torch.zeros(2, 128)})),
        "a setting in adapter_config.json",
    ),
    "nothing in it": (refilled(lambda factors: factors.clear()), "is empty"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "holds no adapter_model"),
    "no config": (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json is missing"),
}


@pytest.fixture(scope="module")
def adapter(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    train(demo, folder, target_modules=["q_proj"])
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_cannot_be_merged_exactly_is_refused_in_one_sentence(demo, adapter, tmp_path, case, capsys):
    """An adapter that is merged only in part would give wrong answers without a sign."""
    damage, sentence = REFUSED[case]
    for file in adapter.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path)
    assert main(["export", str(demo), "--adapter", str(tmp_path), "--repository", str(tmp_path / "repository")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("florence2: ") and sentence in error and error.count("\n") == 1


def test_a_missing_adapter_is_refused(demo):
    """This happens before the checkpoint's weights are read."""
    with pytest.raises(CheckpointError, match="there is no directory nowhere"):
        read_checkpoint(str(demo), adapter="nowhere")
