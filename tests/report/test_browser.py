"""The page in a real browser. What needs none is in test_html.py."""

from __future__ import annotations

import pytest

from autoprune.report.html import write_report
from autoprune.testing import browser as browsers

pytestmark = pytest.mark.skipif(
    bool(browsers.missing()), reason=browsers.missing() or "not skipped"
)


@pytest.fixture(scope="module")
def chromium():
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture
def report(data, tmp_path):
    file = tmp_path / "report.html"
    write_report(data, file)
    return file


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (390, "light"), (1280, "dark"), (390, "dark")]
)
def test_the_page_is_sound_and_accessible(chromium, report, width, scheme):
    with browsers.opened(chromium, report, width=width, scheme=scheme) as opened:
        for details in opened.page.locator("details > summary").all():
            details.click()
        assert opened.violations() == []
        assert opened.console == []
        assert opened.requested == []
        # Wide tables scroll by themselves, the page never does.
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width


def test_axe_finds_what_is_wrong(chromium, tmp_path):
    file = tmp_path / "wrong.html"
    file.write_text("<title>x</title><img src='data:,'><p style='color:#bbb'>pale</p>")
    with browsers.opened(chromium, file) as opened:
        found = " ".join(opened.violations())

    assert "color-contrast" in found
    assert "image-alt" in found
    assert "html-has-lang" in found


def test_a_click_shows_another_network(chromium, report):
    with browsers.opened(chromium, report) as opened:
        page = opened.page
        assert page.locator("[data-card='Parameters'] .value").inner_text() == "2.00\xa0k"
        assert "layer3.1" in page.locator("[data-removed]").inner_text()
        page.locator("[role=radio][data-trial='4']").click()

        assert page.locator("#network-title").inner_text() == "Network of trial 4 over budget"
        assert page.locator("[data-card='Latency, predicted'] .value").inner_text() == "12.0\xa0ms"
        assert page.locator("[data-card='Memory'] .value").inner_text() == "4.00\xa0MB"
        assert page.locator("[data-kept='0']").inner_text() == "48"
        bar = page.locator("tr:has([data-kept='0']) .fill")
        assert bar.get_attribute("width") == "75%"
        assert page.locator("[data-ms='14']").inner_text() == "5.60"
        assert page.locator("#kernels-after").inner_text() == "42.0"
        assert "No block" in page.locator("[data-removed]").inner_text()
        assert "autoprune export run --pick 4" in page.locator("#load").inner_text()
        assert page.locator("tr[aria-current=true] a").inner_text() == "4"
        assert opened.console == []


def test_the_keyboard_reaches_every_network(chromium, report):
    with browsers.opened(chromium, report) as opened:
        page = opened.page
        page.locator("[role=radio][tabindex='0']").focus()
        seen = []
        for key in ("ArrowRight", "ArrowRight", "Home", "ArrowLeft", "End"):
            page.keyboard.press(key)
            focused = page.evaluate("document.activeElement.dataset.trial")
            assert page.locator("[aria-checked=true]").get_attribute("data-trial") == focused
            seen.append(focused)
        assert seen == ["4", "4", "0", "0", "4"]
        assert "trial 4" in page.locator("[role=status]").inner_text()
        # In the table a link does the same.
        page.locator("a.pick", has_text="0").focus()
        page.keyboard.press("Enter")
        assert page.locator("[data-trial-number]").first.inner_text() == "0"
        assert page.locator("[data-step='-1']").is_disabled()


def test_pointing_at_a_mark_shows_its_widths(chromium, report):
    with browsers.opened(chromium, report) as opened:
        page = opened.page
        page.locator("[role=radio][data-trial='0']").hover()
        tip = page.locator(".tip")
        assert "trial 0" in tip.inner_text()
        assert "80.00\xa0%, 4.00\xa0ms" in tip.inner_text()
        assert tip.locator(".fill").first.get_attribute("height") == "0.125"
        # Trial 1 is dominated: a point of the cloud.
        plot = page.locator(".plot").first.bounding_box()
        points = page.locator("path.dominated").first.get_attribute("d")
        x, y = (int(number) / 10_000 for number in points[1:].split("h")[0].split())
        page.mouse.move(plot["x"] + x * plot["width"] + 2, plot["y"] + y * plot["height"])
        assert tip.inner_text().replace("\xa0", " ") == "trial 1, dominated\n70.0 %, 5.00 ms"
        page.mouse.move(plot["x"] + 2, plot["y"] + 2)
        assert tip.count() == 0


def test_commands_are_copied(chromium, report):
    with browsers.opened(chromium, report) as opened:
        opened.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        opened.page.locator("button.copy").first.click()
        opened.page.get_by_text("Copied").wait_for()
        copied = opened.page.evaluate("navigator.clipboard.readText()")

    assert copied == "autoprune export run --pick 2"


def test_everything_is_readable_without_scripts_and_on_paper(chromium, report):
    with browsers.opened(chromium, report, scripts=False) as opened:
        page = opened.page
        assert page.locator(".plot path.front").first.is_visible()
        assert page.locator("#network .value").first.inner_text() == "90.00\xa0%"
        assert page.locator("[data-step]").first.is_hidden()
        page.emulate_media(media="print")
        assert page.locator("nav").is_hidden()
        folded = page.locator("details table").first
        assert folded.bounding_box()["height"] > 20
