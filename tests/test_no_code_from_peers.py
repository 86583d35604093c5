"""Nothing that is received can bring code: no module unpickles, evaluates text, or loads a Keras file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("common", "client", "server", "simulations")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
FORBIDDEN_CALLS = {"load_model", "model_from_json", "model_from_config", "deserialize_keras_object", "eval", "exec"}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def called(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield (node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")), node


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_module_has_no_way_to_run_what_it_received(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert FORBIDDEN_IMPORTS.isdisjoint(imported(tree))
    calls = list(called(tree))
    assert FORBIDDEN_CALLS.isdisjoint(name for name, _ in calls)
    for name, call in calls:
        if name in {"load", "loads"} and isinstance(call.func, ast.Attribute):
            owner = getattr(call.func.value, "id", "")
            if owner in {"np", "numpy"}:
                pickled = [keyword.value for keyword in call.keywords if keyword.arg == "allow_pickle"]
                assert [getattr(value, "value", None) for value in pickled] == [False], f"line {call.lineno}"


def test_the_search_would_find_them():
    tree = ast.parse("import pickle\nkeras.models.load_model('x')")
    assert not FORBIDDEN_IMPORTS.isdisjoint(imported(tree))
    assert not FORBIDDEN_CALLS.isdisjoint(name for name, _ in called(tree))
