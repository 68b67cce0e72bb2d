from __future__ import annotations

import dataclasses

import pytest

from autoprune.report import text
from autoprune.report.views import network_views


def plain_words(card):
    words = [card.value, *card.notes]
    return [word.replace(text.NO_BREAK, " ") for word in words]


def cards(view):
    return {card.name: plain_words(card) for card in view.cards}


def test_every_network_of_the_front_says_what_the_table_says(data):
    views = network_views(data)

    assert [view.trial for view in views] == [0, 2, 4]
    assert [view.tags for view in views] == [(), ("chosen",), ("over budget",)]
    assert cards(views[1]) == {
        "Accuracy, search split": ["90.00 %", "unpruned 93.00 %", "\N{MINUS SIGN}3.0 points"],
        "Latency, predicted": ["8.00 ms", "7.20 to 8.80 at ± 10 %", "unpruned 16.0 ms"],
        "Speed-up": ["2.00\N{MULTIPLICATION SIGN}"],
        "MACs per batch": ["1.00 M", "unpruned 4.00 M", "\N{MINUS SIGN}75 %"],
        "Parameters": ["2.00 k", "unpruned 9.00 k", "\N{MINUS SIGN}78 %"],
        "Memory": ["3.00 MB", "unpruned 5.00 MB", "\N{MINUS SIGN}40 %"],
    }


def test_test_accuracy_is_shown_where_it_is_known(data):
    tested = dataclasses.replace(data, dense=dataclasses.replace(data.dense, test_accuracy=0.9))
    first, chosen, _ = (cards(view)["Accuracy, test split"] for view in network_views(tested))

    assert chosen == ["89.00 %", "unpruned 90.00 %", "\N{MINUS SIGN}1.0 points"]
    assert first == [text.MISSING, "unpruned 90.00 %", text.MISSING]


def test_layers_come_with_each_network(data):
    first, chosen, _ = network_views(data)

    assert (first.kept, chosen.kept) == ((8, 64), (16, 64))
    assert chosen.kernel_ms[:3] == ("0", "0.200", "0.400")
    assert float(chosen.kernel_total) == pytest.approx(sum(0.2 * i for i in range(15)))
    assert first.removed == "No block was removed as a whole."
    assert chosen.removed == "Blocks removed as a whole: layer3.1."


def test_without_layers_the_chosen_network_has_its_own(plain):
    first, chosen, _ = network_views(plain)

    assert first.kept == ()
    assert chosen.kept == (16, 64)
    assert chosen.kernel_ms[2] == "1.00"


def test_a_cost_of_the_search_is_a_card(data):
    dense = dataclasses.replace(data.dense, extra={"energy_mj": 9.0})
    table = data.trials.assign(energy_mj=3.0)
    view = network_views(dataclasses.replace(data, dense=dense, trials=table))[0]

    assert cards(view)["Energy"] == ["3.00 mJ", "unpruned 9.00 mJ", "\N{MINUS SIGN}67 %"]
