"""Compare merged LoRA adapters with PEFT: with its own merge if that is exact, otherwise with its wrapped model."""

import json
import re

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Florence2ForConditionalGeneration

from florence2.errors import CheckpointError
from florence2_client.cli import main
from florence2_export.adapter import CONFIG
from florence2_export.checkpoint import read_checkpoint
from florence2_export.language import export_language_model
from florence2_export.layouts import EMBEDDING, HEAD, UNTIED
from florence2_export.parity import compare_weights
from florence2_export.reference import load_reference
from tests.unit.export.test_layouts import microsoft_name

ATTENTION = r".*\.(q_proj|v_proj|qkv|fc2)"


def train(demo, folder, **settings) -> tuple[Florence2ForConditionalGeneration, peft.PeftModel]:
    """Save an adapter of the bundled checkpoint with PEFT. Its factors are random instead of trained."""
    torch.manual_seed(3)
    model = Florence2ForConditionalGeneration.from_pretrained(demo, dtype=torch.float32)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **settings}))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    wrapped.save_pretrained(folder)
    return model, wrapped.eval()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"target_modules": ATTENTION}, id="text and vision"),
        pytest.param({"target_modules": ATTENTION, "use_rslora": True, "init_lora_weights": "gaussian"}, id="rslora"),
        pytest.param({"target_modules": ["q_proj"], "fan_in_fan_out": True}, id="fan_in_fan_out"),
        pytest.param(
            {
                "target_modules": ["q_proj", "fc1", "fc2"],
                "rank_pattern": {"fc1": 2, r"decoder.layers.\d.fc2": 3},
                "alpha_pattern": {"encoder.layers.0.fc1": 9, "fc2": 1},
            },
            id="patterns",
        ),
        pytest.param(
            {"target_modules": ["q_proj"], "modules_to_save": ["image_projection", "image_proj_norm"]},
            id="modules_to_save",
        ),
        pytest.param({"target_modules": ["conv"]}, id="convolutions"),
        pytest.param({"target_modules": ["q_proj", "k_proj"], "bias": "lora_only"}, id="biases"),
        pytest.param({"target_modules": ["out_proj"], "layers_to_transform": [1]}, id="some layers"),
        pytest.param({"target_modules": ["q_proj", "qkv"], "exclude_modules": ".*encoder.*"}, id="excluded modules"),
        pytest.param({"target_modules": ["q_proj", "qkv"], "lora_bias": True}, id="lora_bias"),
        pytest.param({"target_modules": ["q_proj", "qkv"], "init_lora_weights": "orthogonal"}, id="orthogonal"),
        pytest.param(
            {
                "target_modules": ["q_proj", "qkv"],
                "init_lora_weights": "eva",
                "eva_config": peft.EvaConfig(rho=1.5),
                "rank_pattern": {"decoder.layers.0.self_attn.q_proj": 6},
                "alpha_pattern": {"decoder.layers.0.self_attn.q_proj": 3},
            },
            id="EVA",
        ),
        pytest.param({"target_modules": ["fc1", "qkv", "conv"], "use_dora": True}, id="DoRA"),
        pytest.param(
            {"target_modules": [], "target_parameters": ["image_projection.weight", "fc1.weight"]}, id="parameters"
        ),
        pytest.param({"target_modules": ["fc1"], "modules_to_save": ["vision_tower"]}, id="a tower"),
    ],
)
def test_merged_weights_are_those_of_peft(demo, tmp_path, settings):
    """Each weight equals merge_and_unload of the float32 model. All others stay as stored."""
    _, wrapped = train(demo, tmp_path, **settings)
    merged = wrapped.merge_and_unload().state_dict()
    stored, read = read_checkpoint(str(demo)), read_checkpoint(str(demo), adapter=str(tmp_path))
    assert read.weights.keys() == stored.weights.keys()
    changed = [name for name in read.weights if read.weights[name] is not stored.weights[name]]
    for name, tensor in read.weights.items():
        torch.testing.assert_close(tensor.float(), merged[name], rtol=0, atol=1e-6)
    assert any(not torch.equal(read.weights[name].float(), stored.weights[name].float()) for name in changed)


TYING = {"ensure_weight_tying": True}
PLACEMENTS = {
    "head": {"target_modules": ["q_proj", "lm_head"], "use_rslora": True},
    "prompt's embedding": {"target_modules": ["q_proj", "shared"]},
    "decoder's embedding": {"target_modules": ["q_proj", "decoder.embed_tokens"]},
    "encoder's embedding, which has no effect": {"target_modules": ["q_proj", "encoder.embed_tokens"]},
    "every embedding and the head": {"target_modules": ["shared", "embed_tokens", "lm_head"]},
    "head and all tied to it": {"target_modules": ["q_proj", "lm_head"], **TYING},
    "head by pattern and all tied to it": {"target_modules": ".*(q_proj|lm_head)", **TYING},
    "prompt's embedding, which PEFT does not tie": {"target_modules": ["q_proj", "shared"], **TYING},
    "saved prompt's embedding": {"target_modules": ["q_proj"], "modules_to_save": ["shared"]},
    "saved prompt's embedding, not tied": {"target_modules": ["q_proj"], "modules_to_save": ["shared"], **TYING},
    "saved embeddings of both stacks": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved decoder's embedding": {"target_modules": ["fc2"], "modules_to_save": ["decoder.embed_tokens"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved head and prompt's embedding": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "shared"]},
    "saved decoder": {"target_modules": ["qkv"], "modules_to_save": ["decoder"]},
    "tokens everywhere": {"target_modules": ["q_proj"], "trainable_token_indices": [11, 13]},
    "tokens by module": {"target_modules": ["q_proj"], "trainable_token_indices": {"shared": [11, 13]}},
    "tokens of the head": {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [11, 13]}},
    "tokens of the stacks": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [11, 13]}},
    "other tokens of the head": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"shared": [11, 12], "lm_head": [12, 13]},
    },
    "tokens and head": {"target_modules": ["q_proj", "lm_head"], "trainable_token_indices": [11, 13]},
    "DoRA": {"target_modules": ["q_proj", "fc1", "qkv", "conv", "shared", "embed_tokens", "lm_head"], "use_dora": True},
}


def logits(model, checkpoint, *added) -> torch.Tensor:
    """Return the logits for an image and a prompt in which each changed token occurs."""
    tokens, image = [0, 11, 12, 13, *added, 2], checkpoint.config.image
    pixels = torch.linspace(-2, 2, 3 * image.height * image.width).reshape(1, 3, image.height, image.width)
    prompt = torch.tensor([[model.config.image_token_id] * image.tokens + tokens])
    with torch.inference_mode():
        return model(input_ids=prompt, pixel_values=pixels, decoder_input_ids=torch.tensor([[2, *tokens]])).logits


def model_of(checkpoint) -> Florence2ForConditionalGeneration:
    return Florence2ForConditionalGeneration.from_pretrained(
        None, config=checkpoint.architecture, state_dict=checkpoint.weights, dtype=torch.float32
    ).eval()


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("saved", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapted_embedding_or_head_answers_as_it_was_trained(demo, tmp_path, placement, saved):
    """PEFT's merge would also change what is tied to it. A state_dict, with all of the base model, is read as well."""
    _, wrapped = train(demo, tmp_path, **PLACEMENTS[placement])
    if saved == "adapter_model.bin":
        torch.save(wrapped.state_dict(), tmp_path / saved)
        (tmp_path / "adapter_model.safetensors").unlink()
    read = read_checkpoint(str(demo), adapter=str(tmp_path))
    trained = logits(wrapped, read)
    torch.testing.assert_close(logits(model_of(read), read), trained, rtol=0, atol=2e-4)
    assert (logits(model_of(read_checkpoint(str(demo))), read) - trained).abs().max() > 0.01
    if placement == "head":
        assert torch.equal(read.weights[EMBEDDING], read_checkpoint(str(demo)).weights[EMBEDDING])
        assert (logits(wrapped.merge_and_unload(), read) - trained).abs().max() > 0.01


def test_the_reports_reference_has_the_adapter_too(demo, tmp_path):
    """Without it, every export with an adapter would fail the comparison."""
    train(demo, tmp_path, target_modules=["q_proj", "lm_head"])
    read = read_checkpoint(str(demo), adapter=str(tmp_path))
    export_language_model(read.weights, tmp_path / "model.safetensors")
    assert compare_weights(tmp_path, load_reference(read)).passed
    assert not compare_weights(tmp_path, load_reference(read_checkpoint(str(demo)))).passed


def microsoft_key(key: str) -> str:
    """Return a tensor's name in an adapter that was trained on Microsoft's layout."""
    added = r"\.lora_.+|\.base_layer\..+|\.token_adapter\..+|\.bias|\.weight"
    module, rest = re.fullmatch(rf"base_model\.model\.(.+?)({added})", key).groups()
    return f"base_model.model.{microsoft_name(f'{module}.weight').removesuffix('.weight')}{rest}"


MICROSOFT = {
    "head": {"target_modules": [*"q_proj v_proj fc2 qkv lm_head".split()]},
    "DoRA of embeddings": {"target_modules": ["conv", "shared", "embed_tokens"], "use_dora": True},
    "saved embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["shared", "image_proj_norm", "lm_head"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": {"shared": [11, 12]}},
    "biases": {"target_modules": ["q_proj"], "bias": "lora_only"},
}


@pytest.mark.parametrize("settings", MICROSOFT.values(), ids=MICROSOFT)
@pytest.mark.parametrize("prefix", ["base_model.model.", "", "module.base_model.model."])
def test_an_adapter_trained_on_microsofts_layout_is_the_same_adapter(demo, tmp_path, settings, prefix):
    """Most adapters were trained with Microsoft's remote code. They fit the native checkpoint too."""
    train(demo, tmp_path / "native", **settings)
    expected = read_checkpoint(str(demo), adapter=str(tmp_path / "native")).weights
    tensors = load_file(tmp_path / "native" / "adapter_model.safetensors")
    (tmp_path / "microsoft").mkdir()
    renamed = {microsoft_key(key).replace("base_model.model.", prefix, 1): value for key, value in tensors.items()}
    assert not renamed.keys() & tensors.keys()
    torch.save(renamed, tmp_path / "microsoft" / "adapter_model.bin")  # as older PEFT saved it
    config = (tmp_path / "native" / "adapter_config.json").read_text()
    (tmp_path / "microsoft" / "adapter_config.json").write_text(config)
    read = read_checkpoint(str(demo), adapter=str(tmp_path / "microsoft")).weights
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in expected)


UNMERGED = {
    "LoRA": {"target_modules": ["q_proj", "qkv"]},
    "DoRA and a head": {"target_modules": ["q_proj", "lm_head"], "use_dora": True, "modules_to_save": ["shared"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [11, 12]},
}


@pytest.mark.parametrize("settings", UNMERGED.values(), ids=UNMERGED)
@pytest.mark.parametrize("form", ["native", "microsoft", "base_model"])
def test_lora_layers_inside_a_checkpoint_are_merged(demo, copy, settings, form):
    """A training program that saves the wrapped model's state_dict leaves them there."""
    _, wrapped = train(demo, copy.path, **settings)
    expected = read_checkpoint(str(demo), adapter=str(copy.path)).weights
    (copy.path / "adapter_model.safetensors").unlink()
    state = wrapped.state_dict() if form == "base_model" else wrapped.get_base_model().state_dict()
    if form == "microsoft":
        state = microsoft_state(state)
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, copy.path / "model.safetensors")
    read = copy.read()
    assert any("LoRA layers" in note for note in read.notes) and not read.readable
    assert read.weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(read.weights[name].float(), tensor.float(), rtol=0, atol=1e-6)
    (copy.path / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"LoRA layers that were never merged.+adapter_config\.json"):
        copy.read()


def microsoft_state(state) -> dict[str, torch.Tensor]:
    """Return a wrapped native model's weights as those of a wrapped model in Microsoft's layout."""
    renamed = {}
    for name, tensor in state.items():
        plain = name.endswith("pos_idx_to_embed")  # a buffer
        key = microsoft_name(name) if plain else microsoft_key(f"base_model.model.{name}")
        renamed[key.removeprefix("base_model.model.")] = tensor
    renamed["image_projection"] = renamed.pop("image_projection.weight").T
    renamed["language_model.final_logits_bias"] = torch.zeros(1, 7)
    return renamed


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


def test_trained_tokens_of_their_own_kind_are_merged(demo, tmp_path):
    """PEFT can train tokens without a LoRA, too."""
    model = Florence2ForConditionalGeneration.from_pretrained(demo, dtype=torch.float32)
    config = peft.TrainableTokensConfig(token_indices=[11, 12], target_modules=["shared"])
    wrapped = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        wrapped.get_input_embeddings().trainable_tokens_delta["default"].mul_(1.5)
    wrapped.save_pretrained(tmp_path)
    read = read_checkpoint(str(demo), adapter=str(tmp_path))
    torch.testing.assert_close(logits(model_of(read), read), logits(wrapped, read), rtol=0, atol=1e-4)
    assert not {name for name in read.weights if name in UNTIED}


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


@pytest.mark.parametrize("rows", [-3, 5], ids=["fewer", "more"])
def test_a_heads_padding_may_differ(demo, checkpoint, tmp_path, rows):
    """Microsoft's head has 51,289 rows, the native one 51,328, of which the last are unused."""
    train(demo, tmp_path, target_modules=["lm_head"])
    path = tmp_path / "adapter_model.safetensors"
    factors, expected = load_file(path), read_checkpoint(str(demo), adapter=str(tmp_path)).weights
    for name in [name for name in factors if name.endswith(("lora_B.weight", "base_layer.weight"))]:
        tensor = factors[name]
        factors[name] = tensor[:rows].clone() if rows < 0 else torch.cat([tensor, torch.ones(rows, tensor.shape[1])])
    save_file(factors, path)
    read = read_checkpoint(str(demo), adapter=str(tmp_path)).weights
    known = checkpoint.config.tokens.known
    assert read[HEAD].shape == expected[HEAD].shape
    assert torch.equal(read[HEAD][: known - 3], expected[HEAD][: known - 3])


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
