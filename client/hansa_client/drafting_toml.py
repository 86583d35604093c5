"""How a drafted agreement is written: TOML with a comment above whatever a person should look at.

`CHECK` stands above what is in the draft, `LEFT OUT` above a feature that is commented out; take the '#' away from
its lines and it is in.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Final

from hansa_client.suspicions import Finding
from hansa_common.schema import CategoricalFeature, Feature, TimestampFeature

MAX_LINE: Final = 118
_ALWAYS_SHOWN: Final = frozenset({"name", "kind", "low", "high", "scaling", "encoding", "unit", "missing"})

_OPENING: Final = """\
# A draft, made by `hansa agree` from one table. Every merchant and the coordinator use the same file, word for word.
# Read what is marked CHECK and LEFT OUT and decide. The comments tell counts of the table: take them out before you
# pass the file on.
#
# missing = "refuse" stands where this table has a value in every row; where others may not, say "flag".
# A number outside low and high is clipped to them. A text outside the vocabulary is "unknown" to the model.
"""
_DEFAULTS_NOTE: Final = """\
# [model], [training] and [privacy] are the task's defaults. What is written here goes before them, for example:
# [training]
# rounds = 30
"""
_HASH_NOTE: Final = """\
# Some texts are hashed with a key that the merchants share and the coordinator does not have: 64 hexadecimal digits
# in a file. The agreement names it by the SHA-256 of its 32 bytes:
# [privacy]
# hash_key_id = "..."
"""


def render(
    *,
    name: str,
    task: str,
    label: str,
    positive: str,
    roster: tuple[str, ...],
    table_findings: Sequence[Finding],
    features: Sequence[tuple[Feature | None, Sequence[Finding]]],
) -> str:
    """Write the draft; a feature None could not even be declared, its findings say why."""
    active = [feature for feature, findings in features if feature and not any(f.leaves_out for f in findings)]
    of_label = [finding for finding in table_findings if finding.column is not None]
    of_rows = [finding for finding in table_findings if finding.column is None]
    parts = [
        _OPENING,
        "\n".join([_pair("name", name), _pair("task", task), _pair("seed", 0), *_roster_lines(roster)]) + "\n",
        "\n".join([*_notes(of_label), "[label]", _pair("column", label), _pair("positive", positive)]) + "\n",
        "\n".join([*_notes(of_rows), "[data]", _pair("duplicates", "keep"), *_split_lines(active)]) + "\n",
        *(["[cohort]\nmin_merchants = 1\n"] if len(roster) == 1 else []),
        _DEFAULTS_NOTE,
        *([_HASH_NOTE] if any(isinstance(f, CategoricalFeature) and f.hash_buckets for f in active) else []),
        *("\n".join(_feature_lines(feature, findings)) + "\n" for feature, findings in features),
    ]
    return "\n".join(parts)


def _roster_lines(roster: tuple[str, ...]) -> list[str]:
    if roster:
        return [_pair("roster", roster)]
    return ["# The merchants' names. Left empty, whoever comes takes part.", "roster = []"]


def _split_lines(active: Sequence[Feature]) -> Iterator[str]:
    yield _pair("split", "stratified")
    for feature in active:
        if isinstance(feature, TimestampFeature):
            yield "# A model serves rows that come after those it learned from. To judge it on the latest ones:"
            yield f"# split = {_value('time')} and {_pair('time_column', feature.name)}"
            return


def _feature_lines(feature: Feature | None, findings: Sequence[Finding]) -> Iterator[str]:
    yield from _notes(findings)
    if feature is None:
        return
    mark = "#" if any(finding.leaves_out for finding in findings) else ""
    yield f"{mark}[[features]]"
    values = feature.model_dump()
    for key, value in {"name": feature.name, **values}.items():
        is_default = value == type(feature).model_fields[key].default
        if key in _ALWAYS_SHOWN or not is_default:
            yield from (mark + line for line in _pair(key, value).splitlines())


def _notes(findings: Sequence[Finding]) -> Iterator[str]:
    for finding in findings:
        verb = "LEFT OUT" if finding.leaves_out else "CHECK"
        about = "" if finding.column is None else f"{finding.column!r}: "
        text = f"{verb} ({finding.code}): {about}{finding.message}"
        printable = "".join(letter if letter.isprintable() else "?" for letter in text)
        yield from textwrap.wrap(printable, MAX_LINE, initial_indent="# ", subsequent_indent="#   ")


def _pair(key: str, value: Any) -> str:
    line = f"{key} = {_value(value)}"
    if not isinstance(value, tuple) or len(line) <= MAX_LINE:
        return line
    return "\n".join([f"{key} = [", *_wrapped([f"{_value(entry)}," for entry in value]), "]"])


def _wrapped(entries: Sequence[str]) -> Iterator[str]:
    line = " "
    for entry in entries:
        if len(line) + len(entry) >= MAX_LINE and line.strip():
            yield line
            line = " "
        line += f" {entry}"
    yield line


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_value(entry) for entry in value)}]"
    # JSON's strings and numbers are TOML's too, but for one character.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
