"""Damaged and hostile checkpoints: each damage causes one sentence, and nothing in a checkpoint is executed."""

import json

import pytest
import torch
from safetensors.torch import load_file

from florence2_client.cli import main
from florence2_export.layouts import EMBEDDING

LAST_NORM = "model.multi_modal_projector.image_proj_norm.weight"


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
