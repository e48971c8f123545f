"""Test weights as training programs leave them: prefixes, wrapped pickles, odd types, and what cannot be exported."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from florence2.errors import CheckpointError
from florence2_export.layouts import EMBEDDING, HEAD, TIED
from florence2_export.reference import load_reference
from tests.unit.export.test_layouts import microsoft_name

LAST_NORM = "model.multi_modal_projector.image_proj_norm.weight"
QKV = "model.vision_tower.blocks.0.0.spatial_block.window_attn.qkv.weight"
SAFETENSORS = "model.safetensors"


def assert_same_weights(read, checkpoint):
    assert read.weights.keys() == checkpoint.weights.keys()
    for name, tensor in checkpoint.weights.items():
        assert torch.equal(read.weights[name].to(tensor.dtype), tensor)


def pickled(copy, content, name="pytorch_model.bin"):
    (copy.path / SAFETENSORS).unlink()
    torch.save(content, copy.path / name)


def renamed(copy, rename):
    weights = load_file(copy.path / SAFETENSORS)
    save_file({rename(name): tensor.contiguous() for name, tensor in weights.items()}, copy.path / SAFETENSORS)


def as_microsoft(weights):
    turned = {name: tensor.T.contiguous() if "image_projection" in name else tensor for name, tensor in weights.items()}
    return {microsoft_name(name): tensor for name, tensor in turned.items()}


PREFIXES = ("module.", "model.", "_orig_mod.", "base_model.model.", "module._orig_mod.", "net.florence.")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("layout", ["native", "microsoft"])
def test_a_prefix_of_all_names_is_taken_off(copy, checkpoint, prefix, layout):
    """DataParallel, torch.compile, PEFT and Lightning each put one there."""
    weights = {**load_file(copy.path / SAFETENSORS), HEAD: checkpoint.weights[EMBEDDING].clone()}
    if layout == "microsoft":
        weights = as_microsoft(weights)
    save_file({prefix + name: tensor for name, tensor in weights.items()}, copy.path / SAFETENSORS)
    read = copy.read()
    assert read.microsoft == (layout == "microsoft") and not read.readable
    assert_same_weights(read, checkpoint)
    assert "weight names are read without" in read.notes[0] and prefix.split(".")[0] in " ".join(read.notes)


def test_a_wrapper_of_a_part_is_taken_off(copy, checkpoint):
    """torch.compile and FSDP may wrap single modules."""
    renamed(copy, lambda name: name.replace("vision_tower.", "vision_tower._orig_mod.")
            .replace(".fc1.", ".fc1._fsdp_wrapped_module."))  # fmt: skip
    assert_same_weights(copy.read(), checkpoint)


@pytest.mark.parametrize("prefix", ["", "module.", "florence."])
def test_the_inner_model_without_its_head_is_read(copy, checkpoint, prefix):
    """transformers' Florence2Model saves its weights without `model.`, and with a tied head nothing is missing."""
    renamed(copy, lambda name: prefix + name.removeprefix("model."))
    assert_same_weights(copy.read(), checkpoint)


def test_two_models_in_one_file_are_refused(copy):
    """An average of the weights is often saved next to them, and only its owner knows which one is meant."""
    copy.reweigh(lambda weights: weights.update({f"ema.{name}": tensor for name, tensor in weights.items()}))
    refuse(copy, "those of several models, whose names begin with 'ema.model.' and with 'model.'")
    copy.reweigh(lambda weights: [weights.pop(name) for name in list(weights) if name.startswith("ema.")])
    copy.reweigh(lambda weights: weights.update({f"module.{LAST_NORM}": weights[LAST_NORM]}))
    refuse(copy, "which differ in a prefix")


def refuse(copy, sentence):
    with pytest.raises(CheckpointError) as caught:
        copy.read()
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "module"])
def test_a_wrapped_pickle_is_opened(copy, checkpoint, key):
    """Lightning, DeepSpeed and hand-written loops save the weights next to the state of the training."""
    weights = {f"model.{name}": tensor for name, tensor in load_file(copy.path / SAFETENSORS).items()}
    pickled(copy, {"epoch": 3, key: weights, "optimizer": {"state": {0: torch.zeros(2)}}, "step": torch.tensor(5)})
    read = copy.read()
    assert_same_weights(read, checkpoint)
    assert read.notes[0] == "pytorch_model.bin holds more than weights; left out: epoch, optimizer, step"


def test_a_pickle_may_be_wrapped_twice_and_hold_numbers(copy, checkpoint):
    """What is not a tensor is left out and noted."""
    pickled(copy, {"model": {"state_dict": {**load_file(copy.path / SAFETENSORS), "steps": 5}}})
    read = copy.read()
    assert_same_weights(read, checkpoint)
    assert read.notes == ("pytorch_model.bin holds more than weights; left out: steps",)


@pytest.mark.parametrize("name", ["last.ckpt", "florence.pth", "weights.pt", "model.fp16.safetensors"])
def test_one_weight_file_of_another_name_will_do(copy, checkpoint, name):
    """The files of a training next to it are not weights; a second weight file is refused."""
    weights = load_file(copy.path / SAFETENSORS)
    (copy.path / "optimizer.pt").write_bytes(b"")
    (copy.path / "rng_state_0.pth").write_bytes(b"")
    if name.endswith(".safetensors"):
        (copy.path / SAFETENSORS).rename(copy.path / name)
    else:
        pickled(copy, {"state_dict": weights, "epoch": 1}, name)
    read = copy.read()
    assert_same_weights(read, checkpoint)
    assert read.notes[0] == f"the weights are read from {name}"
    (copy.path / "other.pth").write_bytes(b"")
    refuse(copy, "several other weight files")


def test_shards_need_no_index_if_all_are_there(copy, checkpoint):
    """Their names say how many there are."""
    weights = load_file(copy.path / SAFETENSORS)
    (copy.path / SAFETENSORS).unlink()
    for place in (1, 2):
        shard = dict(list(weights.items())[place - 1 :: 2])
        save_file(shard, copy.path / f"model-0000{place}-of-00002.safetensors")
    read = copy.read()
    assert_same_weights(read, checkpoint)
    assert not read.readable and read.notes == (
        "model.safetensors.index.json is missing; the 2 shards are read without it",
    )
    (copy.path / "model-00001-of-00002.safetensors").unlink()
    refuse(copy, "it holds 1 files such as model-00002-of-00002.safetensors and no model.safetensors.index.json")


def test_weights_in_folders_are_pointed_out(copy):
    """A trainer's output folder holds them one level down."""
    for step in (500, 1000):
        (copy.path / f"checkpoint-{step}").mkdir()
        (copy.path / f"checkpoint-{step}" / SAFETENSORS).write_bytes(b"")
    (copy.path / SAFETENSORS).unlink()
    refuse(copy, "add --subfolder checkpoint-1000 or checkpoint-500")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn, torch.float8_e5m2])
def test_other_floating_point_types_are_read_as_float32(copy, checkpoint, dtype):
    """Every number of float64 and float8 that a checkpoint holds has a float32."""
    copy.reweigh(lambda weights: weights.update({QKV: weights[QKV].to(dtype), EMBEDDING: weights[EMBEDDING].to(dtype)}))
    read = copy.read()
    assert read.weights[QKV].dtype == read.weights[EMBEDDING].dtype == torch.float32
    assert torch.equal(read.weights[QKV], checkpoint.weights[QKV].to(dtype).float())
    assert read.notes == (f"weights stored as {str(dtype)[6:]} are read as float32: 2 in all",)
    assert torch.equal(load_reference(read).state_dict()[QKV], read.weights[QKV])


def test_mixed_precisions_are_kept(copy, checkpoint):
    """Trainers keep some weights in float32, and the copies of the embedding may differ in precision only."""
    types = (torch.float32, torch.bfloat16, torch.float16)
    copy.reweigh(lambda weights: weights.update({
        name: tensor.to(types[place % 3]) for place, (name, tensor) in enumerate(weights.items())
    } | {HEAD: weights[EMBEDDING].float(), TIED[2]: weights[EMBEDDING].float()}))  # fmt: skip
    read = copy.read()
    assert not read.notes
    assert read.weights.keys() == checkpoint.weights.keys()


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", [QKV, EMBEDDING])
def test_weights_that_are_not_finite_are_refused_by_name(copy, name, number):
    """A training that diverged leaves them, and every answer would be empty."""

    def spoil(weights):
        weights[name].view(-1)[5] = float(number)

    copy.reweigh(spoil)
    refuse(copy, f"{name} holds NaN or infinity: 1 of its ")


MARKS = {
    "bitsandbytes 4 bit": ({f"{QKV}.absmax": torch.zeros(2), f"{QKV}.quant_state.bitsandbytes__nf4": torch.zeros(2)},
                           "bitsandbytes"),
    "bitsandbytes 8 bit": ({QKV.replace("weight", "SCB"): torch.zeros(2)}, "bitsandbytes"),
    "gptq": ({QKV.replace("weight", "qweight"): torch.zeros(2, dtype=torch.int32)}, "GPTQ or AWQ"),
    "fp8 with scales": ({f"{QKV}_scale_inv": torch.zeros(2)}, "scaled"),
    "comfy": ({"scaled_fp8": torch.zeros(2)}, "scaled"),
    "compressed": ({QKV.replace("weight", "weight_packed"): torch.zeros(2)}, "scaled"),
    "hqq": ({QKV.replace("weight", "W_q"): torch.zeros(2)}, "scaled"),
}  # fmt: skip


@pytest.mark.parametrize("case", MARKS)
def test_quantized_weights_are_refused_with_their_method(copy, case):
    """What quantization stores next to a weight gives it away, and config.json may say its name."""
    marks, method = MARKS[case]
    copy.reweigh(lambda weights: weights.update(marks))
    refuse(copy, f"the weights are quantized ({method}: ")
    copy.edit("config.json", lambda config: config.update(quantization_config={"quant_method": "fancy"}))
    refuse(copy, "the weights are quantized (fancy: ")


def test_settings_of_loading_next_to_floats_are_left_out(copy, checkpoint):
    """Fine-tunes from quantized or accelerated models keep them in config.json, where they mislead transformers."""
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}

    def leave(config):
        config |= {"quantization_config": quantization, "attn_implementation": "flash_attention_2"}
        config["text_config"] |= {"_attn_implementation": "flash_attention_2"}
        config["vision_config"] |= {"attn_implementation": "no_such_thing"}

    copy.edit("config.json", leave)
    read = copy.read()
    assert_same_weights(read, checkpoint)
    assert read.notes == ("config.json has a quantization_config, but the weights are not quantized; it is left out",)
    assert torch.equal(load_reference(read).state_dict()[QKV], checkpoint.weights[QKV].float())


@pytest.mark.parametrize("name", [SAFETENSORS, "pytorch_model.bin", "config.json", "tokenizer.json"])
def test_pointers_and_empty_files_are_named(copy, name):
    """Git without LFS leaves pointers, and a full disk leaves empty files."""
    if name == "pytorch_model.bin":
        (copy.path / SAFETENSORS).unlink()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (copy.path / name).write_text(pointer)
    refuse(copy, f"{name} in {copy.path} is a pointer of Git LFS, not the file itself; run `git lfs pull` there")
    (copy.path / name).write_text("")
    refuse(copy, f"{name} in {copy.path} is empty")


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_cut_anywhere_is_one_sentence(copy, tmp_path, legacy):
    """The loader raises many types of exceptions for damaged files."""
    weights = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    torch.save(weights, tmp_path / "whole", _use_new_zipfile_serialization=not legacy)
    data = (tmp_path / "whole").read_bytes()
    (copy.path / SAFETENSORS).unlink()
    for length in range(1, len(data) - 1, 7):
        (copy.path / "pytorch_model.bin").write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"pytorch_model.bin|no token embedding"):
            copy.read()


def test_an_index_may_name_weights_that_its_shards_lack(copy):
    """The weight is named."""
    copy.reweigh(lambda weights: weights.pop(LAST_NORM))
    (copy.path / SAFETENSORS).rename(copy.path / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys([EMBEDDING, LAST_NORM], "model-00001-of-00001.safetensors")
    (copy.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refuse(copy, f"among them {LAST_NORM}")
