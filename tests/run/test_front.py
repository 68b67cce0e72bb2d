import dataclasses

import matplotlib as mpl
import pytest

from autoprune.report.data import NetworkFacts
from autoprune.run.front import FrontPoint, ParetoFront
from autoprune.run.results import SearchResult
from autoprune.testing.profiles import made_up_facts


def point(trial, accuracy, latency_ms):
    return FrontPoint(
        trial=trial, accuracy=accuracy, loss=1 - accuracy, latency_ms=latency_ms, macs=10, params=20
    )


@pytest.fixture
def result(tmp_path):
    points = (point(3, 0.7, 2.0), point(1, 0.9, 6.0))
    return SearchResult(
        directory=tmp_path,
        points=points,
        best=point(5, 0.9, 7.0),
        dense=NetworkFacts(accuracy=0.95, loss=0.1, latency_ms=20.0, macs=99, params=99),
        budget_ms=8.0,
        device=made_up_facts(name="board <i>", device="a board <i>"),
        hypervolume=0.5,
        trials=7,
        failures={},
        stopped="done",
    )


def test_a_front_is_a_sequence_of_networks_and_a_table(result):
    front = result.front

    assert isinstance(front, ParetoFront)
    assert (len(front), front[0], list(front)) == (2, result.points[0], list(result.points))
    assert front[-1:] == result.points[1:]
    assert front["trial"].tolist() == [3, 1]
    assert front[["macs", "trial"]].to_numpy().tolist() == [[10, 3], [10, 1]]
    assert front.to_pandas().equals(result.to_pandas())
    assert str(front).split()[:4] == ["trial", "accuracy", "loss", "latency_ms"]


def test_a_notebook_shows_chart_and_table(result):
    html, front = (shown._repr_html_().replace("\xa0", " ") for shown in (result, result.front))

    assert "2.86\N{MULTIPLICATION SIGN} faster</strong> on a board &lt;i&gt;" in html
    assert "20.0 ms become 7.00 ms" in html
    assert "2 networks on the Pareto front" in front
    for shown in (html, front):
        assert "<i>" not in shown
        assert "<script" not in shown
        assert shown.count('class="mark front"') == 2
        assert shown.count('class="mark chosen"') == 1
        assert '<th>3</th><td class="number">70.00 %</td>' in shown
        # Its rules are for what is inside it alone.
        assert ":root" not in shown
        assert shown.index(".autoprune-front {") < shown.index("--paper")


def test_a_search_that_found_nothing_says_why(result):
    nothing = dataclasses.replace(result, points=(), best=None, unmet="all trials failed")

    assert "No network was found: all trials failed" in nothing._repr_html_()


def test_the_front_is_plotted_without_its_directory(result):
    with mpl.rc_context({"backend": "agg"}):
        ax = result.front.plot()

    front = next(box for box in ax.containers if "front" in box.get_label())
    assert front.lines[0].get_xydata().tolist() == [[2.0, 0.7], [6.0, 0.9]]
    mpl.pyplot.close(ax.figure)
