"""Choices of compression, made up: which is chosen, what is tried next, what is said, shown and left. Choices that are
really made are in tests/system/test_compress_command.py."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from hansa_common.agreement import validate_agreement
from hansa_common.bootstrap import Interval
from hansa_common.errors import AgreementError, UsageError
from hansa_server.compression import Compressed, CompressionReport
from hansa_server.finishing import Finished
from hansa_server.run_events import CandidateJudged, CompressionStarted, RoundFinished
from hansa_server.run_folder import FinishedRun
from hansa_simulations.choices import (
    Choice,
    Limits,
    least_lossy,
    next_to_try,
    smallest_allowed,
    with_compression,
    with_search,
)
from hansa_simulations.choices_display import ChoicesDisplay, print_choices
from hansa_simulations.choices_figure import choices_png
from hansa_simulations.choices_files import CHOICES, Choices, leave, out_folder
from hansa_simulations.compress_command import parse_sparsities

LIMITS = Limits(max_loss=0.003, pruning_rounds=4)
AGREEMENT = validate_agreement(
    {
        "task": "fraud",
        "label": {"column": "y"},
        "features": [{"kind": "boolean", "name": "x"}],
        "model": {"hidden": [4]},
        "compression": {"range_quantile": 0.99, "max_merchant_pr_auc_loss": 0.2},
    },
    "the test",
)
METRICS = {"run_id": "r", "agreement_fingerprint": "f", "federated": {"roc_auc": 0.9, "pr_auc": 0.6}}


def choice(sparsity, loss=0.001, gzip_bytes=None, asked=True, max_loss=0.003):
    """A made one; it is refused where it loses more than max_loss. No loss: nothing came of it."""
    size = round(2000 * (1 - sparsity)) + 100 if gzip_bytes is None else gzip_bytes
    report = CompressionReport({}, {}, 10, 0.0, 0.0, 3000, size, 9000, 9000, sparsity)
    made = None if loss is None else Compressed(b"f", b"i", report)
    refusal = "the child ended with status 1" if loss is None else "" if loss <= max_loss else "it loses too much"
    finished = Finished(refusal, np.zeros(1, np.float32), compressed=made)
    known = None if loss is None else Interval(loss, loss - 0.002, loss + 0.002)
    control = Interval(0.0005, -0.001, 0.002) if sparsity and loss is not None else None
    areas = {"roc_auc": 0.9, "pr_auc": 0.6}
    found = {} if loss is None else {"federated": areas, "compressed": {**areas, "pr_auc": 0.6 - loss}}
    return Choice(sparsity, asked, AGREEMENT, finished, known, control, found, {})


def choices(*tried):
    return Choices(FinishedRun(AGREEMENT, METRICS, None, None, None), LIMITS, tried)


def searched(carried, asked, step=0.0):
    """The search over data that carry a sparsity and no more."""
    made = []

    def try_one(sparsity, is_asked):
        made.append((sparsity, is_asked))
        return choice(sparsity, 0.001 if sparsity <= carried + 1e-9 else 0.01, asked=is_asked)

    return with_search(try_one, asked), made


def test_int8_alone_comes_first_and_nothing_is_searched_where_all_that_was_asked_is_carried():
    found, made = searched(0.8, [0.8, 0.5])
    assert made == [(0.0, True), (0.5, True), (0.8, True)]
    assert [c.sparsity for c in found] == [0.0, 0.5, 0.8]


@pytest.mark.parametrize("carried", [step / 20 for step in range(16)])
@pytest.mark.parametrize("asked", [[0.8], [0.5, 0.8], [0.33, 0.8]])
def test_where_the_highest_is_not_carried_the_highest_that_is_is_found_to_a_step(carried, asked):
    found, made = searched(carried, asked)
    highest = max(c.sparsity for c in found if c.is_allowed)
    assert carried - 0.05 < highest <= carried + 1e-9
    assert len(made) == len({sparsity for sparsity, _ in made}) <= 1 + len(asked) + 4
    assert all(c.asked == (c.sparsity in {0.0, *asked}) for c in found)


def test_nothing_is_searched_where_not_even_int8_alone_is_allowed():
    _, made = searched(-1.0, [0.5, 0.8])
    assert made == [(0.0, True), (0.5, True), (0.8, True)]
    assert next_to_try({0.0: False, 0.8: False}) is None


def test_smallest_is_chosen_of_those_allowed_and_of_equal_ones_the_one_that_loses_least():
    none, half, most = choice(0.0), choice(0.5, 0.002), choice(0.8, 0.01)
    assert smallest_allowed([none, half, most]) is half
    assert smallest_allowed([choice(0.0, 0.01), most]) is None
    twin = choice(0.6, -0.001, gzip_bytes=half.report.gzip_bytes)
    assert smallest_allowed([half, twin]) is twin
    assert least_lossy([none, half, most]) is none
    assert least_lossy([choice(0.0, None)]) is None


def test_verdict_names_the_smallest_with_its_size_and_both_losses():
    told = choices(choice(0.0), choice(0.8, 0.002)).verdict
    assert told == (
        "The smallest choice within a loss of 0.003 is 80 % zeros: 0.5 KB after gzip, PR-AUC -0.0020 on validation "
        "rows, -0.0020 on test rows."
    )


def test_verdict_says_what_the_data_carry_where_it_is_less_than_was_asked():
    tried = choices(choice(0.0), choice(0.5, 0.002), choice(0.65, 0.002, asked=False), choice(0.8, 0.01))
    assert tried.verdict.startswith(
        "The data do not carry 80 % zeros within a loss of 0.003; what they carry is 65 % zeros. The smallest choice"
    )
    assert tried.to_json()["carried"] == tried.to_json()["chosen"] == 0.65


def test_verdict_names_the_best_there_is_where_none_is_allowed():
    tried = choices(choice(0.0, 0.004), choice(0.8, 0.01))
    assert "the one that loses least is int8 alone" in tried.verdict
    assert tried.verdict.endswith("The float model remains.")
    told = tried.to_json()
    assert (told["chosen"], told["carried"], told["least_lossy"]) == (None, None, 0.0)
    assert "ended with status 1" in choices(choice(0.0, None)).verdict


def test_agreement_of_a_choice_differs_from_the_runs_in_its_compression_only():
    chosen = with_compression(AGREEMENT, 0.8, Limits(0.01, 2))
    assert chosen.model_dump(exclude={"compression"}) == AGREEMENT.model_dump(exclude={"compression"})
    asked = {"format": "int8", "sparsity": 0.8, "pruning_rounds": 2, "max_pr_auc_loss": 0.01}
    assert chosen.compression.model_dump() == {**AGREEMENT.compression.model_dump(), **asked}
    plain = validate_agreement({**AGREEMENT.model_dump(mode="json"), "model": {"hidden": []}}, "it")
    with pytest.raises(AgreementError, match="hidden layers"):
        with_compression(plain, 0.8, LIMITS)


@pytest.mark.parametrize(
    ("text", "word"), [("80", "80 is not a share"), ("0.5,most", "'most'"), ("", "''"), ("-1", "-1")]
)
def test_share_that_cannot_be_is_refused_with_one_that_can(text, word):
    with pytest.raises(UsageError, match=word):
        parse_sparsities(text)


def test_table_tells_every_choice_and_marks_the_chosen_and_the_refused():
    out = io.StringIO()
    tried = choices(choice(0.0), choice(0.5, 0.002, asked=False), choice(0.8, 0.01))
    print_choices(tried, Console(file=out, width=200))
    lines = out.getvalue().splitlines()
    assert [line for line in lines if " 0 % " in line and "within" in line]
    assert [line for line in lines if " 50 % " in line and "chosen, searched" in line]
    assert [line for line in lines if " 80 % " in line and "refused" in line]
    assert lines[-1] == tried.verdict


def test_progress_in_a_pipe_is_a_line_a_choice_and_a_refusal_is_a_warning():
    out = io.StringIO()
    with ChoicesDisplay(2, 4, Console(file=out, width=100)) as display:
        for made, refusal in ((choice(0.0), ""), (choice(0.8, 0.01), "it loses too much")):
            display.begin(made.sparsity)
            display.show(RoundFinished(1, 0, 1.0, (), {}, True, None, None, 0, 0, "prune"))
            display.show(CompressionStarted())
            display.show(CandidateJudged(refusal, 0.01, 10))
            display.end(made)
    assert out.getvalue().splitlines() == [
        "int8 alone: 0.0010 (-0.0010 to 0.0030) of PR-AUC lost, allowed",
        "80 % zeros: the small model is not released: it loses too much; the float model remains",
    ]


@pytest.mark.parametrize("tried", [(choice(0.0), choice(0.8, 0.01)), (choice(0.0, None),), (choice(0.8),)])
def test_picture_is_the_same_for_the_same_choices_whatever_came_of_them(tried):
    first, second = (choices_png(tried, smallest_allowed(tried), 0.003) for _ in range(2))
    assert first.startswith(b"\x89PNG")
    assert first == second


def test_folder_with_anything_but_choices_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="other things"):
        out_folder(tmp_path).check_free()
    with pytest.raises(UsageError, match="other things"):
        leave(choices(choice(0.0, 0.01)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UsageError, match="other things"):
        out_folder(tmp_path / "thesis.tex").check_free()


def test_choices_of_which_none_is_allowed_leave_no_bundle_and_are_written_over(tmp_path):
    tried = choices(choice(0.0, 0.01))
    for _ in range(2):
        leave(tried, tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["choices.json", "choices.png"]
    assert json.loads((tmp_path / "out" / CHOICES).read_bytes()) == tried.to_json()
