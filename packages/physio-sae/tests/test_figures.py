"""Figures are whole SVG documents at the right places; tables hold no NaN."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from physio_sae.figures import Line, Scale, bars, histogram, lines
from physio_sae.leaderboard import markdown, plain, write_json

SVG = "{http://www.w3.org/2000/svg}"


def test_points_land_where_their_axes_say():
    svg = ElementTree.fromstring(lines([Line(name="a <b>", x=[0, 1, 2], y=[0, 1, 4], marked=True, labels=["0", "1", "2"])], title="t & u", x="x", y="y"))
    at = [(float(c.get("cx")), float(c.get("cy"))) for c in svg.iter(f"{SVG}circle")]
    assert len(at) == 3 and at[1][0] - at[0][0] == pytest.approx(at[2][0] - at[1][0], abs=0.2)
    assert (at[0][1] - at[1][1]) * 4 == pytest.approx(at[0][1] - at[2][1], abs=0.5)


def test_a_logarithmic_axis_spaces_doublings_evenly():
    scale = Scale(100, 10000, 0, 100, log=True)
    assert scale(1000) == pytest.approx(50) and 1000 in scale.ticks()


@pytest.mark.parametrize("low,high", [(0, 1), (-3, 8), (0.001, 0.0017), (1e5, 3e6)])
def test_ticks_are_round_and_inside(low, high):
    ticks = Scale(low, high, 0, 100).ticks()
    assert 3 <= len(ticks) <= 8 and low <= min(ticks) and max(ticks) <= high * (1 + 1e-9)


def test_undefined_values_leave_gaps_and_say_so():
    drawn = bars(["a", "b"], [0.5, None], [(0.4, 0.6), None], title="ablations", x="EV")
    assert "not defined" in drawn and drawn.count('<line class="whisker"') == 1
    assert "nothing to draw" in lines([Line(name="a", x=[np.nan], y=[1.0])], title="t", x="x", y="y")
    assert "b (none)" in lines([Line(name="a", x=[0, 1], y=[1, 2]), Line(name="b", x=[], y=[])], title="t", x="x", y="y")
    for svg in (drawn, histogram([1, 2, np.nan, 2], title="h", x="x"), histogram([], title="h", x="x")):
        assert "nan" not in svg.lower() and ElementTree.fromstring(svg).tag == f"{SVG}svg"


def test_a_band_is_one_polygon_around_its_line():
    svg = lines([Line(name="a", x=[0, 1], y=[1, 2], band=np.array([[0.5, 1.5], [1.5, 2.5]]))], title="t", x="x", y="y")
    polygon = next(ElementTree.fromstring(svg).iter(f"{SVG}polygon"))
    assert len(polygon.get("points").split()) == 4


def test_the_leaderboard_marks_the_best_and_leaves_what_is_undefined_empty(tmp_path):
    rows = [
        {"name": "a", "k": 256, "l0": 18.0, "ev": 0.6, "ev_interval": (0.5, 0.7), "lag1": None, "front": True},
        {"name": "b", "k": 256, "l0": 20.0, "ev": 0.7, "ev_interval": (0.6, 0.8), "lag1": 0.2, "front": False},
    ]
    table = markdown(rows, notes=["a note"])
    first, second = table.splitlines()[2:4]
    assert first.startswith("| b |") and "**0.700** [0.600, 0.800]" in first and "**18.0**" in second and "nan" not in table and table.endswith("- a note\n")
    assert "dead" not in table
    path = write_json(tmp_path / "x" / "board.json", {"rows": rows, "odd": np.float32(np.nan), "codes": np.arange(2)})
    assert json.loads(path.read_text())["odd"] is None and plain(np.float64(np.inf)) is None and json.loads(path.read_text())["codes"] == [0, 1]
