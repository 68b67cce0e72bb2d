import dataclasses

import pandas as pd
import pytest

from autoprune.cli.main import main
from autoprune.report.data import NetworkFacts, ReportData, RunFacts, trial_table
from autoprune.run.results import write_results
from autoprune.testing.profiles import made_up_facts


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two finished runs, of which only what a report needs is there."""
    row = {"number": 1, "status": "complete", "accuracy": 0.9, "loss": 0.3, "latency_ms": 4.0}
    data = ReportData(
        model_name="net",
        profile=made_up_facts(),
        budget_ms=None,
        dense=NetworkFacts(accuracy=0.95, loss=0.1, latency_ms=9.0, macs=99, params=99),
        trials=trial_table([row | {"macs": 10, "params": 20, "on_front": True}]),
        hypervolume=(0.4,),
        chosen=None,
        run=RunFacts(settings={}, versions={}, seed=0),
    )
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        write_results(dataclasses.replace(data, model_name=folder.name), folder)
    opened = type("Opened", (), {"open": staticmethod(lambda path: type("O", (), {"path": path}))})
    monkeypatch.setattr("autoprune.run.directory.RunDirectory", opened)
    monkeypatch.chdir(tmp_path)
    return folders


def test_a_run_is_written_in_every_format(runs, capsys):
    kinds = ("html", "md", "csv", "parquet", "svg")
    for file in runs[0].glob("report.*ml"):
        file.unlink()
    assert main(["report", str(runs[0]), *(word for k in kinds for word in ("-f", k))]) == 0

    written = capsys.readouterr().out.split()
    assert written == [
        str(runs[0] / name)
        for name in ("report.html", "report.md", "trials.csv", "trials.parquet", "front.svg")
    ]
    table = pd.read_csv(written[2])
    assert table["hypervolume"].tolist() == [0.4]
    assert table.columns.tolist() == pd.read_parquet(written[3]).columns.tolist()
    assert "one" in (runs[0] / "report.html").read_text()


def test_files_go_where_they_are_wanted(runs, tmp_path):
    assert main(["report", str(runs[0]), "-f", "md", "-o", "elsewhere"]) == 0

    assert [file.name for file in (tmp_path / "elsewhere").iterdir()] == ["report.md"]


def test_several_runs_are_one_page(runs, capsys):
    assert main(["report", *map(str, runs), "--compare"]) == 0

    page = runs[0].parent / capsys.readouterr().out.strip()
    assert page.name == "comparison.html"
    assert "2 runs compared" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["one", "--compare"], "2 to 12 runs, got 1"),
        (["one", "two", "--compare", "-f", "md"], "leave out --format or --compare"),
        (["one", "two", "-o", "x"], "the files of one run"),
        (["one", "one", "--compare"], "named twice"),
        (["one", "two", "--compare", "-o", "no/such/folder.html"], "cannot write"),
    ],
)
def test_bad_input_is_one_message(runs, capsys, arguments, said):
    assert main(["report", *arguments]) == 2

    assert said in capsys.readouterr().err.replace("\n", " ")
