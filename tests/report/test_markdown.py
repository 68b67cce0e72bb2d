from __future__ import annotations

import dataclasses

from markdown_it import MarkdownIt

from autoprune.report.data import FinetunedFacts
from autoprune.report.markdown import markdown, write_markdown


def rendered(data):
    """Return the page as HTML, by another's reading of Markdown."""
    return MarkdownIt("commonmark").enable("table").render(markdown(data)).replace("\xa0", " ")


def cells(html, first):
    """Return the cells of the row that begins with ``first``."""
    row = next(row for row in html.split("<tr>") if f"<td>{first}</td>" in row)
    return [cell.split(">", 1)[1].split("</td>")[0] for cell in row.split("<td")[1:]]


def test_the_page_has_the_front_and_how_it_was_found(data):
    html = rendered(data)

    assert cells(html, "2") == [
        *(
            "2",
            "90.00 %",
            "89.00 %",
            "0.100",
            "8.00 ms",
            "2.00\N{MULTIPLICATION SIGN}",
            "1.00 M",
            "2.00 k",
        ),
    ]
    assert cells(html, "unpruned")[1] == "93.00 %"
    assert cells(html, "Memory")[1] == "3.00 MB"
    assert cells(html, "out of memory") == ["out of memory", "1"]
    assert cells(html, "space.minimum") == ["space.minimum", "8"]
    assert "Trial 2 is recommended." in html
    assert "Uniform pruning: 42.00 % with 2 networks." in html
    assert "autoprune.load('run')" in html


def test_the_front_says_what_fine_tuning_made_of_it(data):
    tuned = {2: FinetunedFacts(accuracy=0.95, test_accuracy=0.94),
             4: FinetunedFacts(accuracy=0.97, test_accuracy=None)}  # fmt: skip
    html = rendered(dataclasses.replace(data, finetuned=tuned))
    assert "<th>fine-tuned</th>" in html
    assert cells(html, "2")[8] == "95.00 %, test 94.00 %"
    assert cells(html, "4")[8] == "97.00 %"
    assert len(set(cells(html, "0")[8]) & set("0123456789")) == 0
    assert "<th>fine-tuned</th>" not in rendered(data)


def test_markup_in_names_stays_text(data):
    name = "a|b <script> *c* [d](e) `f`"
    html = rendered(dataclasses.replace(data, model_name=name))

    assert "<h1>a|b &lt;script&gt; *c* [d](e) `f` on Some board</h1>" in html


def test_a_run_without_trials_says_so(empty, tmp_path):
    write_markdown(empty, tmp_path / "report.md")

    assert "No trial has given a network yet." in (tmp_path / "report.md").read_text("utf-8")
