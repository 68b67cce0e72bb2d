"""The figures of the documentation are drawn by their scripts, and show what those say."""

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "docs" / "figures"
NAMES = sorted(path.stem for path in FIGURES.glob("*.py") if path.stem != "drawing")


@pytest.fixture
def draw(monkeypatch):
    """What imports a script of docs/figures and draws it."""
    monkeypatch.syspath_prepend(FIGURES)
    yield lambda name: importlib.import_module(name).draw()
    for name in (*NAMES, "drawing"):
        sys.modules.pop(name, None)


def words(svg: str) -> set[str]:
    """Return the texts of a drawing; matplotlib writes each as a comment beside its outlines."""
    return set(re.findall(r"<!-- (.*?) -->", svg))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_figure_is_what_its_script_draws(name, draw, tmp_path):
    figure = draw(name)
    path = importlib.import_module("drawing").save(figure, name, tmp_path)
    drawn, kept = (p.read_text(encoding="utf-8") for p in (path, ROOT / f"docs/images/{name}.svg"))
    # Curves may differ in the last digits from machine to machine.
    assert words(drawn) == words(kept), f"run python docs/figures/{name}.py"
    assert drawn.count("<path") == kept.count("<path")


def test_every_figure_is_on_a_page():
    pages = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("docs/*.md"))
    for name in NAMES:
        assert f"images/{name}.svg" in pages


def test_latency_falls_in_steps_and_macs_in_a_line(draw):
    for axis in draw("staircase").axes:
        latency, macs = (line.get_ydata() for line in axis.get_lines())
        assert latency[-1] == macs[-1] == 1
        assert len(set(latency.round(9))) < len(set(macs.round(9))) == len(macs)


def test_projected_proposals_are_within_the_budget(draw):
    (axis,) = draw("projection").axes
    before, after, budget = (line.get_ydata() for line in axis.get_lines())
    assert max(after) <= budget[0] < max(before)
    kept = before <= budget[0]
    assert (after[kept] == before[kept]).all()
