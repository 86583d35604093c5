"""The report's part on the small model: what was released and what was refused, pruning beside its control, and nothing
where none was to be made."""

from __future__ import annotations

import copy
import re

import pytest

from hansa_server.report import render_report
from hansa_server.report_small_model import merchant_table, notice, sentences, sizes, step_table, steps

REASON = "validation PR-AUC would fall by 0.0051, allowed are 0.003"
FOUND = {"bytes": 22_504, "gzip_bytes": 7_913, "float32_bytes": 75_780, "sparsity": 0.7973}


def areas(pr_auc):
    return {"pr_auc": pr_auc, "roc_auc": 0.9}


@pytest.fixture
def small_run(finished_run):
    """A run with a small model, pruned or not, released or not."""

    def made(*, pruned=True, refusal=""):
        compression = {
            "released": not refusal,
            "reason": refusal,
            "validation": {"original": areas(0.6), "candidate": areas(0.595), "refused_by": []},
            "found": FOUND,
        }
        if pruned:
            compression["pruning"] = {
                "sparsity": 0.8, "rounds": 4, "pruned": True, "reason": "",
                "validation": {"pruned": areas(0.598), "control": areas(0.597)},
                "test": {"pruned": areas(0.51), "control": areas(0.52)},
            }  # fmt: skip
        run = {**copy.deepcopy(finished_run), "compression": compression}
        if not refusal:
            run |= {"compressed": areas(0.5), "bundle": FOUND}
            for values in run["merchants"].values():
                values["compressed"] = areas(values["federated"]["pr_auc"] - 0.01)
        return run

    return made


def part_of(page):
    found = re.search(r'<section id="small".*?</section>', page, re.DOTALL)
    return found[0] if found else ""


def test_run_without_a_small_model_has_no_such_part(finished_run):
    page = render_report(finished_run)
    assert part_of(page) == ""
    assert 'href="#small"' not in page


def test_sizes_zeros_and_quality_are_said_in_words(small_run):
    assert sentences(small_run()) == (
        "The model to score with is a file of 22.5 KB, 7.9 KB after gzip; its weights as float32 take 75.8 KB.",
        (
            "80\N{NO-BREAK SPACE}% of the weights of its hidden layers were to be zero; counted in the finished file, "
            "79.7\N{NO-BREAK SPACE}% of all dense weights are."
        ),
        f"On test rows its PR-AUC is 0.500, that of the model as trained {small_run()['federated']['pr_auc']:.3f}.",
    )
    assert notice(small_run()) is None


def test_model_that_was_not_pruned_says_so(small_run):
    assert "It was not pruned: the agreement asks for no zeros." in sentences(small_run(pruned=False))
    run = small_run()
    run["compression"]["pruning"] = {"sparsity": 0.8, "pruned": False, "reason": "none of 8 rounds had 2 replies"}
    assert "Nothing of it was pruned: none of 8 rounds had 2 replies." in sentences(run)


def test_refused_model_is_told_first_with_its_reason_and_that_the_float_one_remains(small_run):
    run = small_run(refusal=REASON)
    part = part_of(render_report(run))
    assert REASON in part
    assert "The float model remains" in part
    assert part.index(REASON) < part.index("would be a file of")
    assert "On test rows" not in part
    assert merchant_table(run) is None


def test_every_step_stands_in_the_table_and_its_change_in_the_figure(small_run):
    run = small_run()
    kept = run["federated"]["pr_auc"]
    figures = {row[0].split("\n")[0]: row[1:3] for row in step_table(run).rows}
    assert figures == {
        "As trained": ("0.600", f"{kept:.3f}"),
        "Control": ("0.597", "0.520"),
        "Pruned": ("0.598", "0.510"),
        "Small": ("0.595", "0.500"),
    }
    changes = {step.name: (step.validation, step.test) for step in steps(run, "pr_auc")}
    assert changes == {
        "Control": (pytest.approx(-0.003), pytest.approx(0.52 - kept)),
        "Pruned": (pytest.approx(-0.002), pytest.approx(0.51 - kept)),
        "Small": (pytest.approx(-0.005), pytest.approx(0.5 - kept)),
    }


def test_control_is_only_spoken_of_where_there_is_one(small_run):
    assert [step.name for step in steps(small_run(pruned=False), "pr_auc")] == ["Small"]
    assert "What the control lost" not in part_of(render_report(small_run(pruned=False)))
    assert "What the control lost" in part_of(render_report(small_run()))


def test_every_merchant_and_all_together_have_both_figures_and_their_difference(small_run):
    run = small_run()
    table = merchant_table(run)
    assert [row[0] for row in table.rows] == [*sorted(run["merchants"]), "All rows at once"]
    for row in table.rows[:-1]:
        assert row[3] == "\N{MINUS SIGN}0.010"
    assert table.rows[-1][1:3] == (f"{run['federated']['pr_auc']:.3f}", "0.500")


def test_figures_draw_the_sizes_and_are_told_in_words(small_run):
    run = small_run()
    assert [(size.name, size.num_bytes) for size in sizes(run)] == [
        ("float32", 75_780), ("int8 file", 22_504), ("after gzip", 7_913),
    ]  # fmt: skip
    part = part_of(render_report(run))
    assert 'aria-label="Size: float32 75.8 KB; int8 file 22.5 KB; after gzip 7.9 KB."' in part
    assert "Control \N{MINUS SIGN}0.003 on validation rows" in part
    assert part.count("<svg") == 2


def test_names_and_reasons_are_escaped(small_run):
    page = part_of(render_report(small_run(refusal="<script>alert(1)</script>")))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("missing", ["validation", "found", "pruning", "released", "reason"])
def test_piece_that_is_not_there_is_left_out(small_run, missing):
    for run in (small_run(), small_run(refusal=REASON)):
        del run["compression"][missing]
        assert part_of(render_report(run))


def test_withheld_figures_are_dashes(small_run):
    run = small_run()
    run["compressed"] = {"roc_auc": None, "pr_auc": None}
    run["compression"]["validation"] = {"original": None, "candidate": None, "refused_by": []}
    run["compression"]["pruning"]["test"] = {"pruned": None, "control": None}
    for values in run["merchants"].values():
        values["compressed"] = {"roc_auc": None, "pr_auc": None}
    part = part_of(render_report(run))
    assert "None" not in part
    assert "nan" not in part
    assert merchant_table(run) is None
