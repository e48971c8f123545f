"""Append the references of the commands and of the HTTP API to the pages that announce them. A hook of MkDocs."""

from __future__ import annotations

import argparse
import html
import json
import os
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.pages import Page

from florence2_client import cli

OPENAPI = Path(__file__).parents[2] / "docs" / "openapi.yaml"


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Return the text of a page with the reference that belongs to it, if there is one."""
    references = {"docs/commands.md": commands, "docs/http.md": http_api}
    reference = references.get(page.file.src_uri)
    return "\n\n".join([markdown, *reference()]) if reference else markdown


# ---- the commands


def commands() -> Iterator[str]:
    """Yield what `florence2 --help` and `florence2 COMMAND --help` print, as blocks of Markdown."""
    os.environ.pop("FLORENCE2_URL", None)  # the page shows the program's default, not this machine's
    program = cli.parser()
    yield from _command(program)
    for action in program._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _command(command)


def _command(command: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## {command.prog}"
    yield _prose(command.description or "")
    formatter = command._get_formatter()
    needed = [action for action in command._actions if action.required or not action.option_strings]
    formatter.add_usage(None, [action for action in needed if action.nargs != argparse.PARSER], [], prefix="")
    yield _fenced(f"{formatter.format_help().strip()} [option …]")
    for group in command._action_groups:
        described = [action for action in group._group_actions if action.help and action.dest != "help"]
        if described:
            yield f"**{group.title}**"
            yield _definitions(
                (f"`{formatter._format_action_invocation(action)}`", formatter._expand_help(action))
                for action in described
            )
    for paragraph in (command.epilog or "").split("\n\n"):
        _, found, examples = paragraph.partition("examples:\n")
        yield _fenced(textwrap.dedent(examples).strip()) if found else _prose(paragraph)


# ---- the HTTP API


def http_api() -> Iterator[str]:
    """Yield docs/openapi.yaml as blocks of Markdown."""
    api = yaml.safe_load(OPENAPI.read_text(encoding="utf-8"))
    yield api["info"]["description"]
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            yield f"## {method.upper()} `{path}`"
            yield operation["summary"]
            if parameters := operation.get("parameters"):
                yield _definitions(
                    (f"`{parameter['name']}` in the {parameter['in']}", f"default: `{parameter['schema']['default']}`")
                    for parameter in parameters
                )
            if "requestBody" in operation:
                yield f"{_body(operation['requestBody'])} For example:"
                yield _fenced(json.dumps(operation["requestBody"]["content"]["application/json"]["example"], indent=2))
            yield _definitions(
                (f"status {status}", f"{response['description']} {_body(response)}")
                for status, response in operation["responses"].items()
            )
    for name, schema in api["components"]["schemas"].items():
        yield f"## {name}"
        required = schema.get("required", ())
        yield _definitions(
            (f"`{field}` ({_type(rules)}{', required' if field in required else ''})", rules["description"])
            for field, rules in schema["properties"].items()
        )


def _body(message: dict[str, Any]) -> str:
    """Return a sentence with a link to the schema of a request's or response's body, if it has one."""
    if "content" not in message:
        return ""
    name = message["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return f"The body is JSON: [{name}](#{name.lower()})."


def _type(rules: dict[str, Any]) -> str:
    return f"array of {rules['items']['type']}s" if rules["type"] == "array" else str(rules["type"])


# ---- Markdown


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    return "\n\n".join(f"{term}\n:   {_prose(description)}" for term, description in pairs)


def _prose(text: str) -> str:
    """Return a text in one line, in which only the code between backticks is markup."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [html.escape(part, quote=False) for part in parts[::2]]
    return "`".join(parts)


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```"
