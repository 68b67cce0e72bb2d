from __future__ import annotations

import dataclasses

import pytest

from autoprune.errors import RunError
from autoprune.report.compare import render_comparison, write_comparison
from autoprune.report.data import RunFacts
from autoprune.testing import browser as browsers


@pytest.fixture
def other(data):
    """The same networks on another board, twice as fast."""
    profile = dataclasses.replace(data.profile, name="orin")
    table = data.trials.assign(latency_ms=data.trials["latency_ms"] / 2)
    return dataclasses.replace(
        data,
        profile=profile,
        trials=table,
        dense=dataclasses.replace(data.dense, latency_ms=8.0),
        budget_ms=None,
        run=RunFacts(settings={"sampler": "tpe", "space": {"minimum": 8}}, versions={}, seed=1),
    )


def test_runs_are_beside_each_other(data, other):
    page = render_comparison({"nano": data, "orin <b>": other}).replace("\xa0", " ")

    assert page.count("<b>") == 0
    assert "orin &lt;b&gt;" in page
    for value in ("8.00 ms ± 10 %", "4.00 ms ± 10 %", "89.00 %", "66.00 %"):
        assert f'<td class="number">{value}</td>' in page
    assert '<th scope="row">sampler</th><td>additive</td><td>tpe</td>' in page
    assert "space.minimum" not in page


def test_devices_have_charts_of_their_own_and_one_together(data, other):
    one = render_comparison({"a": data, "b": data})
    two = render_comparison({"a": data, "b": other})

    assert one.count('class="plot tall"') == 1
    assert two.count('class="plot tall"') == 3
    # Relative to their unpruned networks the two are the same, and lie on each other.
    together = two[two.rindex("Fronts of 2 runs") :]
    first, second = (
        together.split(f'class="{kind}" d="')[1].split('"')[0] for kind in ("run1", "run2")
    )
    assert first == second


def test_a_run_without_a_network_can_be_compared(data, empty):
    assert "no network" in render_comparison({"a": data, "b": empty})


def test_one_run_or_too_many_are_refused(data):
    with pytest.raises(RunError, match="2 to 12 runs, got 1"):
        render_comparison({"a": data})
    with pytest.raises(RunError, match="got 13"):
        render_comparison({str(i): data for i in range(13)})


@pytest.mark.skipif(bool(browsers.missing()), reason=browsers.missing() or "not skipped")
def test_the_page_is_sound_and_accessible(data, other, tmp_path):
    file = tmp_path / "comparison.html"
    write_comparison({"a": data, "b": other}, file)
    with browsers.chromium() as browser:
        for width, scheme in ((1280, "light"), (390, "dark")):
            with browsers.opened(browser, file, width=width, scheme=scheme) as opened:
                assert opened.violations() == []
                assert opened.console == []
                assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
