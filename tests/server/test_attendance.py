"""Who came to a run is noted as it was heard, for names of the roster only, and survives a resumed run."""

from __future__ import annotations

import pytest

from hansa_common.errors import CoordinatorError
from hansa_server.attendance import Attendance, Attendee, read_attendance
from hansa_server.run_events import MerchantIntroduced, NodeRefused
from hansa_server.run_folder import ATTENDANCE

ROSTER = ("alder", "birch")
# Flower's ids have 64 bits.
NODE = 2**64 - 1


def test_introduced_merchant_approved_and_refusing_one_did_not(tmp_path):
    attendance = Attendance(tmp_path, ROSTER)
    attendance.note(MerchantIntroduced(NODE, "alder", "0.1.0"))
    attendance.note(NodeRefused(7, "agreement-mismatch", "birch"))
    assert read_attendance(tmp_path) == {"alder": Attendee(NODE, "0.1.0", True), "birch": Attendee(7, "", False)}


def test_merchant_that_comes_back_is_noted_with_its_new_node_and_the_others_stay(tmp_path):
    for number, name in ((1, "alder"), (2, "birch"), (3, "alder")):
        Attendance(tmp_path, ROSTER).note(MerchantIntroduced(number, name, "0.1.0"))
    assert {name: attendee.node_id for name, attendee in read_attendance(tmp_path).items()} == {"alder": 3, "birch": 2}


@pytest.mark.parametrize(
    "event",
    [
        MerchantIntroduced(1, "mallory", "0.1.0"),
        NodeRefused(1, "agreement-mismatch", "mallory"),
        NodeRefused(1, "agreement-mismatch"),
        NodeRefused(1, "busy", "alder"),
    ],
)
def test_strangers_and_what_passes_are_not_noted(tmp_path, event):
    Attendance(tmp_path, ROSTER).note(event)
    assert not (tmp_path / ATTENDANCE).exists()
    assert read_attendance(tmp_path) == {}


def test_without_a_roster_every_name_is_noted(tmp_path):
    Attendance(tmp_path, ()).note(MerchantIntroduced(1, "anyone", "0.1.0"))
    assert list(read_attendance(tmp_path)) == ["anyone"]


@pytest.mark.parametrize("content", ["", "[]", '{"alder": 3}', '{"alder": {"node": 1}}'])
def test_damaged_file_is_told_by_name(tmp_path, content):
    (tmp_path / ATTENDANCE).write_text(content)
    with pytest.raises(CoordinatorError, match=ATTENDANCE):
        read_attendance(tmp_path)


def test_run_tells_whose_every_node_is(federation, tmp_path):
    run = federation()
    run.run()
    attendance = Attendance(tmp_path, run.agreement.roster)
    for event in run.events:
        attendance.note(event)
    told = read_attendance(tmp_path)
    assert {name: attendee.node_id for name, attendee in told.items()} == run.nodes
    assert all(attendee.has_approved and attendee.version for attendee in told.values())
