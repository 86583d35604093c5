"""A certificate in two places at once: told where it is one, and not where a merchant moved."""

from datetime import UTC, datetime, timedelta

import pytest

from hansa_common.errors import CoordinatorError
from hansa_server.gateway_sightings import NAME, WINDOW_SECONDS, Sightings, read_two_places


class Door:
    """Sightings on a clock that the test moves, and what was told."""

    def __init__(self, state):
        self.seconds = 0.0
        self.told = []
        self.sightings = Sightings(state, lambda: self.seconds, lambda subject, line: self.told.append((subject, line)))

    def sees(self, *addresses, merchant="alpha", seconds=1.0):
        for address in addresses:
            self.seconds += seconds
            self.sightings.see(merchant, address)


@pytest.fixture
def door(tmp_path):
    return Door(tmp_path)


def test_a_certificate_that_comes_from_here_and_there_and_here_again_is_told_and_noted(door, tmp_path):
    door.sees("10.0.0.1", "10.0.0.9", "10.0.0.1")
    ((subject, line),) = door.told
    assert subject.startswith("alpha: ")
    assert "10.0.0.9" in line
    assert "--revoke" in line
    assert datetime.now(UTC) - read_two_places(tmp_path)["alpha"] < timedelta(minutes=1)


def test_a_merchant_that_moves_is_not_suspected(door, tmp_path):
    door.sees(*["10.0.0.1"] * 5, *["10.0.0.2"] * 5, *["10.0.0.3"] * 5)
    assert not door.told
    assert read_two_places(tmp_path) == {}


def test_two_merchants_at_two_addresses_are_no_copies(door):
    for _ in range(3):
        door.sees("10.0.0.1", merchant="alpha")
        door.sees("10.0.0.2", merchant="beta")
    assert not door.told


def test_who_comes_back_after_a_long_time_has_moved_back(door):
    door.sees("10.0.0.1", "10.0.0.2")
    door.sees("10.0.0.1", seconds=WINDOW_SECONDS + 1)
    assert not door.told


def test_copies_in_many_places_cost_a_bounded_part_of_memory(door):
    door.sees(*(f"10.0.{i // 250}.{i % 250}" for i in range(5000)))
    assert len(door.sightings._seen["alpha"]) <= 17


def test_a_damaged_note_is_told_with_what_to_do(tmp_path):
    (tmp_path / NAME).write_text('{"alpha": 3}')
    with pytest.raises(CoordinatorError, match="remove it"):
        read_two_places(tmp_path)
