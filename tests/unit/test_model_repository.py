"""Every committed config.pbtxt parses by Triton's own schema, and the ensemble's wires join equal tensors."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

REPOSITORY = Path(__file__).parents[2] / "model_repository"
NAMES = sorted(path.parent.name for path in REPOSITORY.glob("*/config.pbtxt"))
# Wired only where the answer is streamed, and only for clients that call a model by itself: see the contract.
STREAMS_ONLY = {"FINISH_REASON"}
DIRECT_ONLY = {"PROMPT"}

CONTRACT_INPUTS = {
    "IMAGE": ("TYPE_STRING", [1], False),
    "TASK": ("TYPE_STRING", [1], False),
    "TEXT": ("TYPE_STRING", [1], True),
    "MAX_NEW_TOKENS": ("TYPE_INT32", [1], True),
    "NUM_BEAMS": ("TYPE_INT32", [1], True),
    "NO_REPEAT_NGRAM_SIZE": ("TYPE_INT32", [1], True),
    "LENGTH_PENALTY": ("TYPE_FP32", [1], True),
    "EARLY_STOPPING": ("TYPE_BOOL", [1], True),
    "MIN_NEW_TOKENS": ("TYPE_INT32", [1], True),
    "REPETITION_PENALTY": ("TYPE_FP32", [1], True),
    "SUPPRESS_REPEATED_BOS": ("TYPE_BOOL", [1], True),
    "TEMPERATURE": ("TYPE_FP32", [1], True),
    "TOP_K": ("TYPE_INT32", [1], True),
    "TOP_P": ("TYPE_FP32", [1], True),
    "SEED": ("TYPE_INT64", [1], True),
}
CONTRACT_OUTPUTS = {
    "RESULT": ("TYPE_STRING", [1], False),
    "GENERATED_TEXT": ("TYPE_STRING", [1], False),
    "FINISH_REASON": ("TYPE_STRING", [1], False),
    "NUM_TOKENS": ("TYPE_INT32", [1], False),
    "SEQUENCE_SCORE": ("TYPE_FP32", [1], False),
    "IMAGE_SIZE": ("TYPE_INT32", [2], False),
    "NUM_PROMPT_TOKENS": ("TYPE_INT32", [1], False),
    "TOKEN_LOG_PROBS": ("TYPE_STRING", [1], False),
}


def read(name: str) -> ModelConfig:
    return text_format.Parse((REPOSITORY / name / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())


def signature(tensors) -> dict[str, tuple[str, list[int], bool]]:
    type_name = ModelConfig.DESCRIPTOR.fields_by_name["input"].message_type.fields_by_name["data_type"].enum_type
    return {
        t.name: (type_name.values_by_number[t.data_type].name, list(t.dims), getattr(t, "optional", False))
        for t in tensors
    }


def test_the_repository_holds_the_five_models():
    """A stray folder would stop the whole server."""
    assert [f"florence2_{step}" for step in ("decoder", "ensemble", "postprocess", "preprocess", "vision")] == NAMES
    assert sorted(path.name for path in REPOSITORY.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_complete_and_without_queue_policy(name):
    """Nothing is left to auto-completion, and nothing switches on the policy that stalls the batcher."""
    config = read(name)
    assert config.name == name
    assert (REPOSITORY / name / "1").is_dir()
    if config.platform != "ensemble":
        assert [group.count for group in config.instance_group] in ([1], [2])
    policy = config.dynamic_batching.default_queue_policy
    assert not config.dynamic_batching.priority_levels and not policy.ByteSize()
    assert not config.model_transaction_policy.decoupled


def test_the_ensemble_is_the_contract():
    """These names, types and dims are what clients rely on."""
    ensemble = read("florence2_ensemble")
    assert ensemble.max_batch_size == 0
    assert signature(ensemble.input) == CONTRACT_INPUTS
    assert signature(ensemble.output) == CONTRACT_OUTPUTS


def test_every_wire_of_the_ensemble_joins_equal_tensors():
    """Each step's inputs come from the request or an earlier step, with the same type, dims and optionality."""
    ensemble = read("florence2_ensemble")
    wires = signature(ensemble.input)
    used = set()
    for step in ensemble.ensemble_scheduling.step:
        model = read(step.model_name)
        inputs, outputs = signature(model.input), signature(model.output)
        assert set(step.input_map) == set(inputs) - STREAMS_ONLY and set(step.output_map) == set(outputs) - DIRECT_ONLY
        for tensor, wire in step.input_map.items():
            kind, dims, optional = inputs[tensor]
            assert wires[wire][:2] == (kind, dims), f"{step.model_name}.{tensor} <- {wire}"
            assert optional or not wires[wire][2], f"{step.model_name}.{tensor} <- {wire} may be missing"
            used.add(wire)
        wires |= {wire: outputs[tensor] for tensor, wire in step.output_map.items()}
    assert {name: wires[name] for name in CONTRACT_OUTPUTS} == CONTRACT_OUTPUTS
    assert used | set(CONTRACT_OUTPUTS) == set(wires), "Triton refuses an ensemble with an unused tensor"
