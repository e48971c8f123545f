"""`florence2 tasks`: the table of tasks."""

from __future__ import annotations

import argparse

from florence2.tasks import TASKS
from florence2_client.cli.arguments import add_json, wants_json
from florence2_client.cli.console import ANSWERS, INPUTS, json_line, task_lines

EXAMPLES = """\
examples:
  florence2 tasks
  florence2 tasks | jq -r 'select(.takes == "region").task'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "List the tasks: their names, what they take besides the image, and what they answer with."
    parser.epilog = EXAMPLES
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    if not wants_json(options):
        print(*task_lines(), sep="\n")
        return 0
    for task in TASKS.values():
        takes, answers = INPUTS[task.input], ANSWERS[task.grammar]
        row = {"task": task.name, "token": task.token, "takes": takes, "answers": answers, "summary": task.summary}
        print(json_line(row))
    return 0
