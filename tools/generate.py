"""Write what follows from the contract into the files that repeat it: `make generate`.

A generated block stands between two comment lines, `generated: NAME` and `end of generated: NAME`; the rest of a file
is written by hand. `python -m tools.generate --check` only names the files that are out of date.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from florence2 import contract
from florence2.answers import SHAPES
from florence2.contract import OPTIONS, Model, Option, Tensor
from florence2.errors import ERROR_CODES, SERVER_CODES
from florence2.tasks import TASKS, Grammar, Task, TaskInput

ROOT = Path(__file__).parents[1]
COMMENTS = {".pbtxt": "# {}", ".yaml": "# {}", ".py": "# {}", ".md": "<!-- {} -->"}
JSON_TYPES = {"STRING": "string", "BOOL": "boolean", "INT32": "integer", "INT64": "integer", "FP32": "number"}
PYTHON_TYPES = {"STRING": "str", "BOOL": "bool", "INT32": "int", "INT64": "int", "FP32": "float"}
TAKES = {TaskInput.NONE: "nothing", TaskInput.TEXT: "a phrase or caption", TaskInput.REGION: "a region"}
WITHOUT_LABELS = {Grammar.BARE_BOXES, Grammar.POLYGONS}


# ---- config.pbtxt


def model_tensors(model: Model) -> str:
    """Return the `input` and `output` lists of a model's config.pbtxt."""
    return _tensors("input", model.inputs) + "\n" + _tensors("output", model.outputs)


def _tensors(direction: str, tensors: Iterable[Tensor]) -> str:
    entries = []
    for tensor in tensors:
        public = tensor in (*contract.INPUTS, *contract.OUTPUTS)
        comment = f"  # {tensor.help}\n" if tensor.help and not public else ""
        dims = ", ".join(map(str, tensor.dims))
        fields = f'name: "{tensor.name}" data_type: TYPE_{tensor.type} dims: [ {dims} ]'
        entries.append(f"{comment}  {{ {fields}{' optional: true' if tensor.optional else ''} }}")
    return f"{direction} [\n" + ",\n".join(entries) + "\n]"


def ensemble() -> str:
    """Return the tensors and the steps of the ensemble's config.pbtxt."""
    steps = []
    for wiring in contract.wire(contract.STEPS):
        maps = [
            f'      {direction}_map {{ key: "{name}" value: "{wire}" }}\n'
            for direction, wires in (("input", wiring.inputs), ("output", wiring.outputs))
            for name, wire in wires.items()
        ]
        name = f'      model_name: "florence2_{wiring.model.role}"\n      model_version: -1\n'
        steps.append("    {\n" + name + "".join(maps) + "    }")
    tensors = _tensors("input", contract.INPUTS) + "\n" + _tensors("output", contract.OUTPUTS)
    return f"{tensors}\nensemble_scheduling {{\n  step [\n" + ",\n".join(steps) + "\n  ]\n}"


# ---- docs


def inputs_table() -> str:
    """Return the Markdown table of the ensemble's inputs."""
    described = {option.name: _described(option) for option in OPTIONS}
    rows = [
        f"| `{tensor.name}` | {tensor.type} [1]{', optional' if tensor.optional else ''} | "
        f"{described.get(tensor.name, tensor.help)} |"
        for tensor in contract.INPUTS
    ]
    return "\n".join(["| input | type | |", "|---|---|---|", *rows])


def _described(option: Option) -> str:
    return f"{option.help}{f' ({option.range})' if option.range else ''}; default: {option.default}"


def outputs_table() -> str:
    """Return the Markdown table of the ensemble's outputs."""
    rows = [f"| `{tensor.name}` | {tensor.type} [{tensor.dims[0]}] | {tensor.help} |" for tensor in contract.OUTPUTS]
    return "\n".join(["| output | type | |", "|---|---|---|", *rows])


def tasks_table() -> str:
    """Return the Markdown table of the tasks."""
    rows = [
        f"| `{task.token}` | {TAKES[task.input]} | {task.summary}: {_answer_form(task)} |" for task in TASKS.values()
    ]
    return "\n".join(["| task | takes | answers with |", "|---|---|---|", *rows])


def _answer_form(task: Task) -> str:
    if task.grammar is Grammar.TEXT:
        return "text"
    fields = [f"`{field.name}`" for field in dataclasses.fields(SHAPES[task.grammar])]
    if task.grammar in WITHOUT_LABELS:
        fields[fields.index("`labels`")] = "empty `labels`"
    return ", ".join(fields)


def errors_table() -> str:
    """Return the Markdown table of the codes that a server sends."""
    rows = [
        f"| `{code}` | {ERROR_CODES[code].status} | {ERROR_CODES[code].exit_code} | `{ERROR_CODES[code].__name__}` | "
        f"{(ERROR_CODES[code].__doc__ or '').partition('. ')[0].rstrip('.')} |"
        for code in SERVER_CODES
    ]
    header = "| code | gRPC status | exit code | exception of the client | meaning |"
    return "\n".join([header, "|---|---|---|---|---|", *rows])


# ---- OpenAPI


def openapi_request() -> str:
    """Return the properties of a request to Triton's generate extension."""
    return _properties(contract.INPUTS)


def openapi_answer() -> str:
    """Return the properties of its answer."""
    return _properties(contract.OUTPUTS)


def _schema(tensor: Tensor) -> dict[str, Any]:
    item: dict[str, Any] = {"type": JSON_TYPES[tensor.type]}
    if tensor is contract.FINISH_REASON:
        item["enum"] = ["stop", "length"]
    size = tensor.dims[0]
    schema = item if size == 1 else {"type": "array", "items": item, "minItems": size, "maxItems": size}
    examples = {"examples": list(TASKS)} if tensor is contract.TASK else {}
    return schema | {"description": tensor.help} | examples | _limits(tensor.name)


def _limits(name: str) -> dict[str, Any]:
    option = next((option for option in OPTIONS if option.name == name), None)
    if option is None:
        return {}
    limits = {"minimum": option.minimum, "maximum": option.maximum}
    return {key: limit for key, limit in limits.items() if isinstance(limit, int | float)} | {
        "description": _described(option)
    }


def _properties(tensors: Iterable[Tensor]) -> str:
    """Return a line of JSON, which is YAML as well, for each tensor."""
    return "\n".join(f"        {tensor.name}: {json.dumps(_schema(tensor), ensure_ascii=False)}" for tensor in tensors)


def openapi_codes() -> str:
    """Return the description of an error message."""
    return f"          description: {json.dumps('`CODE: sentence`, where CODE is one of ' + ', '.join(SERVER_CODES))}"


# ---- the client


def client_options() -> str:
    """Return the keyword arguments of a request, as fields of a TypedDict."""
    return "\n".join(f"    {option.keyword}: {PYTHON_TYPES[option.type]} | None  # {option.help}" for option in OPTIONS)


BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    **{
        f"model_repository/florence2_{model.role}/config.pbtxt": {"tensors": lambda model=model: model_tensors(model)}
        for model in contract.STEPS
    },
    "model_repository/florence2_ensemble/config.pbtxt": {"ensemble": ensemble},
    "docs/api.md": {"tasks": tasks_table, "inputs": inputs_table, "outputs": outputs_table},
    "docs/client.md": {"errors": errors_table},
    "docs/openapi.yaml": {"request": openapi_request, "answer": openapi_answer, "codes": openapi_codes},
    "client/florence2_client/request.py": {"options": client_options},
}


def generated(path: str) -> str:
    """Return the text of a file with its generated blocks as the contract has them."""
    text = (ROOT / path).read_text(encoding="utf-8")
    comment = COMMENTS[Path(path).suffix]
    for name, block in BLOCKS[path].items():
        start, end = (re.escape(comment.format(words)) for words in (f"generated: {name}", f"end of generated: {name}"))
        pattern = re.compile(rf"(^ *{start}[^\n]*\n).*?(^ *{end})", re.DOTALL | re.MULTILINE)
        text, found = pattern.subn(lambda match, block=block: f"{match[1]}{block()}\n{match[2]}", text)
        if found != 1:
            raise SystemExit(f"{path} must have one block between the lines 'generated: {name}' and its end")
    return text


def stale_files() -> list[str]:
    """Return the paths of the files that `make generate` would change."""
    return [path for path in BLOCKS if generated(path) != (ROOT / path).read_text(encoding="utf-8")]


def main() -> int:
    """Write the blocks, or only name the files that are out of date."""
    parser = argparse.ArgumentParser(prog="python -m tools.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file is out of date")
    check = parser.parse_args().check
    stale = stale_files()
    for path in stale:
        print(f"{path} is out of date; run `make generate`" if check else f"wrote {path}")
        if not check:
            (ROOT / path).write_text(generated(path), encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
