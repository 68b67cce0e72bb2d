import io
import json

import numpy as np
import pytest
from rich.console import Console

from autoprune.cli.main import main
from autoprune.cli.sensitivity import Sensitivity, plot, show
from autoprune.errors import SettingsError

CURVE = np.array([0.0, 0.01, 0.02, 0.5, 1.5])
FOUND = Sensitivity(100, {"cheap": CURVE / 10, "dear": CURVE, "odd": None}, {"b": 0.3, "a": 0.1})


def test_json_has_a_curve_per_group_and_a_value_per_block(capsys):
    assert main(["inspect", "digits", "--sensitivity", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    found = content["sensitivity"]
    assert found["groups"].keys() == {group["name"] for group in content["groups"]}
    for group in content["groups"]:
        curve = found["groups"][group["name"]]
        assert len(curve) == group["size"] + 1
        assert curve[0] == 0.0
        assert curve == sorted(curve)
        assert curve[-1] > 0.1
    assert found["blocks"].keys() == {block["name"] for block in content["blocks"]}
    assert all(value > 0 for value in found["blocks"].values())


def test_table_has_the_dearest_group_first_and_says_what_is_not_known():
    out = io.StringIO()
    show(Console(file=out, width=100), FOUND)
    lines = out.getvalue().splitlines()
    dear, cheap = (next(i for i, x in enumerate(lines) if x.startswith(n)) for n in ("dea", "che"))
    assert dear < cheap
    assert lines[dear].split()[:5] == ["dear", "4", "0.01", "0.02", "0.5"]
    assert lines[dear].split()[-1][0] == "█"
    assert "no known reader: odd" in lines
    assert "blocks, cheapest first: a 0.1, b 0.3" in lines


def test_plot_is_one_page_with_a_line_per_known_group(tmp_path):
    plot(FOUND, "net", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count('"mode":"lines"') == 2
    assert '"name":"dear"' in page
    assert "<script src" not in page


def test_plot_that_cannot_be_written(tmp_path):
    with pytest.raises(SettingsError, match="cannot write the plot"):
        plot(FOUND, "net", tmp_path / "nowhere" / "page.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["torchvision:resnet18", "--sensitivity"], "needs samples; give --data"),
        (["digits", "--sensitivity", "--fake"], "add --values"),
    ],
)
def test_what_it_cannot_do_without(arguments, message, capsys):
    assert main(["inspect", *arguments]) == 2
    assert message in capsys.readouterr().err
