from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.report import sample
from trimtab.report import words
from trimtab.report.html import page
from trimtab.report.tradeoff import pareto

VOID = {"meta", "link", "img", "br", "path"}
NASTY = "<script>alert(1)</script>&\"'</title>"


class Outline(HTMLParser):
    """Checks that tags nest, and collects text, tags and attributes outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data


def outline(html: str) -> Outline:
    parser = Outline()
    parser.feed(html)
    assert parser.open == []
    return parser


def data_of(html: str) -> dict[str, Any]:
    """What `page.js` draws."""
    found = re.search(r'(?s)<script type="application/json" id="data">(.*?)</script>', html)
    assert found is not None
    return dict(json.loads(found[1]))


def body(html: str) -> str:
    """The page without plotly.js, which is a library's text."""
    return "".join(part for part in re.split(r"(?s)<script>/\*\*.*?</script>", html))


@pytest.mark.parametrize("make", [sample.evidence, sample.inconclusive, sample.failed])
def test_page_is_well_formed_and_says_the_verdict(make: Any) -> None:
    evidence = make()
    found = outline(page(evidence))
    assert evidence["verdict"]["word"] in found.text
    assert f"{evidence['task']['metric']} changed by" in found.text
    identities = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(identities) == len(set(identities))


def test_nothing_points_outside_the_page() -> None:
    found = outline(page(sample.evidence()))
    links = [value for _, attrs in found.tags for name, value in attrs.items() if name in ("src", "href")]
    assert links
    assert all(str(link).startswith("data:") for link in links)
    assert "default-src 'none'" in body(page(sample.evidence()))
    assert not re.search(r"@import|url\(|https?://", body(page(sample.evidence())))


def nasty(value: Any) -> Any:
    """The same evidence with hostile text wherever text may come from a user."""
    if isinstance(value, dict):
        return {key: nasty(part) for key, part in value.items()}
    if isinstance(value, list):
        return [nasty(part) for part in value]
    return NASTY if isinstance(value, str) else value


def test_every_text_is_escaped() -> None:
    evidence = sample.evidence()
    evidence["coverage"]["layers"][0] |= {"layer": NASTY, "why": NASTY}
    evidence["search"] |= {"next": NASTY, "costliest": {"step": NASTY, "metric_lost": 0.1}}
    for key in ("examples", "skipped", "steps", "machine", "versions", "paths", "reproduce", "layers", "sensitivity"):
        evidence[key] = nasty(evidence[key])
    evidence["task"] |= {"name": NASTY, "metric": NASTY}
    evidence["trials"][0]["candidate"] = evidence["rows"][2]["name"] = evidence["verdict"]["reason"] = NASTY
    evidence["trimtab"] = NASTY
    html = page(evidence)
    outline(html)
    assert "<script>alert" not in html
    assert NASTY not in html


def test_inline_data_is_json_that_survives() -> None:
    found = re.search(r'(?s)<script type="application/json" id="data">(.*?)</script>', page(sample.evidence()))
    assert found is not None
    data = json.loads(found.group(1))
    assert len(data["points"]) == 14
    assert [point["kind"] for point in data["points"]].count("chosen") == 1
    assert data["allowed"] == pytest.approx(100 * (0.8990 - 0.00899))
    assert all(point["y_low"] <= point["y"] <= point["y_high"] for point in data["points"])


def test_changed_examples_come_first_and_are_marked_in_words() -> None:
    found = outline(page(sample.evidence()))
    kinds = [str(attrs["class"]).split()[0] for tag, attrs in found.tags if tag == "li" and attrs.get("class")]
    assert [kind for kind in kinds if kind not in ("int8", "float")] == ["changed"] * 7 + ["same"] * 17
    assert found.text.count("now right") == 4
    assert found.text.count("now wrong") == 2
    assert found.text.count("still wrong") == 1
    alts = [attrs["alt"] for tag, attrs in found.tags if tag == "img"]
    assert len(alts) == 24
    assert all(alts)


def test_lines_of_writing_get_wide_places() -> None:
    evidence = sample.evidence()
    assert '<ul class="grid">' in page(evidence)
    line = sample.png(np.zeros((20, 300), dtype=np.uint8))
    assert '<ul class="grid wide">' in page({**evidence, "examples": [{**evidence["examples"][0], "png": line}]})


def test_open_verdict_says_what_would_decide() -> None:
    text = outline(page(sample.inconclusive())).text
    assert "It is not proven that accuracy holds." in text
    assert "About 640 more verify samples would decide." in text


def test_failed_verdict_says_slower() -> None:
    text = outline(page(sample.failed())).text
    assert "Not faster than the best free baseline." in text
    assert "1.20× slower than the best free baseline" in text


@pytest.mark.parametrize(
    "part",
    ["examples", "steps", "skipped", "trials", "latency_samples", "layers", "sensitivity", "staircase", "timeline"],
)
def test_empty_parts_are_left_out(part: str) -> None:
    evidence = sample.evidence()
    whole = page(evidence)
    evidence[part] = type(evidence[part])()
    shorter = page(evidence)
    outline(shorter)
    assert shorter.count("<section") < whole.count("<section")


@pytest.mark.parametrize("make", [sample.evidence, sample.failed])
def test_evidence_of_before_has_a_page_too(make: Any) -> None:
    evidence = make()
    for part in ("layers", "coverage", "sensitivity", "staircase", "timeline", "profile", "search"):
        del evidence[part]
    text = outline(page(evidence)).text
    assert "Result" in text
    assert "How the search ended" not in text
    assert "nearest miss" not in text


def card(html: str, name: str) -> str:
    """The text of one section."""
    return outline(
        html[html.index(f'<section class="card" aria-labelledby="{name}"') :].split("</section>")[0] + "</section>"
    ).text


def test_how_the_search_ended_is_shown() -> None:
    text = card(page(sample.evidence()), "ended")
    assert "prune .5, accuracy −5.7 points on select" in text
    assert "the best of 8 recipes, which flatters it on select; accuracy −0.3 on select, −0.3 on verify" in text
    assert "to try next" not in text, "it passed"
    one = sample.evidence()
    one["search"] |= {"candidates": 1, "costliest": None}
    assert "the one recipe that was measured; accuracy −0.3 on select" in card(page(one), "ended")
    assert "cost most" not in card(page(one), "ended")
    one["search"]["costliest"] = {"step": "int8", "metric_lost": 0.0004}
    assert "cost most" not in card(page(one), "ended"), "it rounds to nothing"


def test_what_the_bounds_tell_is_not_told_twice() -> None:
    evidence = sample.bounded()
    html = page(evidence)
    assert "is the best of 8 recipes" in card(html, "bounds")
    assert "best of" not in card(html, "ended")
    evidence["search"] |= {"costliest": None, "nearest_miss": False, "next": ""}
    assert "How the search ended" not in page(evidence)


def test_a_miss_is_named_as_such_with_what_to_try_next() -> None:
    evidence = sample.failed()
    html = page(evidence)
    assert '<span class="badge FAIL">FAIL</span><span class="badge miss">nearest miss</span>' in html
    text = card(html, "ended")
    assert "nothing that was tested passed, and this came nearest" in text
    assert "prune .5, negative error −0.057 on select" in text
    assert "what was found is no cheaper for sure." in text
    evidence["search"]["candidates"] = 0
    assert "so that this is the best free baseline" in card(page(evidence), "ended")
    assert "best of 0" not in page(evidence)
    for make in (sample.evidence, sample.inconclusive):
        assert "nearest miss" not in page(make()).replace(".miss", ""), "it is no FAIL"
    assert "Bring about 640 more verify samples" in card(page(sample.inconclusive()), "ended")


def test_what_is_open_is_named_as_not_decided() -> None:
    text = card(page(sample.inconclusive()), "ended")
    assert "not decidednothing that was tested passed for sure, and of this one the measurements do not decide" in text
    for make in (sample.evidence, sample.failed):
        assert "not decided" not in card(page(make()), "ended")


def test_steps_layers_and_coverage_are_told_in_words_too() -> None:
    found = outline(page(sample.evidence()))
    labels = {attrs["id"]: attrs["aria-label"] for _, attrs in found.tags if attrs.get("role") == "img"}
    assert "prune .5 84.2 %, 0.352 ms" in str(labels["waterfall-metric"])
    assert str(labels["sensitivity-bars"]).endswith("most: linear, 0.11")
    assert "timing trials" in str(labels["timeline-plot"])
    assert all(labels.values())
    squares = [attrs for tag, attrs in found.tags if tag == "li" and attrs.get("tabindex") == "0"]
    assert [attrs["class"] for attrs in squares] == ["float", *["int8"] * 13, "float"]
    assert squares[0]["title"] == "conv2d: in floating point (alone this layer moves the outputs by 0.11)"
    assert "64 to 32 channels" in found.text


def test_a_step_that_was_not_measured_is_named_with_the_one_after_it() -> None:
    evidence = sample.evidence()
    evidence["steps"][1] |= {"metric": None, "latency_ms": None}
    found = re.search(r'(?s)<script type="application/json" id="data">(.*?)</script>', page(evidence))
    assert found is not None
    names = [step["name"] for step in json.loads(found.group(1))["steps"]]
    assert names == ["original", "prune .5 + distill", "int8"]


def test_other_batch_sizes_and_threads_are_compared_with_the_baseline() -> None:
    text = " ".join(outline(page(sample.evidence())).text.split())
    assert "the best free baseline 0.5 s and the chosen one 0.3 s" in text
    assert "322 threads" in text, "a batch of 32 on 2 threads"
    assert text.count("2.9\N{MULTIPLICATION SIGN}") >= 6


def test_text_and_sound_are_shown_as_such_with_what_became_of_the_score() -> None:
    html = page(sample.spoken())
    found = outline(html)
    assert "the cat sat on <the> mat" in found.text
    assert "BLEU 0.8300 \N{RIGHTWARDS ARROW} BLEU 0.4100" in found.text
    kinds = [str(attrs["class"]) for tag, attrs in found.tags if tag == "li" and attrs.get("class")]
    assert [kind for kind in kinds if kind not in ("int8", "float")] == ["changed broken"] * 2 + [
        "changed mended",
        "same",
    ]
    (sound,) = (attrs for tag, attrs in found.tags if tag == "audio")
    assert str(sound["src"]).startswith("data:audio/wav;base64,")
    assert sound["aria-label"]
    assert "media-src data:" in html


def test_each_point_leads_to_its_row() -> None:
    html = page(sample.many(200))
    data = json.loads(re.search(r'(?s)<script type="application/json" id="data">(.*?)</script>', html)[1])  # type: ignore[index]
    ids = {attrs["id"] for _, attrs in outline(html).tags if "id" in attrs}
    assert len(data["points"]) == 200
    assert {point["row"] for point in data["points"]} <= ids


def test_each_further_trial_adds_the_same_little_to_the_page() -> None:
    sizes, tags = [], []
    for num in (100, 300, 500):
        html = page(sample.many(num))
        sizes.append(len(html.encode()))
        tags.append(len(outline(html).tags))
    added = [(after - before) / 200 for before, after in pairwise(sizes)]
    assert max(added) < 1200, "bytes for each trial"
    assert added[1] == pytest.approx(added[0], rel=0.02), "nothing is told of each pair of trials"
    fewer, more = ((after - before) / 200 for before, after in pairwise(tags))
    assert fewer == more <= 20, "parts of the page for each trial"


def test_trial_without_latency_is_listed_but_not_drawn() -> None:
    evidence = sample.evidence()
    evidence["trials"][3]["measurements"] = []
    html = page(evidence)
    assert html.count('"row":') == 13
    assert "Show all 14" in html


def test_pareto_front() -> None:
    assert pareto([]) == []
    assert pareto([(1, 5), (2, 5), (3, 6), (2.5, 4)]) == [(1, 5), (3, 6)]


@pytest.mark.parametrize(
    ("quantity", "noun", "column", "text"),
    [("size_bytes", "Size", 3, "96.4 kB"), ("memory_bytes", "Peak memory", 4, "38.6 MB")],
)
def test_the_trade_off_is_drawn_in_what_the_goal_minimises(quantity: str, noun: str, column: int, text: str) -> None:
    evidence = sample.minimising(quantity)
    html = page(evidence)
    found, data = outline(html), data_of(html)
    assert f"{noun} against accuracy" in found.text
    (label,) = (attrs["aria-label"] for _, attrs in found.tags if attrs.get("id") == "tradeoff")
    assert str(label).startswith(f"accuracy against {noun.lower()} of every candidate")
    assert data["bytes"]
    assert "ms" not in data["x_title"]
    assert noun.lower() in data["x_title"]
    point = data["points"][sample.CHOSEN]
    assert point["x"] == evidence["trials"][sample.CHOSEN]["measurements"][column - 2]["value"]
    times = words.times(evidence["verdict"]["gain"])
    assert point["text"].endswith(f"89.6 %, {text}, {times} vs best free")
    row = html[html.index(f'id="{point["row"]}"') :].split("</tr>")[0]
    assert re.findall(r"<div>([^<]*)", row)[column - 1] == text, "the table has the figure too"
    assert [x for x, _ in data["front"]] == [data["points"][place]["x"] for place in (13, 12, 10, 2)]


@pytest.mark.parametrize(("quantity", "best"), [("latency_ms", "fastest"), ("size_bytes", "smallest")])
def test_a_run_that_lasts_tells_of_the_best_so_far_in_what_it_minimises(quantity: str, best: str) -> None:
    text = outline(page(sample.minimising(quantity) | {"verdict": None, "rows": []})).text
    assert f"The {best}: prune .7 + distill + int8 (openvino int8)" in text


def test_a_latency_is_drawn_as_such() -> None:
    html = page(sample.evidence())
    data = data_of(html)
    assert not data["bytes"]
    assert "ms" in data["x_title"]
    assert "89.6 %, 0.211 ms, 2.9× vs best free" in data["points"][sample.CHOSEN]["text"]
    assert "peak memory" not in html[html.index('id="trials"') :].lower()


def test_the_front_is_that_of_the_search_where_the_plot_can_show_it() -> None:
    evidence = sample.evidence()
    places = {"t13": 13, "t12": 12, "t10": 10, "t03": 3, "t06": 6}

    def front(*named: str) -> Any:
        evidence["search"]["pareto"] = list(named)
        return data_of(page(evidence))["front"]

    def drawn(*named: str) -> Any:
        points = data_of(page(evidence))["points"]
        return [[points[places[one]]["x"], points[places[one]]["y"]] for one in named]

    assert front("t13", "t10", "t03") == drawn("t13", "t10", "t03"), "raced, t12 was beaten"
    assert "by the bound that suffers most" in page(evidence)
    own = drawn("t13", "t12", "t10", "t03")
    assert front("t13", "t06", "t10", "t03") == own, "t06 costs more than t10 in the plot and is worse"
    assert front("t13", "gone") == front() == own
    assert "by the bound that suffers most" not in page(evidence)
    del evidence["search"]
    assert data_of(page(evidence))["front"] == own


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.1)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_meets_wcag_aa(theme: int) -> None:
    css = resources.files("trimtab.report").joinpath("page.css").read_text()
    block = re.findall(r"(?s):root(?::not\(\.paper\))? \{(.*?)\}", css)[theme]
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block))
    text = [(ink, ground) for ink in ("ink", "soft") for ground in ("page", "card", "faint")]
    text += [(word, f"{word}-soft") for word in ("pass", "fail", "open")]
    text += [(word, "card") for word in ("pass", "fail", "open", "accent", "free")]
    weak = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in text}
    assert {pair: value for pair, value in weak.items() if value < 4.5} == {}
    assert contrast(colours["dot"], colours["card"]) >= 3


def test_bounds_are_shown_with_both_splits_and_their_words() -> None:
    outline = Outline()
    outline.feed(page(sample.bounded()))
    text = " ".join(outline.text.split())
    assert "What had to stay true" in text
    recipes = {trial["recipe"] for trial in sample.bounded()["trials"] if not trial["free"]}
    assert f"is the best of {len(recipes)} recipes" in text
    assert "F1 of <coat>4,000 verify samples" in text
    assert "2,300 more samples would decide" in text
    assert "−0.1[−9.0, −3.0]" in text, "what select told of the shirts"
    assert "−6.0[−9.0, −3.0]" in text, "what verify told"


def test_what_serving_costs_has_the_columns_that_are_known() -> None:
    outline = Outline()
    outline.feed(page(sample.bounded()))
    text = " ".join(outline.text.split())
    assert "samples a second" in text
    assert "0.0123estimate" in text
    assert "price of a million" not in text
    assert "samples a second" not in page(sample.evidence())


def test_a_step_that_was_tried_by_itself_says_what_it_gained_alone() -> None:
    text = outline(page(sample.evidence())).text
    assert "latency 2.0×, size 3.0×" in text
    assert "Gains by themselves do not multiply" in text


def test_finalists_are_shown_in_their_order_with_what_each_came_to() -> None:
    text = outline(page(sample.evidence())).text
    part = text[text.index("Finalists") :][:900]
    places = [part.index(name) for name in ("prune .3 + distill + int8", "prune .5 + distill + int8", "prune .7 +")]
    assert places == sorted(places)
    assert [part.count(word) for word in ("PASS", "FAIL", "shipped")] == [2, 1, 2]
    later = outline(page(sample.inconclusive())).text
    assert "640 more samples would decide" in later
    assert "not tested" in later
    assert "Finalists" not in outline(page(sample.failed())).text, "one alone is no order"


def test_the_seeds_of_training_and_search_are_told_apart() -> None:
    evidence = sample.evidence()
    assert "--keep 0.99 --seed 3    # seed of the training 0, of the search 3" in outline(page(evidence)).text
    evidence["reproduce"]["training_seed"] = None
    assert "--seed 3    # seed of the search 3" in outline(page(evidence)).text, "it came trained"
    evidence["reproduce"] = {"command": "trimtab optimize fashion --seed 3", "seed": 0}
    assert "--seed 3    # seed of the training 0Use it from Python" in outline(page(evidence)).text


def thinner(num: int = 2) -> sample.Evidence:
    """The same run with low rank between the cuts and the integers, in layers that were cut too and in others."""
    found = sample.evidence()
    rows = [
        {
            "step": "low rank macs .5",
            "layer": f"features.{3 * place}",
            "what": "rank 64 to 24",
            "macs_freed": 1_000_000 // (place + 1),
            "ms_freed": None,
            "lost": 0.04,
        }
        for place in range(1, num + 1)
    ]
    return found | {"layers": [*found["layers"], *rows]}


def test_where_the_macs_went_is_drawn_by_layer_and_step_and_told_in_words() -> None:
    html = page(thinner())
    freed = data_of(html)["freed"]
    assert (freed["unit"], freed["num"]) == ("MACs", 3)
    assert freed["layers"] == ["features.3", "features.6", "features.0"], "the most first, of both steps together"
    assert freed["steps"] == [
        {"name": "prune .5", "total": 2_822_400, "values": [2_709_504, 0, 112_896]},
        {"name": "low rank macs .5", "total": 833_333, "values": [500_000, 333_333, 0]},
    ]
    labels = {attrs["id"]: attrs["aria-label"] for _, attrs in outline(html).tags if attrs.get("role") == "img"}
    assert labels["layers-freed"] == (
        "MACs freed in each layer, by step: prune .5 2,822,400, low rank macs .5 833,333; most: features.3, 3,209,504"
    )
    text = card(html, "layers")
    assert "Where MACs went, layer by layer: prune .5 2,822,400, low rank macs .5 833,333." in text
    assert "rank 64 to 24" in text, "the table says it too"
    assert "Of distill no plan says what it did to single layers." in text


def test_where_time_was_measured_for_all_it_is_what_is_drawn() -> None:
    freed = data_of(page(sample.evidence()))["freed"]
    assert freed["unit"] == "ms"
    assert freed["steps"] == [{"name": "prune .5", "total": pytest.approx(0.04), "values": [0.02, 0.02]}]


def test_of_many_layers_those_are_drawn_that_freed_most_and_all_count() -> None:
    html = page(thinner(40))
    freed = data_of(html)["freed"]
    assert (len(freed["layers"]), freed["num"]) == (24, 41)
    assert freed["steps"][1]["total"] == sum(1_000_000 // (place + 1) for place in range(1, 41))
    assert "The 24 layers of most." in card(html, "layers")


def test_where_nothing_was_freed_there_is_a_table_alone() -> None:
    evidence = sample.evidence()
    evidence["layers"] = [one for one in evidence["layers"] if one["step"] == "int8"]
    html = page(evidence)
    assert data_of(html)["freed"] == {}
    assert 'id="layers-freed"' not in html
    assert "weights in 8 bits" in card(html, "layers")


@pytest.mark.parametrize(
    ("how", "told", "begun"),
    [
        ("calibrated", "", False),
        ("trained", "The scales were trained.", True),
        ("at run time", "Ranges of what goes in are found for every batch.", False),
    ],
)
def test_the_map_of_integers_says_how_the_ranges_were_found(how: str, told: str, begun: bool) -> None:
    evidence = sample.evidence()
    evidence["coverage"]["how"] = how
    html = page(evidence)
    assert told in card(html, "coverage")
    others = {"The scales were trained.", "Ranges of what goes in are found for every batch."} - {told}
    assert not any(other in card(html, "coverage") for other in others)
    assert ("With the scales that training began with." in card(html, "sensitivity")) == begun
