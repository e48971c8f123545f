"""Print measures of the code's structure, side by side for several revisions or folders.

    python -m tools.measures v0.1.0 HEAD .

How they are computed:

- Files to follow one request: the project's modules that are imported, directly or not, by any `model.py` of the model
  repository or by the client's gRPC path, including imports in functions. It counts what a reader may have to open.
- Files that mention an option or an output: Python, config.pbtxt, Markdown, YAML and JavaScript files with its name in
  either case, outside of generated blocks, of decision records, measured results and tools. A new option or output
  touches at most as many files.
- Import cycles: groups of modules that import each other at module level. Hidden ones need an import in a function or
  for type checkers.
- Private helpers called once: functions `_name` whose single reference in their module is a call, as a share of all
  functions. What is only passed on, such as the target of a thread, is not called.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from tools.language import words_to_avoid

PACKAGES = ("florence2", "client/florence2_client", "export", "export/florence2_export", "bench", "demo", "tools")
PRODUCTION = ("florence2", "client", "export", "model_repository")
BACKENDS = re.compile(r"florence2\.engine\.(cpu|cuda)\.")  # behind the interface in florence2/engine/backend.py
CLIENT_PATHS = ("florence2_client.client", "florence2_client.grpc_transport", "florence2_client.transports.grpc")
GENERATED = re.compile(r"\bgenerated: (\w+).*?end of generated: \1\b", re.DOTALL)
HISTORY = re.compile(r"docs/adr/|CHANGELOG|docs/benchmarks|(^|/)tools/")
READS_MEMORY = re.compile(r"VmRSS|VmHWM|statm|smaps|\bmemory_(full_)?info\b|\bru_maxrss\b")
READS_PROC = re.compile(r"""["']/proc/""")
LONG = 50  # lines of a function
SUFFIXES = {".py", ".pbtxt", ".md", ".yaml", ".yml", ".js"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Checkout:
    """The files of one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        hidden = {".git", ".venv", "build", "node_modules", "__pycache__"}
        self.paths = [
            path
            for path in sorted(root.rglob("*"))
            if path.suffix in SUFFIXES and path.is_file() and not hidden & set(path.relative_to(root).parts)
        ]

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def python(self, *folders: str) -> dict[str, ast.Module]:
        """Return the syntax trees of Python files below these folders, by path."""
        return {
            self.name(path): ast.parse(path.read_text(encoding="utf-8"))
            for path in self.paths
            if path.suffix == ".py" and self.name(path).startswith(tuple(f"{folder}/" for folder in folders))
        }

    @cached_property
    def modules(self) -> dict[str, ast.Module]:
        """Return the syntax trees of the project's modules, by dotted name; a model.py is named by its folder."""
        found = {}
        for package in PACKAGES:
            parent = Path(package).parent.as_posix()
            for name, tree in self.python(package).items():
                dotted = name.removeprefix(f"{parent}/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                if not dotted.startswith("export.florence2_export"):
                    found[dotted] = tree
        models = self.python("model_repository").items()
        return found | {f"model_repository.{Path(name).parts[1]}": tree for name, tree in models}

    def imports(self, module: str, hidden: bool) -> set[str]:
        """Return the project's modules that one imports; `hidden` adds imports in functions and for type checkers."""
        targets = set()
        for node in _statements(self.modules[module], hidden):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    deeper = f"{node.module}.{alias.name}"
                    targets.add(deeper if deeper in self.modules else node.module)
        return {target for target in targets if target in self.modules and target != module}

    def reachable(self, start: set[str], hidden: bool, backends: bool = True) -> set[str]:
        """Return these modules and those that they import, directly or not, with or without the decoding backends."""
        found, waiting = set(start), list(start)
        while waiting:
            new = {name for name in self.imports(waiting.pop(), hidden) if backends or not BACKENDS.match(name)} - found
            found |= new
            waiting += new
        return found

    def cycles(self, hidden: bool) -> list[set[str]]:
        """Return the groups of modules that import each other."""
        below = {module: self.reachable(self.imports(module, hidden), hidden) for module in self.modules}
        groups = {frozenset(other for other in below if other in below[module] and module in below[other])
                  for module in below if module in below[module]}  # fmt: skip
        return [set(group) for group in groups]

    def mentions(self, name: str) -> tuple[int, int]:
        """Return how many files outside and inside of tests mention a name, except in generated blocks."""
        pattern = re.compile(rf"\b({name}|{name.lower()})\b")
        files = [
            self.name(path)
            for path in self.paths
            if not HISTORY.search(self.name(path))
            and pattern.search(GENERATED.sub("", path.read_text(encoding="utf-8")))
        ]
        tests = sum(file.startswith("tests/") for file in files)
        return len(files) - tests, tests


def _statements(tree: ast.AST, hidden: bool) -> Iterator[ast.AST]:
    """Yield the nodes that run on import, or all of them."""
    for node in ast.iter_child_nodes(tree):
        guard = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if hidden or not (guard or isinstance(node, Function)):
            yield node
            yield from _statements(node, hidden)


def functions(trees: dict[str, ast.Module]) -> Iterator[tuple[str, Function]]:
    """Yield every function and method with the path of its file."""
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield path, node


def private_called_once(trees: dict[str, ast.Module]) -> int:
    """Return the number of private functions whose single reference in their module is a call."""
    once = 0
    for tree in trees.values():
        used = _names(ast.walk(tree))
        called = _names(node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        names = [node.name for node in ast.walk(tree) if isinstance(node, Function)]
        private = [name for name in names if name.startswith("_") and not name.startswith("__")]
        once += sum(used[name] == called[name] == 1 for name in private)
    return once


def _names(nodes: Iterable[ast.AST]) -> Counter[str]:
    """Count the names and attributes among the nodes."""
    return Counter(
        node.id if isinstance(node, ast.Name) else node.attr
        for node in nodes
        if isinstance(node, ast.Name | ast.Attribute)
    )


def measure(root: Path) -> dict[str, str]:
    """Return each measure of a folder as text."""
    checkout = Checkout(root)
    production, programs = checkout.python(*PRODUCTION), checkout.python(*PRODUCTION, "bench", "demo", "tests")
    lines = {checkout.name(path): path.read_text(encoding="utf-8").count("\n") for path in checkout.paths}
    longest_file = max(production, key=lines.__getitem__)
    every_function = list(functions(production))
    lengths = sorted(((node.end_lineno or 0) - node.lineno + 1, f"{path}:{node.name}") for path, node in every_function)
    visible = checkout.cycles(hidden=False)
    concealed = [group for group in checkout.cycles(hidden=True) if group not in visible]
    models = {module for module in checkout.modules if module.startswith("model_repository.")}
    starts = [start & set(checkout.modules) for start in (models, set(CLIENT_PATHS))]
    server, client = (checkout.reachable(start, hidden=True) for start in starts)
    to_backends = checkout.reachable(set().union(*starts), hidden=True, backends=False)
    sources = {path: (root / path).read_text(encoding="utf-8") for path in programs}
    texts = [path.read_text(encoding="utf-8") for path in checkout.paths if "language" not in path.name]
    option, output = checkout.mentions("NO_REPEAT_NGRAM_SIZE"), checkout.mentions("SEQUENCE_SCORE")
    once = private_called_once(production)
    return {
        "files to follow one request": f"{len(server | client)} (server {len(server)}, client {len(client)})",
        "the same, up to the decoding backends": str(len(to_backends)),
        "files that mention a generation option": f"{option[0]} + {option[1]} tests",
        "files that mention an output tensor": f"{output[0]} + {output[1]} tests",
        "import cycles": f"{len(visible)} + {len(concealed)} hidden",
        "longest file": f"{lines[longest_file]} ({longest_file})",
        "files over 300 lines": str(sum(lines[path] > 300 for path in production)),
        "private helpers called once": f"{100 * once / len(every_function):.0f} % ({once} of {len(every_function)})",
        f"functions over {LONG} lines": str(sum(length > LONG for length, _ in lengths)),
        "longest functions": ", ".join(f"{length} ({name})" for length, name in lengths[:-4:-1]),
        "programs that read a process's memory": str(sum(bool(READS_MEMORY.search(text)) for text in sources.values())),
        "programs that read /proc": str(sum(bool(READS_PROC.search(text)) for text in sources.values())),
        "client files": str(len(checkout.python("client"))),
        "bench files": str(len(checkout.python("bench"))),
        "lines of production code": str(sum(lines[path] for path in production)),
        "words to avoid": str(sum(len(words_to_avoid(text)) for text in texts)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", default=["."], help="git revisions or folders (default: this folder)")
    names = parser.parse_args().checkouts
    columns = []
    for name in names:
        if Path(name).is_dir():
            columns.append(measure(Path(name).resolve()))
            continue
        archive = subprocess.run(["git", "archive", name], capture_output=True, check=True).stdout
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
                packed.extractall(folder, filter="data")
            columns.append(measure(Path(folder)))
    print(f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for title in columns[0]:
        print(f"| {title} | {' | '.join(column[title] for column in columns)} |")


if __name__ == "__main__":
    main()
