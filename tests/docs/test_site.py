"""The site builds without a warning, and fetches nothing from elsewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: What a page fetches when it is opened; plain links are followed by readers only.
_FETCHED = re.compile(r'<(?:link|script|img)\b[^>]*?(?:href|src)=["\']?(?:https?:)?//[^>]*>')


@pytest.mark.slow
def test_site_builds_and_stands_alone(tmp_path, monkeypatch):
    mkdocs = pytest.importorskip("mkdocs.config")
    from mkdocs.commands.build import build

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    config = mkdocs.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    build(config)
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(list(ROOT.glob("docs/*.md")))  # and the page for what is not found
    for page in pages:
        fetched = [
            tag
            for tag in _FETCHED.findall(page.read_text(encoding="utf-8"))
            if "canonical" not in tag
        ]
        assert not fetched, f"{page}: {fetched}"
    assert (
        "Search for the Pareto front of pruned networks"
        in (tmp_path / "api/index.html").read_text()
    )
