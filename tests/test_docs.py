"""What the documents say is so: the help they show, the commands they print, the links they make, the agreement's
keys, the messages, the files of a run. A document that falls behind the code fails here."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import click
import pytest

from hansa_client import flower_node, own_figures, trainer_service
from hansa_client.merchant_policy import MerchantPolicy, parse_policy
from hansa_common import agreement as agreed
from hansa_common import agreement_sections as sections
from hansa_common import (
    audit_agreement,
    messages,
    privacy_agreement,
    record_types,
    robust_agreement,
    schema,
    secure_agreement,
    task_defaults,
    trust,
)
from hansa_common.agreement import parse_agreement
from hansa_common.cli import Commands, installed_commands
from hansa_server import exchange, replies, run_folder

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
HELP_WIDTH = 100

# Where the reference in docs/data.md tells each part of an agreement.
SECTIONS = {
    "### Top level": agreed.Agreement,
    "### `[label]`": sections.Label,
    '### `[[features]]` with `kind = "numeric"`': schema.NumericFeature,
    '### `[[features]]` with `kind = "categorical"`': schema.CategoricalFeature,
    '### `[[features]]` with `kind = "boolean"`': schema.BooleanFeature,
    '### `[[features]]` with `kind = "timestamp"`': schema.TimestampFeature,
    "### `[data]`": sections.Data,
    "### `[model]`": sections.Model,
    "### `[training]`": sections.Training,
    "### `[training.plan]` and `[[training.candidates]]`": sections.Plan,
    "### `[cohort]`": sections.Cohort,
    "### `[privacy]`": sections.Privacy,
    "### `[privacy.dp]`": privacy_agreement.DifferentialPrivacy,
    "### `[robustness]`": robust_agreement.Robustness,
    "### `[secure_aggregation]`": secure_agreement.SecureAggregation,
    "### `[compression]`": sections.Compression,
    "### `[audit]`": audit_agreement.Audit,
    "### `[trust]`": trust.Trust,
}
# Keys that are sections of their own.
NESTED = {
    agreed.Agreement: {
        "label",
        "features",
        "data",
        "model",
        "training",
        "cohort",
        "privacy",
        "robustness",
        "secure_aggregation",
        "compression",
        "audit",
        "trust",
    },
    sections.Training: {"plan", "candidates"},
    sections.Privacy: {"dp"},
}
PATTERNS = {
    r"^[^\x00-\x1f]+$": "no control characters",
    r"^[0-9a-f]{64}$": "64 hexadecimal digits",
    r"^[A-Za-z0-9][A-Za-z0-9 ._()<>=+-]{0,63}$": "at most 64 letters, digits and ` ._()<>=+-`, first a letter or digit",
}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one that is not below it."""
    level = heading.split(maxsplit=1)[0]
    start = text.index(f"\n{heading}\n") + len(heading) + 2
    following = re.compile(rf"^#{{1,{len(level)}}} ", re.MULTILINE).search(text, start)
    return text[start : following.start() if following else len(text)]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in a text, without their headers."""
    lines = [line.strip().strip("|").split(" | ") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    rule = [number for number, line in enumerate(cells) if set("".join(line)) <= set("-:|")]
    headers = {number - 1 for number in rule}
    return [line for number, line in enumerate(cells) if number not in headers and number not in rule]


# The agreement's reference


def number(value: float) -> str:
    if isinstance(value, int) and value >= 2**30 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e15 else f"{value:g}"


def bounds(field: dict) -> str:
    least, most = field.get("minimum"), field.get("maximum")
    above, below = field.get("exclusiveMinimum"), field.get("exclusiveMaximum")
    if least is not None and most is not None:
        return f", {number(least)} to {number(most)}"
    low = f", at least {number(least)}" if least is not None else "" if above is None else f", above {number(above)}"
    high = f", at most {number(most)}" if most is not None else "" if below is None else f", below {number(below)}"
    return low + high


def allowed(field: dict) -> str:
    """What the schema allows, in the words of the reference."""
    if "anyOf" in field:
        choices = [choice for choice in field["anyOf"] if choice != {"type": "null"}]
        if len(choices) == 1:
            return allowed(choices[0]) + "; may be left out"
        field = {"enum": [word for choice in choices for word in choice.get("enum", [choice.get("const")])]}
    if "const" in field or "enum" in field:
        words = [f"`{word}`" for word in field.get("enum", [field.get("const")])]
        return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
    match field["type"]:
        case "boolean":
            return "true or false"
        case "array" | "object":
            return several(field)
        case "string":
            pattern = f"; {PATTERNS[field['pattern']]}" if "pattern" in field else ""
            least, most = field.get("minLength", 0), field.get("maxLength")
            size = f", {least} to {most:,} characters" if least else f", at most {most:,} characters" if most else ""
            return f"text{size}{pattern}"
        case kind:
            return {"integer": "whole number", "number": "number"}[kind] + bounds(field)


def several(field: dict) -> str:
    if field["type"] == "array":
        return f"list, at most {number(field['maxItems'])}, of: {allowed(field['items'])}"
    ((_, entry),) = field["patternProperties"].items()
    return f"table, at most {number(field['maxProperties'])}, of: {allowed(entry)}"


def default(info) -> str:
    if info.is_required():
        return "required"
    value = info.default
    return "none" if value is None else f"`{shown(value)}`"


def shown(value) -> str:
    """A value as TOML has it, whole numbers without their point."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return value
        case tuple() | list():
            return f"[{', '.join(map(shown, value))}]"
    return number(value)


def expected_rows(model) -> list[list[str]]:
    fields = model.model_json_schema()["properties"]
    names = [name for name in model.model_fields if name not in NESTED.get(model, set())]
    told = {name: default(model.model_fields[name]) for name in names}
    if "kind" in told:
        # It has a default in Python; in TOML it is what tells the kinds apart.
        told["kind"] = "required"
    return [[f"`{name}`", allowed(fields[name]), told[name]] for name in names]


@pytest.mark.parametrize("heading", SECTIONS)
def test_reference_tells_every_key_of_an_agreement_with_its_bounds_and_default(heading):
    told = rows(section(text_of("docs/data.md"), heading))
    assert [row[:3] for row in told] == expected_rows(SECTIONS[heading])
    assert all(len(row) == 4 and row[3] for row in told)


def sections_in(annotation) -> set:
    """The sections that a field's type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, schema.Section):
        return {annotation}
    return {found for part in get_args(annotation) for found in sections_in(part)}


def test_reference_has_a_place_for_every_section():
    told = set(SECTIONS.values())
    for model in told:
        for name, info in model.model_fields.items():
            parts = sections_in(info.annotation)
            assert parts <= told
            assert bool(parts) == (name in NESTED.get(model, set())), name


def test_reference_tells_what_each_task_sets():
    def leaves(values: dict, place: str = "") -> dict[str, str]:
        found = {}
        for key, value in values.items():
            nested = isinstance(value, dict)
            found |= leaves(value, f"{place}{key}.") if nested else {f"{place}{key}": f"`{shown(value)}`"}
        return found

    tasks = {task: leaves(values) for task, values in task_defaults._DEFAULTS.items()}
    assert set(tasks) == {"fraud", "purchase"}
    told = {row[0].strip("`"): row[1:] for row in rows(section(text_of("docs/data.md"), "### What `task` sets"))}
    assert set(told) == {key for values in tasks.values() for key in values}
    for key, cells in told.items():
        assert cells == [tasks[task].get(key, "-") for task in ("fraud", "purchase")], key


def test_examples_of_agreements_hold():
    rest = 'label = {column = "y"}\nfeatures = [{kind = "boolean", name = "x"}]\n'
    examples = [block for path in DOCUMENTS for block in blocks(path.read_text(encoding="utf-8"), "toml")]
    assert examples
    for example in examples:
        for task in ("fraud", "purchase"):
            parse_agreement(f'task = "{task}"\n{rest}{example}', "the example")


# What is sent, what is left, what is refused


def test_table_of_messages_holds_every_field_that_can_leave_a_party():
    told = {row[0].strip("`"): row for row in rows(section(text_of("docs/security.md"), "## What each party can see"))}
    assert set(told) == set(messages._KINDS)
    for kind, record in messages._KINDS.items():
        header = record_types.Order if issubclass(record, record_types.Order) else record_types.Reply
        fields = [f"`{name}`" for name in record.model_fields if name not in header.model_fields]
        to = "merchant" if header is record_types.Order else "coordinator"
        assert told[kind][1:] == [to, ", ".join(fields) or "none"], kind
    headers = [*record_types.Order.model_fields, *record_types.Reply.model_fields]
    assert all(f"`{name}`" in section(text_of("docs/security.md"), "## What each party can see") for name in headers)


def test_refusal_has_as_many_codes_as_the_documents_say():
    codes = get_args(messages.Refusal.model_fields["code"].annotation)
    assert len(codes) == 11
    for name in ("README.md", "docs/security.md"):
        assert "one of eleven words" in text_of(name) or "one code of eleven words" in text_of(name)


def test_reasons_for_which_a_reply_is_left_out_are_told_in_full():
    section_of_reasons = section(text_of("docs/coordinator.md"), "## When something is wrong")
    told = {word for row in rows(section_of_reasons) for word in re.findall(r"`([a-z-]+)`", row[0])}
    refusals = set(get_args(messages.Refusal.model_fields["code"].annotation))
    # Their modules' tables are where these words are defined.
    by_coordinator = {
        line.split()[0]
        for module in (exchange, replies)
        for line in str(module.__doc__).splitlines()
        if re.match(r"[a-z-]+ {3,}\S", line) and not line.startswith(("code ", "reason "))
    }
    assert len(by_coordinator) > 10
    assert told == refusals | by_coordinator


def test_files_of_a_run_are_those_that_a_run_writes():
    names = {
        run_folder.AGREEMENT, run_folder.AGREEMENT_TOML, run_folder.COORDINATOR, run_folder.ATTENDANCE,
        run_folder.ROUNDS, run_folder.MODEL, run_folder.REPORT, run_folder.METRICS, run_folder.FAILURE,
        run_folder.CHECKPOINT, run_folder.INTERRUPTION,
    }  # fmt: skip
    told = {row[0].strip("`") for row in rows(section(text_of("docs/coordinator.md"), "## What a run leaves"))}
    assert told == names


def test_files_of_a_merchants_state_are_named_as_they_are():
    told = {row[0].strip("`") for row in rows(section(text_of("docs/merchant.md"), "## Take part"))}
    assert {own_figures.OWN_METRICS_NAME, flower_node.LOG_NAME} <= told
    assert "variates" in told
    assert 'VariateStore(files.state / "variates")' in inspect.getsource(trainer_service)


def test_policy_of_the_merchants_guide_holds_and_has_every_key():
    (policy,) = blocks(section(text_of("docs/merchant.md"), "## Say what you permit"), "text")
    assert parse_policy(policy.encode(), "the guide").model_fields_set == set(MerchantPolicy.model_fields)


def test_merchants_troubles_are_quoted_as_the_program_says_them():
    sources = "".join(path.read_text() for path in ROOT.glob("c*/hansa_c*/*.py"))
    plain = re.sub(r"\s+", " ", re.sub(r'"\s+f?"', "", sources))
    for row in rows(section(text_of("docs/merchant.md"), "## When something is wrong")):
        assert row[0].strip("`") in plain, row[0]


# Commands


def commands_in(name: str) -> list[list[str]]:
    lines = [line for block in blocks(text_of(name), "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if re.match(r"(\S*/)?hansa ", line)]


PRINTED = [
    pytest.param(words[1:], id=f"{path.relative_to(ROOT)}: {' '.join(words)}")
    for path in DOCUMENTS
    for words in commands_in(str(path.relative_to(ROOT)))
]


@pytest.mark.parametrize("words", PRINTED)
def test_printed_command_is_one_that_there_is(words):
    if words == ["--help"]:
        return
    group = Commands(installed_commands())
    command, words = group.get_command(click.Context(group), words[0]), words[1:]
    assert command is not None
    if isinstance(command, click.Group):
        command, words = command.commands[words[0]], words[1:]
    # Parses every word and runs nothing; an unknown option or a missing one raises.
    command.make_context("hansa", list(words))


def test_readme_shows_the_help_as_it_is():
    environment = {**os.environ, "COLUMNS": str(HELP_WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    script = "from hansa_common.cli import main; main()"
    told = subprocess.run(
        [sys.executable, "-c", script, "--help"], env=environment, check=True, capture_output=True, text=True
    ).stdout
    printed = [line.rstrip() for line in told.splitlines()]
    (block,) = blocks(text_of("README.md"), "text")
    how = f"the block in README.md is to hold what `COLUMNS={HELP_WIDTH} NO_COLOR=1 TERM=dumb hansa --help` prints"
    assert block.strip("\n") == "\n".join(printed).strip("\n"), how
    for name in installed_commands():
        assert f"`hansa {name}" in text_of("README.md") or f"\nhansa {name}" in text_of("README.md"), name


def test_readme_prints_what_make_does():
    makefile = text_of("Makefile")
    for line in ("pip install -e .", "pip install -e '.[dev]'", "hansa demo", "python -m pytest"):
        assert f"{line}\n" in text_of("README.md")
        # What runs the tests says more: how many at a time.
        assert re.search(rf"{re.escape(line)}( -.*)?\n", makefile), line
    for verb in re.findall(r"`?make (\w+)", text_of("README.md") + text_of("docs/coordinator.md")):
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE), verb


@pytest.mark.system
@pytest.mark.timeout(900)
def test_example_of_the_coordinators_guide_runs_as_printed(tmp_path):
    guide = text_of("docs/coordinator.md")
    (tables,) = blocks(guide, "python")
    (in_one_process, _) = blocks(section(guide, "## Try it on one machine"), "sh")
    subprocess.run([sys.executable, "-c", tables], cwd=tmp_path, check=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", in_one_process],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    left = {entry.name for entry in (tmp_path / "runs/simulated").iterdir()}
    texts = {"agreement.json", "agreement.toml", "attendance.json", "rounds.jsonl", "report.html", "metrics.json"}
    assert left == texts | {"model"}
    metrics = json.loads((tmp_path / "runs/simulated/metrics.json").read_text())
    assert (
        metrics["agreement_fingerprint"] == parse_agreement((tmp_path / "agreement.toml").read_text(), "it").fingerprint
    )
    told = section(text_of("docs/data.md"), "## Figures")
    documented = {key for row in rows(told) for key in re.findall(r"`([a-z_]+)`", row[0])}
    assert documented <= set(metrics)
    assert {"alder", "birch", "cedar"} == set(metrics["merchants"])
