"""Tables of measurements on pages say what the results say."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_up_to_date(tables, capsys):
    assert tables.main(["--check"]) == 0, f"run python docs/tables.py: {capsys.readouterr().out}"


def test_every_table_is_on_a_page(tables):
    text = "".join(page.read_text(encoding="utf-8") for page in tables.PAGES)
    for name in tables.TABLES:
        assert f"<!-- table: {name}, by docs/tables.py -->" in text


def test_best_of_the_repairs_is_that_of_the_rows(tables):
    """The best criterion for a merged ResNet-20, by a plain loop over the file."""
    import csv

    with (tables.RESULTS / "bm_realise.csv").open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["network"] == "ResNet-20"]
    best = max(
        float(r["value"])
        for r in rows
        if r["realise"] == "merge" and r["images"] == "512" and r["tested"] == "2000"
    )
    (line,) = [line for line in tables.repairs().splitlines() if "ResNet-20" in line]
    assert line.split("|")[5].strip() == f"{best:.1f} %"


def test_what_is_out_of_date_is_named_and_then_written(tables, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    stale = "before\n<!-- table: proxies, by docs/tables.py -->\n| old |\n<!-- end -->\nafter\n"
    page.write_text(stale, encoding="utf-8")
    monkeypatch.setattr(tables, "PAGES", (page,))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert tables.main(["--check"]) == 1
    assert page.read_text(encoding="utf-8") == stale
    assert "page.md: out of date" in capsys.readouterr().out
    assert tables.main([]) == 0
    text = page.read_text(encoding="utf-8")
    assert tables.proxies() in text
    assert (text[:7], text[-6:]) == ("before\n", "after\n")
