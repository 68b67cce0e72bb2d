from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import json
import re

import pytest

from autoprune.report.data import (
    ChosenNetwork,
    Command,
    GroupWidth,
    KernelTime,
    ReportData,
    RunFacts,
    trial_table,
)
from autoprune.report.html import render, write_report

#: Elements that HTML does not close.
VOID = {"meta", "link", "img", "br", "hr", "input"}
PAYLOAD = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}&lt;"


class Page(html.parser.HTMLParser):
    """Elements with their attributes, the text, and whether every element was closed."""

    def __init__(self, content):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.texts, self.broken = [], [], [], False
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag == "wbr":  # within a word
            self.broken = True
            return
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.broken:
            text, self.broken = self.texts.pop()[1] + text, False
        self.texts.append((self.open[-1] if self.open else "", text))

    @property
    def text(self):
        shown = " ".join(text for tag, text in self.texts if tag not in ("style", "script"))
        return re.sub(r"\s+", " ", shown.replace("\N{NO-BREAK SPACE}", " "))

    def inside(self, wanted):
        return "".join(text for tag, text in self.texts if tag == wanted)

    @property
    def networks(self):
        """What the element with data holds, and that it is all there is besides the script."""
        kinds = [attributes.get("type") for attributes in self.all("script")]
        assert kinds == ["application/json", None]
        return next(text for tag, text in self.texts if tag == "script")

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def hostile(data: ReportData):
    """A run in which every string is an attack."""
    row = {"number": 0, "status": PAYLOAD, "reason": PAYLOAD}
    profile = dataclasses.replace(
        data.profile,
        name=PAYLOAD,
        device=PAYLOAD,
        runtime=PAYLOAD,
        precision=PAYLOAD,
        error_text=PAYLOAD,
        provenance=(PAYLOAD,),
    )
    kernel = KernelTime(name=PAYLOAD, kind=PAYLOAD, dense_ms=1.0, chosen_ms=0.5)
    rows = data.trials.to_dict("records")[:3]
    return dataclasses.replace(
        data,
        model_name=PAYLOAD,
        profile=profile,
        trials=trial_table([*rows, row]),
        hypervolume=(0.1,) * 4,
        chosen=ChosenNetwork(
            trial=2,
            widths=(GroupWidth(PAYLOAD, 1, 2),),
            removed_blocks=(PAYLOAD,),
            kernels=(kernel,),
        ),
        run=RunFacts(
            settings={PAYLOAD: {PAYLOAD: PAYLOAD}, "list": [PAYLOAD]},
            versions={PAYLOAD: PAYLOAD},
            seed=1,
            commands=(Command(PAYLOAD, PAYLOAD),),
        ),
    )


def test_every_string_is_escaped(hostile):
    page = Page(render(hostile))

    assert page.all("img") == []
    assert not [name for _, attributes in page.elements for name in attributes if name[:2] == "on"]
    assert "alert" not in page.inside("style")
    # Neither an end tag nor a comment can start without this character.
    assert "<" not in page.networks
    assert len(json.loads(page.networks)) == 2
    # Shown as it is, wherever it stands: title, heading, profile, reason, settings, command, ...
    assert page.text.count(PAYLOAD) >= 15


def test_the_page_fetches_nothing_and_runs_only_its_own_scripts(data):
    content = render(data)
    page = Page(content)

    fetching = {"src", "srcset", "action", "style", "data", "poster"}
    assert not [a for _, a in page.elements if fetching & set(a)]
    assert {"link", "iframe", "object", "embed", "base"}.isdisjoint(tag for tag, _ in page.elements)
    assert all(a["href"].startswith("#") for a in page.all("a"))
    assert not re.search(r"@import|url\(", page.inside("style"))
    (policy,) = [
        a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    ]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    for element in ("style", "script"):
        inside = re.findall(rf"<{element}>(.*?)</{element}>", content, re.DOTALL)
        digests = [hashlib.sha256(text.encode()).digest() for text in inside]
        hashes = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
        assert directives[f"{element}-src"].split() == hashes


def test_links_lead_to_sections_and_labels_to_headings(data, empty):
    for page in (Page(render(data)), Page(render(empty))):
        ids = [a["id"] for _, a in page.elements if "id" in a]
        assert len(ids) == len(set(ids))
        targets = {a["href"][1:] for a in page.all("a")}
        labels = {a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a}
        assert targets | labels <= set(ids)


def test_figures_and_tables_can_be_read_without_seeing_them(data):
    page = Page(render(data))

    assert {"header", "main", "nav", "footer"} <= {tag for tag, _ in page.elements}
    assert page.all("html")[0]["lang"] == "en"
    assert all(a.get("scope") in ("row", "col") for a in page.all("th"))
    plots = [a for a in page.all("svg") if a.get("class", "").startswith("plot ")]
    assert len(plots) == len(page.all("figcaption")) == 2
    assert all("table" in a["aria-label"].lower() for a in plots)
    marks = [a for a in page.all("g") if a.get("class", "").startswith("mark ")]
    assert all(a["aria-label"] and a["role"] in ("img", "radio") for a in marks)
    assert [a["tabindex"] for a in marks if a["role"] == "radio"] == ["-1", "0", "-1"]


def test_each_figure_has_a_table_with_its_values(data):
    text = Page(render(data)).text

    assert "2 chosen 90.00 % 89.00 % 0.100 8.00 ms" in text
    assert "conv1 16 of 64" in text
    assert "conv14 conv 15.0 7.00" in text
    assert "uniform pruning 75.00 %" in text
    assert "conv1 0.50 1.0 40.0 %" in text
    assert "layer3.1 block 60.0 %" in text
    # Trial 3 failed and trial 1 raised nothing.
    assert "0 1 60.00 % 2 3 65.00 % 4 5 66.00 %" in text


def test_the_headline_gives_the_chosen_network_beside_the_unpruned_one(data):
    text = Page(render(data)).text

    assert (
        "Best network under the budget 2.00\N{MULTIPLICATION SIGN} faster. 16.0 ms become" in text
    )
    assert "become 8.00 ms (predicted, ± 10 %)" in text
    assert "Accuracy in the search goes from 93.0 % to 90.0 %" in text
    tested = dataclasses.replace(data, dense=dataclasses.replace(data.dense, test_accuracy=0.95))
    assert "Test accuracy goes from 95.0 % to 89.0 %" in Page(render(tested)).text


def test_a_budget_within_the_error_is_pointed_out(data):
    sentence = "the true latency may lie between 7.20 ms and 8.80 ms"

    assert sentence in Page(render(dataclasses.replace(data, budget_ms=8.5))).text
    assert sentence not in Page(render(data)).text


def test_the_sections_hold_their_values(data):
    text = Page(render(data)).text

    assert "out of memory failed 1 3" in text
    assert "4 over budget" in text
    assert "2 chosen" in text
    assert "Blocks removed as a whole: layer3.1" in text
    assert "all 15 kernels, ms 120 52.5" in text
    assert "Memory 3.00 MB unpruned 5.00 MB" in text
    assert "autoprune export run --pick 2" in text
    assert "Removing the same ratio everywhere reaches 42.00 % with 2 networks" in text
    assert "the search had 60.00 % after as many" in text
    assert "fANOVA over 33 trials" in text
    assert "space.minimum 8" in text
    assert "Seed 7" in text
    assert "median over 34 networks" in text
    assert "autoprune.load('run')" in text
    assert "Made with autoprune 0.1.0, torch 2.8.0." in text


def test_a_run_without_a_budget_recommends_a_network(data):
    text = Page(render(dataclasses.replace(data, budget_ms=None))).text

    assert "Recommended network" in text
    assert "over budget" not in text


def test_a_run_without_trials_shows_the_dense_network(empty):
    text = Page(render(empty)).text

    assert "No trial has given a network yet. The dense network: 93.0 %, 16.0 ms" in text
    assert "0 trials" in text


def test_networks_below_the_chart_are_counted(data, rows):
    rows = [*rows, rows[0] | {"number": 9, "accuracy": 0.1, "on_front": False}]
    data = dataclasses.replace(
        data, trials=trial_table(rows), hypervolume=(*data.hypervolume, 0.66)
    )

    assert "1 dominated trial lies below the chart" in Page(render(data)).text


def test_older_runs_are_shown_without_what_they_do_not_say(plain):
    text = Page(render(plain)).text

    assert "conv1 16 of 64" in text
    assert "Memory" not in text
    assert "uniform" not in text
    assert "What matters" not in text
    assert "autoprune.load('run')" in text


def test_a_dominated_trial_takes_few_bytes(data, rows):
    def sized(count):
        beaten = [rows[1] | {"number": 10 + i, "latency_ms": 5.0 + i / count} for i in range(count)]
        more = dataclasses.replace(
            data, trials=trial_table([*rows, *beaten]), hypervolume=(0.5,) * (len(rows) + count)
        )
        return len(render(more))

    assert sized(2000) - sized(1000) < 60 * 1000


def test_failures_with_the_same_reason_are_one_row(data):
    rows = [{"number": i, "status": "failed", "reason": "diverged"} for i in range(20)]
    data = dataclasses.replace(data, trials=trial_table(rows), hypervolume=(0.0,) * 20, chosen=None)
    text = Page(render(data)).text

    assert "20 trials gave no network" in text
    assert "diverged failed 20 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 8 more" in text


def test_the_same_data_give_the_same_page(data):
    assert render(data) == render(data)


def test_a_name_that_utf8_cannot_hold_is_written(data, tmp_path):
    write_report(dataclasses.replace(data, model_name="net \udcff"), tmp_path / "report.html")

    assert "net \\udcff" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_where_the_error_may_not_hold_stands_beside_the_headline(data):
    profile = dataclasses.replace(data.profile, notes=("batch 64 is extrapolated <b>",))
    page = render(dataclasses.replace(data, profile=profile))
    headline = page[page.index("Best network") : page.index('id="front"')]
    assert "batch 64 is extrapolated &lt;b&gt;" in headline
