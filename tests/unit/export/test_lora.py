"""Compare merged LoRA adapters with PEFT: with its own merge if that is exact, otherwise with its wrapped model."""

import re

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Florence2ForConditionalGeneration

from florence2.errors import CheckpointError
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
