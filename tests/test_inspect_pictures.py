"""Pictures of inspections: the page and its charts show the figures of --json, and fit."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser
from PIL import Image

from sparse_ddpm.cli.main import main
from sparse_ddpm.errors import ConfigError
from sparse_ddpm.inspection import check_plot
from sparse_ddpm.inspection.charts import charts_of, slowest, stage_of, stages_apart
from sparse_ddpm.inspection.svg import round_steps, wrapped
from sparse_ddpm.ticket import UNet2DConfig, UNetConfig, save_ticket, synthetic_ticket

SHALLOW = UNetConfig(
    dim=8, dim_mults=(1, 2), channels=1, image_size=8, groups=4, heads=2, dim_head=8
)
DIFFUSERS = UNet2DConfig(
    channels=3,
    image_size=8,
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    time_dim=32,
    norm_num_groups=4,
    attn_norm_num_groups=4,
)
DEEP = UNetConfig(
    dim=8, dim_mults=(1, 2, 2, 1), channels=3, image_size=16, groups=2, heads=2, dim_head=8
)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("pictures")
    save_ticket(synthetic_ticket(DEEP, 0.8), where / "deep.pt")
    save_ticket(synthetic_ticket(SHALLOW, 0.5, "vector:4"), where / "shallow.pt")
    save_ticket(synthetic_ticket(DIFFUSERS, 0.7), where / "diffusers.pt")
    return where


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def draw(capsys: Capture, picture: Path, *tickets: Path) -> dict[str, Any]:
    arguments = ["inspect", *map(str, tickets), "--batch", "2", "--json", "--plot", str(picture)]
    assert main(arguments) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


class Elements(HTMLParser):
    """Every element's tag and attributes, and the text inside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script":
            self.scripts.append(data)


def test_the_page_carries_the_figures_of_json(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    found = draw(capsys, tmp_path / "a.html", folder / "deep.pt")
    text = (tmp_path / "a.html").read_text()
    elements = Elements(text)
    assert json.loads("".join(elements.scripts)) == [
        {key: value for key, value in found.items() if key != "schema"}
    ]
    rects = [attributes for tag, attributes in elements.found if tag == "rect"]
    bars = {
        (r["data-layer"], r["data-series"], int(r["data-value"] or 0))
        for r in rects
        if "data-layer" in r
    }
    assert bars == {
        (item["name"], key, item[key])
        for item in found["operations"]
        if item["dense_flops"]
        for key in ("dense_flops", "executed_flops", "surviving_flops")
    }
    buffers = {(r["data-buffer"], int(r["data-value"] or 0)) for r in rects if "data-buffer" in r}
    assert buffers == {(item["name"], item["size"]) for item in found["memory"]["buffers"]}
    stored = {(r["data-part"], int(r["data-value"] or 0)) for r in rects if "data-stored" in r}
    storage = found["storage"]
    assert ("dense float32", storage["dense_bytes"]) in stored
    assert ("gzip of dense", storage["gzip_of_dense_bytes"]) in stored
    assert ("names and alignment", storage["container_bytes"]) in stored
    for name, part in storage["encodings"].items():
        assert (f"{name}: values", part["values"]) in stored
    dots = [attributes for tag, attributes in elements.found if tag == "circle"]
    points = {
        (d["data-layer"], float(d["data-intensity"] or 0), float(d["data-gflops"] or 0))
        for d in dots
    }
    assert points == {
        (item["name"], item["intensity"], item["gflops_per_s"])
        for item in found["operations"]
        if item["dense_flops"]
    }


def test_lengths_are_in_proportion(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    draw(capsys, tmp_path / "a.html", folder / "deep.pt")
    elements = Elements((tmp_path / "a.html").read_text())
    for key in ("data-series", "data-stored"):
        rects = [r for tag, r in elements.found if tag == "rect" and key in r]
        wide = rects[: len(rects) // 2]  # the wide drawing comes first
        longest = max(wide, key=lambda r: float(r["width"] or 0))
        scale = float(longest["width"] or 0) / float(longest["data-value"] or 0)
        for rect in wide:
            assert float(rect["width"] or 0) == pytest.approx(
                scale * float(rect["data-value"] or 0), abs=0.02
            )


def test_the_page_needs_nothing_else(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    draw(capsys, tmp_path / "a.html", folder / "deep.pt", folder / "shallow.pt")
    text = (tmp_path / "a.html").read_text()
    elements = Elements(text)
    for tag, attributes in elements.found:
        assert tag not in ("link", "img", "iframe", "object"), tag
        assert not {"src", "href"} & attributes.keys()
    assert "url(" not in text
    assert "@import" not in text
    assert {a.get("type") for t, a in elements.found if t == "script"} == {"application/json"}


def test_names_are_escaped(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "<b>&amp; </script>.pt".replace("/", "_")
    save_ticket(synthetic_ticket(SHALLOW, 0.5), path)
    draw(capsys, tmp_path / "a.html", path)
    text = (tmp_path / "a.html").read_text()
    assert "<b>&amp; " not in re.sub(r'(?s)<script type="application/json".*?</script>', "", text)
    assert "&lt;b&gt;&amp;amp; " in text


def test_figures_of_matplotlib(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    shallow = folder / "shallow.pt"
    draw(capsys, tmp_path / "a.png", shallow)
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 800
        assert len(picture.convert("L").getcolors() or ()) > 16
    draw(capsys, tmp_path / "a.svg", shallow, shallow)
    text = (tmp_path / "a.svg").read_text()
    assert text.startswith("<?xml")
    assert "</svg>" in text


def test_pictures_that_cannot_be_drawn(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    for name, message in (
        ("a.gif", "expected a suffix among .html, .png, .svg, .pdf"),
        ("no/such/a.html", "expected an existing folder"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            check_plot(tmp_path / name)
        picture = str(tmp_path / name)
        assert main(["inspect", str(folder / "deep.pt"), "--plot", picture]) == 1
        assert message in capsys.readouterr().err


def test_charts_take_their_figures_from_the_inspection(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    found = draw(capsys, tmp_path / "a.html", folder / "deep.pt")
    charts = charts_of(found)
    assert charts.memory.arena == found["totals"]["arena_bytes"]
    stages = charts.memory.stages
    assert stages[0].first == 0
    assert stages[-1].end == len(charts.memory.live)
    assert all(a.end == b.first for a, b in itertools.pairwise(stages))
    assert {"down.0", "mid", "up.1", "final"} <= {stage.name for stage in stages}
    kept = stages_apart(stages, 10)
    assert all(abs(a.middle - b.middle) >= 10 for a in kept for b in kept if a is not b)
    named = slowest(charts.roofline)
    assert named[0][1].us == max(point.us for point in charts.roofline.points)
    assert len(named) == len({names for names, _ in named}) == 5
    this = charts.stored[-1]
    assert this.size == found["totals"]["file_bytes"]


def test_stages_of_names() -> None:
    assert stage_of("down.0.block1.conv1") == "down.0"
    assert stage_of("mid.attn") == "mid"
    assert stage_of("final_block.conv1") == stage_of("final_cat") == "final"
    assert stage_of("load images") == "load"


def test_round_steps() -> None:
    assert round_steps(10.0, 5) == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert round_steps(0.07, 3) == pytest.approx([0.0, 0.05])
    assert round_steps(0.0, 3) == [0.0]


def test_wrapped_lines_fit() -> None:
    lines = wrapped("a name " + "x" * 100, 150.0)
    assert len(lines) > 3
    assert max(map(len, lines)) * 6.3 <= 150.0


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium is installed")
    with Browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


OUTSIDE = """
(() => {
  const found = [];
  if (document.documentElement.scrollWidth > innerWidth) found.push("the page is too wide");
  for (const svg of document.querySelectorAll("svg")) {
    const all = svg.getBoundingClientRect();
    if (all.width === 0) continue;
    const texts = [...svg.querySelectorAll("text")].map(
      (text) => [text, text.getBoundingClientRect()]);
    const inside = [...svg.querySelectorAll("rect, circle, polyline")].map(
      (part) => [part, part.getBoundingClientRect()]);
    for (const [part, box] of [...texts, ...inside])
      if (box.left < all.left - 0.6 || box.right > all.right + 0.6 || box.top < all.top - 0.6 ||
          box.bottom > all.bottom + 0.6)
        found.push(`${svg.ariaLabel}: ${part.textContent || part.outerHTML} is cut`);
    const plain = texts.filter(([text]) => !text.hasAttribute("stroke"));
    plain.forEach(([text, a], i) => plain.slice(i + 1).forEach(([other, b]) => {
      if (a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom)
        found.push(`${svg.ariaLabel}: ${text.textContent} lies over ${other.textContent}`);
    }));
  }
  for (const one of document.querySelectorAll("h1, h2, h3, p, .fact"))
    if (one.scrollWidth > one.clientWidth + 1) found.push(`${one.textContent} is cut`);
  return found;
})()
"""


@pytest.mark.parametrize("width", [360, 800, 1280])
@pytest.mark.parametrize("tickets", [("deep.pt",), ("diffusers.pt", "shallow.pt")])
def test_nothing_is_cut_in_a_browser(
    tickets: tuple[str, ...],
    width: int,
    browser: Browser,
    folder: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    draw(capsys, tmp_path / "a.html", *(folder / name for name in tickets))
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.call("Emulation.setDeviceMetricsOverride", metrics)
    before = len(browser.requests)
    browser.open((tmp_path / "a.html").as_uri())
    browser.wait(
        "document.querySelectorAll('svg').length >= 8 && document.readyState === 'complete'"
    )
    drawings = "[...document.querySelectorAll('svg')]"
    shown = browser.evaluate(f"{drawings}.filter((s) => s.getBoundingClientRect().width).length")
    assert shown == 4 * len(tickets)
    assert "\n".join(browser.evaluate(OUTSIDE)) == ""
    assert [r for r in browser.requests[before:] if not r.startswith("file:")] == []
