"""The page in a real browser: light, dark and on a phone. Run with `--basetemp DIR` to keep the screenshots."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.report import sample
from tests.report.test_html import thinner
from trimtab.report.html import page

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
OUTSIDE_THEIR_CARD = """
return [...document.querySelectorAll('section.card *')]
  .filter((part) => part.getBoundingClientRect().right > part.closest('section').getBoundingClientRect().right + 1)
  .map((part) => part.tagName + ' ' + part.textContent.slice(0, 40));
"""
# What scrolls on a screen is cut on paper; text for screen readers alone is one dot wide.
CUT = """
return [...document.querySelectorAll('main *')]
  .filter((part) => !(part instanceof SVGElement) && part.clientWidth > 1 && part.scrollWidth > part.clientWidth + 1
    && getComputedStyle(part).overflowX !== 'visible')
  .map((part) => part.tagName + ' ' + part.className + ' ' + part.textContent.slice(0, 40));
"""
# The parts of the page that change: the id of each, or what it is. What lies in the label under the pointer may.
WATCH = """
window.touched = [];
new MutationObserver((seen) => window.touched.push(...seen.map((one) => one.target)))
  .observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true });
"""
TOUCHED = """
return [...new Set(window.touched)].filter((part) => part.isConnected && !part.closest('.hoverlayer'))
  .map((part) => part.id || part.tagName);
"""
BARS = """
return [...document.querySelectorAll('#layers-freed .point path')]
  .map((bar) => bar.getBoundingClientRect()).filter((box) => box.width > 0.5)
  .map((box) => [box.left, box.right, Math.round(box.top)]);
"""
MOST_BESIDE_POINTS = 300
# An A4 sheet at 96 dots an inch, and Chromium's margins of 1 cm.
PAPER = {"paperWidth": 8.27, "paperHeight": 11.69}
SHEET_WIDTH, SHEET_HEIGHT = round(96 * (8.27 - 0.8)), round(96 * (11.69 - 0.8))
VIEWS = {"light": (1200, "light"), "dark": (1200, "dark"), "phone": (360, "light")}
MADE: dict[str, Callable[[], sample.Evidence]] = {
    "pass": sample.evidence,
    "inconclusive": sample.inconclusive,
    "fail": sample.failed,
}

pytestmark = pytest.mark.skipif(
    not (CHROMIUM.exists() and DRIVER.exists()),
    reason="no browser: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


def show(browser: webdriver.Chrome, path: Path, view: str) -> None:
    """Open the page as that reader sees it, with the logs of earlier pages emptied, and keep a screenshot."""
    width, scheme = VIEWS[view]
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(path.as_uri())
    height = browser.execute_script("return document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    path.with_name(f"{path.stem}-{view}.png").write_bytes(base64.b64decode(shot["data"]))


def hover(browser: webdriver.Chrome, point: WebElement) -> str:
    """What the plot says where a real pointer rests on the point."""
    places, label = count(), "return document.querySelector('#tradeoff .hoverlayer').textContent"

    def said(page: webdriver.Chrome) -> Any:
        # A dot to and fro, as what does not move is not heard.
        ActionChains(page).move_to_element_with_offset(point, next(places) % 2, 0).perform()
        return page.execute_script(label)

    ActionChains(browser).move_to_element(browser.find_element("css selector", "h1")).perform()
    WebDriverWait(browser, 20).until_not(lambda page: page.execute_script(label))
    return str(WebDriverWait(browser, 20).until(said))


def requested(browser: webdriver.Chrome) -> list[str]:
    """The addresses that the page asked for."""
    events: list[dict[str, Any]] = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@pytest.mark.parametrize(
    ("made", "view"),
    [("pass", "light"), ("pass", "dark"), ("pass", "phone"), ("inconclusive", "phone"), ("fail", "dark")],
)
def test_page_reads_well_and_asks_for_nothing(browser: webdriver.Chrome, tmp_path: Path, made: str, view: str) -> None:
    evidence = MADE[made]()
    path = tmp_path / f"{made}.html"
    path.write_text(page(evidence), encoding="utf-8")
    show(browser, path, view)

    assert browser.get_log("browser") == []
    assert [url for url in requested(browser) if url != path.as_uri() and not url.startswith("data:")] == []
    wide = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0
    assert browser.execute_script(OUTSIDE_THEIR_CARD) == []
    sentence = browser.find_element("id", "sentence")
    assert sentence.is_displayed()
    assert "than the best free baseline" in sentence.text
    assert evidence["verdict"]["word"] in browser.find_element("css selector", ".badge").text
    drawn = browser.find_elements("css selector", "#tradeoff .scatterlayer .point")
    assert len(drawn) == len(evidence["trials"])
    changed = browser.find_elements("css selector", ".grid .changed")
    assert len(changed) == sum(example["before"] != example["after"] for example in evidence["examples"])
    assert all(item.find_element("css selector", ".tag").is_displayed() for item in changed)


def test_no_width_scrolls_sideways(browser: webdriver.Chrome, tmp_path: Path) -> None:
    evidence = sample.evidence()
    evidence["rows"][2]["name"] = "+".join(["a-very-long-name-without-any-space"] * 4)
    path = tmp_path / "wide.html"
    path.write_text(page(evidence), encoding="utf-8")
    show(browser, path, "phone")
    browser.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    too_wide = {}
    for width in (320, 360, 412, 521, 768, 820, 821, 1440):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wide = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        if wide > 0:
            too_wide[width] = wide
    assert too_wide == {}


def test_plot_follows_the_theme_while_the_page_is_open(browser: webdriver.Chrome, tmp_path: Path) -> None:
    path = tmp_path / "theme.html"
    path.write_text(page(sample.evidence()), encoding="utf-8")
    show(browser, path, "light")
    colour = "return getComputedStyle(document.querySelector('#tradeoff .xtick text')).fill"
    before = browser.execute_script(colour)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    WebDriverWait(browser, 20).until(lambda page: page.execute_script(colour) != before)
    assert browser.execute_script(colour) != before


@pytest.mark.parametrize(
    ("quantity", "shown"),
    [("size_bytes", ["50 kB", "100 kB", "200 kB", "500 kB", "1 MB"]), ("memory_bytes", ["38 MB", "40 MB", "42 MB"])],
)
def test_bytes_on_the_axis_read_as_elsewhere(
    browser: webdriver.Chrome, tmp_path: Path, quantity: str, shown: list[str]
) -> None:
    evidence = sample.minimising(quantity)
    path = tmp_path / f"{quantity}.html"
    path.write_text(page(evidence), encoding="utf-8")
    show(browser, path, "light")
    texts = [tick.text for tick in browser.find_elements("css selector", "#tradeoff .xtick text")]
    assert [text for text in texts if text in shown] == shown
    show(browser, path, "phone")
    labels = browser.find_elements("css selector", "#tradeoff .xtick text")
    assert len(labels) > 2
    assert all(label.size["height"] < 20 for label in labels), "side by side, none is turned to find room"
    assert len(browser.find_elements("css selector", "#tradeoff .scatterlayer .point")) == len(evidence["trials"])
    assert browser.get_log("browser") == []


def test_every_figure_is_drawn(browser: webdriver.Chrome, tmp_path: Path) -> None:
    path = tmp_path / "figures.html"
    path.write_text(page(sample.evidence()), encoding="utf-8")
    show(browser, path, "light")
    drawn = {
        name: len(browser.find_elements("css selector", f"#{name} .points > *, #{name} .point"))
        for name in (
            "waterfall-metric", "waterfall-latency", "layers-freed", "sensitivity-bars", "staircase-plot",
            "timeline-plot",
        )
    }  # fmt: skip
    evidence = sample.evidence()
    assert drawn["layers-freed"] == 2, "two of the three cuts freed something"
    assert drawn["waterfall-metric"] >= len(evidence["steps"]) <= drawn["waterfall-latency"]
    assert drawn["sensitivity-bars"] >= len(evidence["sensitivity"])
    assert drawn["timeline-plot"] >= len(evidence["timeline"])
    assert drawn["staircase-plot"] > 0
    marks = browser.execute_script("return document.getElementById('staircase-plot').data[0].marker.symbol")
    widths, pay = (evidence["staircase"][0][name] for name in ("widths", "pay"))
    assert [width for width, mark in zip(widths, marks, strict=True) if mark == "circle"] == pay
    assert browser.get_log("browser") == []


def test_layers_of_two_steps_are_stacked_and_told_apart(browser: webdriver.Chrome, tmp_path: Path) -> None:
    path = tmp_path / "layers.html"
    path.write_text(page(thinner(12)), encoding="utf-8")
    for view in ("light", "dark", "phone"):
        show(browser, path, view)
        bars = browser.execute_script(BARS)
        rows = {top: [(left, right) for left, right, own in bars if own == top] for *_, top in bars}
        both = [sorted(own) for own in rows.values() if len(own) == 2]
        assert len(rows) == 13
        assert len(both) == 1, "one layer was cut and made thinner"
        assert both[0][0][1] <= both[0][1][0] + 1, "beside each other, not one over the other"
        legend = [text.text for text in browser.find_elements("css selector", "#layers-freed .legendtext")]
        assert legend == ["prune .5", "low rank macs .5"]
        assert browser.execute_script(OUTSIDE_THEIR_CARD) == []
        assert browser.get_log("browser") == []


def test_what_a_step_does_by_itself_is_one_text(browser: webdriver.Chrome, tmp_path: Path) -> None:
    path = tmp_path / "steps.html"
    path.write_text(page(sample.evidence()), encoding="utf-8")
    show(browser, path, "light")
    cells = [cell.text for cell in browser.find_elements("css selector", ".own")]
    assert cells
    assert all("," in text and "\n" not in text.replace(", ", "") for text in cells), "no comma on a line of its own"


def test_hundreds_of_candidates_are_drawn_and_a_click_goes_to_the_row(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    evidence = sample.many(500)
    path = tmp_path / "many.html"
    path.write_text(page(evidence), encoding="utf-8")
    show(browser, path, "light")
    assert len(browser.find_elements("css selector", "#tradeoff .scatterlayer .point")) == 500
    drawn = browser.execute_script("return document.querySelectorAll('#tradeoff *').length")
    assert drawn <= 500 + MOST_BESIDE_POINTS, "one part for each point"
    row = browser.find_element("id", "candidate-7")
    assert not row.is_displayed()
    browser.execute_script(
        "document.getElementById('tradeoff').emit('plotly_click', { points: [{ id: 'candidate-7' }] })"
    )
    assert row.is_displayed()
    assert browser.execute_script("return document.activeElement.id") == "candidate-7"
    assert "picked" in str(row.get_attribute("class"))


def test_hover_and_click_touch_only_what_they_must_whatever_the_number_of_candidates(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    path = tmp_path / "touched.html"
    path.write_text(page(sample.many(500)), encoding="utf-8")
    show(browser, path, "light")
    traces = browser.find_elements("css selector", "#tradeoff .scatterlayer .trace")
    browser.execute_script(WATCH)
    hover(browser, traces[-1].find_element("css selector", ".point"))
    assert browser.execute_script(TOUCHED) == [], "no point is drawn again, no row changes"
    for num_rows, trace in (
        (1, traces[-1]),
        (2, traces[-2]),
    ):  # of the second click, the row that was picked before too
        hover(browser, trace.find_element("css selector", ".point"))
        ActionChains(browser).click().perform()
        row = WebDriverWait(browser, 20).until(lambda page: page.execute_script("return document.activeElement.id"))
        touched = browser.execute_script(TOUCHED)
        assert row.startswith("candidate-")
        assert row in touched
        assert len([name for name in touched if name.startswith("candidate-")]) == num_rows
        assert set(touched) - {"DETAILS"} == {name for name in touched if name.startswith("candidate-")}
        browser.execute_script("window.touched = []; document.activeElement.blur(); window.scrollTo(0, 0)")


@pytest.mark.parametrize(
    ("quantity", "free"),
    [
        ("latency_ms", "89.9 %, 1.10 ms, 0.56× vs best free"),
        ("size_bytes", "89.9 %, 1.48 MB, 0.71× vs best free"),
        ("memory_bytes", "89.9 %, 46.9 MB, 0.95× vs best free"),
    ],
)
def test_the_pointer_over_a_point_reads_its_candidate_metric_and_cost(
    browser: webdriver.Chrome, tmp_path: Path, quantity: str, free: str
) -> None:
    evidence = sample.evidence() if quantity == "latency_ms" else sample.minimising(quantity)
    path = tmp_path / f"hover-{quantity}.html"
    path.write_text(page(evidence), encoding="utf-8")
    show(browser, path, "light")
    traces = browser.find_elements("css selector", "#tradeoff .scatterlayer .trace")
    inductor = traces[-2].find_elements("css selector", ".point")[1]
    assert hover(browser, inductor) == f"original (inductor fp32){free}"
    chosen = hover(browser, traces[-1].find_element("css selector", ".point"))
    assert chosen.startswith("prune .5 + distill + int8 (openvino int8)89.6 %, ")
    assert chosen.endswith("× vs best free")


def test_it_prints_whole_and_in_the_colours_of_paper(browser: webdriver.Chrome, tmp_path: Path) -> None:
    path = tmp_path / "print.html"
    path.write_text(page(sample.evidence()), encoding="utf-8")
    show(browser, path, "dark")
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    ink = browser.execute_script("return getComputedStyle(document.documentElement).getPropertyValue('--ink')")
    assert ink.strip() == "#1a1f26"
    assert browser.find_element("id", "candidate-7").is_displayed()
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"]
    path.with_suffix(".pdf").write_bytes(base64.b64decode(printed))
    assert base64.b64decode(printed)[:5] == b"%PDF-"
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script("return document.documentElement.className") == ""


def test_nothing_is_cut_on_paper(browser: webdriver.Chrome, tmp_path: Path) -> None:
    path = tmp_path / "sheets.html"
    path.write_text(page(sample.evidence()), encoding="utf-8")
    show(browser, path, "light")
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    size = {"width": SHEET_WIDTH, "height": SHEET_HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert browser.execute_script(OUTSIDE_THEIR_CARD) == []
    assert browser.execute_script(CUT) == []
    closed = browser.execute_script("return document.querySelectorAll('details:not([open])').length")
    assert closed == 0
    height = browser.execute_script("return document.documentElement.scrollHeight")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False, **PAPER})["data"]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    path.with_suffix(".pdf").write_bytes(base64.b64decode(printed))
    sheets = len(re.findall(rb"/Type\s*/Page\b", base64.b64decode(printed)))
    assert height / SHEET_HEIGHT <= sheets <= 1.5 * height / SHEET_HEIGHT + 1, "all of it, without empty sheets"


def test_every_candidate_can_be_reached_by_keyboard(browser: webdriver.Chrome, tmp_path: Path) -> None:
    path = tmp_path / "keys.html"
    path.write_text(page(sample.evidence()), encoding="utf-8")
    show(browser, path, "light")
    row = browser.find_element("css selector", "details tbody tr")
    assert not row.is_displayed()
    browser.find_element("css selector", "summary").send_keys("\n")
    assert row.is_displayed()
