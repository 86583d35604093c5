"""Pictures: equal drawings give equal bytes, names are drawn as they are, and nobody else's look is changed."""

from __future__ import annotations

import matplotlib as mpl

from hansa_common.pictures import INK, png


def drawn(text: str, **style) -> bytes:
    return png((2.0, 1.0), lambda axes: axes.set_title(text), style or None)


def test_equal_drawings_give_equal_bytes():
    assert drawn("spent").startswith(b"\x89PNG")
    assert drawn("spent") == drawn("spent") != drawn("spend")
    assert b"Software" not in drawn("spent")


def test_dollar_signs_in_a_name_are_drawn_and_not_read_as_a_formula():
    # Read as one, this would be an error; and a pair of them would be gone.
    assert drawn(r"$\frac{shop$") != drawn("shop")
    assert drawn("$shop$") != drawn("shop")
    assert drawn("$shop$", **{"text.parse_math": True}) != drawn("$shop$")


def test_look_holds_while_a_picture_is_drawn_and_no_longer():
    before, seen = dict(mpl.rcParams), {}
    png((2.0, 1.0), lambda _: seen.update(mpl.rcParams), {"font.size": 9})
    assert (seen["text.color"], seen["font.size"]) == (INK, 9)
    assert dict(mpl.rcParams) == before
