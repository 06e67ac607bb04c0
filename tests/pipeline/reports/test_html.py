"""The HTML report, as a file and in a browser."""

import json
import math
import re
import struct
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from browser import Page, browser_page, find_browser
from PIL import Image
from report_runs import AWKWARD

from denoise_batch.files.ranges import ValueRange
from denoise_batch.quality import Quality
from denoise_batch.reports import html, pictures
from denoise_batch.reports.html import MOST_STEMS, breakable, nice_ticks, render_html
from denoise_batch.reports.report import Report

VOID = {"meta", "link", "img", "input", "br", "wbr", "line", "circle"}


class _Balance(HTMLParser):
    """Fails on tags that do not match; collects references and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href") and value:
                self.references.append(value)
            if name == "id" and value:
                self.ids.append(value)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def parsed(text: str) -> _Balance:
    balance = _Balance()
    balance.feed(text)
    assert balance.open == []
    return balance


def test_the_page_is_well_formed_and_self_contained(run_of: Callable[..., Report]) -> None:
    text = render_html(run_of(3))
    balance = parsed(text)
    assert all(r.startswith(("data:", "#")) for r in balance.references)
    assert len(balance.ids) == len(set(balance.ids))
    assert "default-src 'none'" in text
    assert "ä &lt;b&gt;" in text
    assert "<b>'" not in text
    assert "is no &lt;picture&gt;" in text
    assert "+10.00" in text


def test_the_wheel_contains_the_template_style_and_script() -> None:
    root = Path(__file__).parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["denoise_batch"]
    packed = {path for pattern in patterns for path in (root / "pipeline").glob(pattern)}
    assets = root / "pipeline" / "reports" / "assets"
    assert {assets / f"report.{suffix}" for suffix in ("html", "css", "js")} <= packed


def test_every_image_of_a_small_run_is_shown_in_full(run_of: Callable[..., Report]) -> None:
    text = render_html(run_of(3))
    assert text.count("<article") == 3
    assert text.count('class="noisy" src="data:image') == 3
    assert text.count("Removed, ×4") == 3 * 2  # caption and alt text


def test_a_long_run_shows_its_worst_and_best_in_full_and_thumbnails_of_the_rest(
    run_of: Callable[..., Report],
) -> None:
    text = render_html(run_of(9), most_in_full=4)
    assert re.findall(r'<article class="card picture" id="image-(\d)"', text) == list("8710")
    assert "Worst 2" in text
    assert "Best 2" in text
    assert text.count("data-before=") == 9 - 4 + 1  # plus the skipped one


def test_the_file_size_is_limited(run_of: Callable[..., Report]) -> None:
    text = render_html(run_of(60), most_in_full=2, most_bytes=150_000)
    assert len(text) < 250_000
    assert text.count('<tr role="row" data-name') == 62
    assert "without a thumbnail" in text


def test_missing_files_are_named(run_of: Callable[..., Report]) -> None:
    report = run_of(2)
    report.results[1].job.output.unlink()
    text = render_html(report)
    assert "Cannot be shown" in text
    parsed(text)


def test_a_float_output_is_shown_in_the_range_of_its_input(tmp_path: Path) -> None:
    for name, values in {"noisy.tif": (0.0, 100.0), "denoised.tif": (25.0, 50.0)}.items():
        Image.frombytes("F", (2, 1), struct.pack("2f", *values)).save(tmp_path / name)
    _, scale = pictures.load(tmp_path / "noisy.tif")
    image, _ = pictures.load(tmp_path / "denoised.tif", scale)
    assert list(image.tobytes()) == [64, 128]


def test_an_input_that_links_to_itself_has_a_title(
    run_of: Callable[..., Report], tmp_path: Path
) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    report = run_of(1)
    options = replace(report.options, inputs=(str(tmp_path / "loop.png"),))
    assert "Denoised: loop.png" in render_html(replace(report, options=options))


def test_an_infinite_loss_is_not_shown_as_a_number(run_of: Callable[..., Report]) -> None:
    perfect = Quality(None, None, math.inf, 30.0, "reference")
    assert "-inf" not in render_html(run_of(2, lambda index: perfect))


def test_an_unexpected_error_costs_one_image_only(
    run_of: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path, scale: ValueRange | None = None) -> tuple[Image.Image, ValueRange]:
        if path.name == "img1.png":
            raise ValueError("<images> do not match")
        return pictures.load(path, scale)

    monkeypatch.setattr(html, "load", load)
    text = render_html(run_of(3))
    assert text.count("Cannot be shown: ValueError: &lt;images&gt; do not match") == 1
    assert text.count('class="noisy" src="data:image') == 2
    parsed(text)


def test_estimates_are_marked_and_missing_ones_explained(run_of: Callable[..., Report]) -> None:
    def quality(index: int) -> Quality | None:
        if index == 0:
            return Quality(30.0, 2.0, reason="the noise is not white, which an estimate needs")
        if index == 1:
            return None
        return Quality(25.0, 1.0, 20.0, 31.0, "estimate")

    text = render_html(run_of(4, quality))
    parsed(text)
    assert ">est.</span>" in text
    assert "Monte-Carlo SURE" in text
    assert "no PSNR: the noise is not white" in text


def test_a_run_without_quality_has_no_empty_columns(run_of: Callable[..., Report]) -> None:
    text = render_html(run_of(2, lambda index: None))
    parsed(text)
    assert "PSNR in" not in text
    assert "σ̂ in" not in text


def charts_of(text: str) -> list[ElementTree.Element]:
    return [
        ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    ]


def test_a_chart_is_valid_svg_with_one_item_an_image(run_of: Callable[..., Report]) -> None:
    charts = charts_of(render_html(run_of(5)))
    assert [chart.get("aria-label") for chart in charts] == [
        "PSNR of every image before and after",
        "Noise of every image before and after",
    ]
    items = charts[0].findall("g")
    assert len(items) == 5
    assert items[-1].findtext("title") == f"{AWKWARD}: 20.00 → 30.00 dB"
    for circle in charts[0].iter("circle"):
        assert 0 <= float(circle.get("cx", "nan")) <= 520
        assert 0 <= float(circle.get("cy", "nan")) <= 230


def test_charts_thin_out_thousands_of_images(run_of: Callable[..., Report]) -> None:
    report = run_of(2)
    results = tuple(
        replace(report.results[0], quality=Quality(n, n / 2, n, n + 1, "reference"))
        for n in range(2500)
    )
    many = replace(report, summary=replace(report.summary, results=results))
    for chart in charts_of(render_html(many, most_in_full=2, most_bytes=0)):
        assert len(chart.findall("g")) == MOST_STEMS
        assert "of 2500 images" in "".join(chart.itertext())


def test_charts_leave_out_what_is_infinite_or_missing(run_of: Callable[..., Report]) -> None:
    def quality(index: int) -> Quality | None:
        return [Quality(None, None, 20.0, math.inf, "reference"), None][index % 2]

    assert charts_of(render_html(run_of(4, quality))) == []


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (18.3, 34.9), (5, 5), (0, 0), (-3, 1e6), (0.1, 0.11)]
)
def test_ticks_are_few_and_span_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))


def show_slider(page: Page) -> None:
    """Scroll to the first slider without animation."""
    page.run(
        "document.querySelector('.compare').scrollIntoView({block: 'center', behavior: 'instant'})"
    )


def frame_of(page: Page) -> tuple[float, float, float, float]:
    """Return left, top, width and height of the first slider."""
    left, top, width, height = page.run(
        "(() => { const r = document.querySelector('.compare').getBoundingClientRect();"
        " return [r.x, r.y, r.width, r.height]; })()"
    )
    return left, top, width, height


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    browser = find_browser()
    if browser is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with browser_page(browser, tmp_path / "profile") as page:
        yield page


def test_sliders_tables_and_themes_work_in_a_browser(
    page: Page, run_of: Callable[..., Report], tmp_path: Path
) -> None:
    report = run_of(8)
    text = render_html(report, most_in_full=4)
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    page.resize(1280, 900)
    page.open(tmp_path / "report.html")

    # Mouse
    show_slider(page)
    at = "getComputedStyle(document.querySelector('.compare')).getPropertyValue('--at')"
    left, top, width, height = frame_of(page)
    middle = top + height / 2
    assert page.run(at) == "50%"
    page.mouse("mousePressed", left + width / 2, middle)
    page.mouse("mouseMoved", left + 0.8 * width, middle)
    page.mouse("mouseReleased", left + 0.8 * width, middle, is_down=False)
    assert float(page.run(at).rstrip("%")) == pytest.approx(80, abs=1)
    page.mouse("mouseMoved", left + 0.2 * width, middle, is_down=False)
    assert float(page.run(at).rstrip("%")) == pytest.approx(80, abs=1)  # released
    clip = page.run("getComputedStyle(document.querySelector('.compare .noisy')).clipPath")
    assert "calc(" in clip or "%" in clip

    # Keyboard, on what the mouse focused
    before = float(page.run(at).rstrip("%"))
    page.key("ArrowLeft", 37)
    assert float(page.run(at).rstrip("%")) == before - 1
    page.key("Home", 36)
    assert page.run(at) == "0%"
    assert "0 %" in page.run("document.activeElement.getAttribute('aria-valuetext')")

    # Touch
    page.resize(400, 800, touch=True)
    show_slider(page)
    left, top, width, height = frame_of(page)
    middle = top + height / 2
    page.touch("touchStart", (left + 0.5 * width, middle))
    page.touch("touchMove", (left + 0.3 * width, middle))
    page.touch("touchEnd")
    page.until(f"Math.abs(parseFloat({at}) - 30) < 2")
    assert page.run("document.documentElement.scrollWidth <= innerWidth")  # no horizontal scrolling

    # The table sorts, unknown values last, and finds names
    page.resize(1280, 900)
    first = "document.querySelector('tbody tr:not([hidden])').dataset.name"
    gain = "[...document.querySelectorAll('th')].findIndex(h => h.innerText.startsWith('PSNR out'))"
    page.run(f"document.querySelectorAll('th button')[{gain}].click()")
    assert page.run(first) == "img7.png"
    assert page.run(f"document.querySelectorAll('th')[{gain}].ariaSort") == "ascending"
    page.run(f"document.querySelectorAll('th button')[{gain}].click()")
    assert page.run(first) == report.results[0].job.name
    last = "document.querySelector('tbody tr:last-child').dataset.status"
    assert page.run(last) in ("failed", "skipped")
    page.run("search.value = 'IMG3'; search.dispatchEvent(new Event('input'))")
    assert page.run(first) == "img3.png"
    assert page.run("count.textContent") == "1 of 10"

    # The system and the button switch between light and dark
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.run(colour)
    page.resize(1280, 900, is_dark=True)
    dark = page.run(colour)
    assert dark != light
    page.run("document.getElementById('theme').click()")
    assert page.run(colour) == light

    page.screenshot(tmp_path / "shot.png")
    with Image.open(tmp_path / "shot.png") as shot:
        assert shot.size == (1280, 900)
        assert len(shot.convert("RGB").getcolors(1 << 24) or ()) > 100
    assert page.errors == []


def test_the_header_of_the_table_sticks_and_pictures_follow_it(
    page: Page, run_of: Callable[..., Report], tmp_path: Path
) -> None:
    text = render_html(run_of(30), most_in_full=4)
    assert text.index('id="summary"') < text.index('id="table"') < text.index("<article")
    contents = text[text.index("<nav") : text.index("</nav>")]
    for target in re.findall(r'href="#([\w-]+)"', contents):
        assert f'id="{target}"' in text
    assert contents.count('href="#image-') == 4
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    top = "document.querySelector('thead').getBoundingClientRect().top"
    for width in (1400, 390):
        page.resize(width, 800)
        page.open(tmp_path / "report.html")
        page.run("document.querySelectorAll('tbody tr')[20].scrollIntoView({behavior: 'instant'})")
        header = "document.querySelector('th').getBoundingClientRect().top"
        assert page.run(f"Math.abs({header}) < 2 && {top} < 2"), width
    assert page.errors == []


def test_the_dialog_zooms_pans_and_goes_on_with_both_sides_alike(
    page: Page, run_of: Callable[..., Report], tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text(render_html(run_of(8), most_in_full=4), encoding="utf-8")
    page.resize(400, 500)
    page.open(tmp_path / "report.html")
    page.run("document.querySelector('.enlarge').click()")
    page.until("document.querySelector('dialog .noisy').naturalWidth > 0")
    name = "document.getElementById('dialog-name').textContent"
    zoom = "document.getElementById('zoom').textContent"
    places = (
        "JSON.stringify([...document.querySelectorAll('.pane img')].map((image) => {"
        " const pane = image.parentElement.getBoundingClientRect();"
        " const box = image.getBoundingClientRect();"
        " return [box.left - pane.left, box.top - pane.top, box.width].map(Math.round); }))"
    )

    def alike() -> list[int]:
        before, after = json.loads(page.run(places))
        assert before == after
        found: list[int] = before
        return found

    assert page.run(name) == "img7.png"
    assert alike()[2] == 400  # as large as fits
    page.key("1", 49)
    assert page.run(zoom) == "100 %"
    assert alike()[2] == 96
    for _ in range(12):
        page.key("+", 187)
    left, top, width = alike()
    assert width > 96 * 12
    page.key("ArrowRight", 39)
    assert alike()[0] == left - 60
    page.mouse("mousePressed", 60, 300)
    page.mouse("mouseMoved", 90, 290)
    page.mouse("mouseReleased", 90, 290, is_down=False)
    assert alike()[:2] == [left - 30, top - 10]
    page.run("document.getElementById('pair').click()")
    alike()
    assert page.run("document.getElementById('divider').checkVisibility()") is False
    page.key("0", 48)
    assert alike()[2] == 199  # half of the window

    # Also the images of which there are only thumbnails, in the table's order
    seen = [page.run(name)]
    page.run("document.getElementById('previous').click()")
    while page.run("!document.getElementById('previous').disabled"):
        page.run("document.getElementById('previous').click()")
    seen = [page.run(name)]
    while page.run("!document.getElementById('next').disabled"):
        page.key("PageDown", 34)
        seen.append(page.run(name))
    assert seen == [AWKWARD, *(f"img{index}.png" for index in range(1, 8)), "old.png"]
    assert page.run("document.getElementById('place').textContent") == "9 of 9"
    page.key("Escape", 27)
    page.until("!document.querySelector('dialog').open")
    assert page.errors == []


def test_paper_phones_and_browsers_without_scripts_show_everything(
    page: Page, run_of: Callable[..., Report], tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text(render_html(run_of(3)), encoding="utf-8")
    colour = "getComputedStyle(document.body).backgroundColor"
    beside = (
        "(() => { const [a, b] = [...document.querySelectorAll('.compare img')].map("
        "(image) => image.getBoundingClientRect()); return b.right <= a.left && b.width > 99; })()"
    )
    page.resize(1000, 800, is_dark=True)
    page.open(tmp_path / "report.html")
    assert page.run(beside) is False
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.send("Emulation.setEmulatedMedia", media="print", features=dark)
    assert page.run(colour) == "rgb(255, 255, 255)"
    assert page.run("getComputedStyle(document.querySelector('h2')).color") == "rgb(22, 32, 44)"
    assert page.run(beside) is True
    page.send("Emulation.setEmulatedMedia", media="")

    # On a phone each row is a card with its labels, and no name is cut.
    page.resize(390, 844, touch=True)
    page.open(tmp_path / "report.html")
    assert page.run("document.documentElement.scrollWidth") == 390
    label = "getComputedStyle(document.querySelectorAll('tbody td')[1], '::before').content"
    assert page.run(label) == '"Size"'
    assert page.run(
        "[...document.querySelectorAll('td')].every(c => c.scrollWidth <= c.clientWidth)"
    )

    page.send("Emulation.setScriptExecutionDisabled", value=True)
    page.send("Page.navigate", url=(tmp_path / "report.html").as_uri())
    page.until("document.readyState === 'complete' && !document.documentElement.className")
    assert page.run(beside) is True
    assert page.run("document.getElementById('search').checkVisibility()") is False
    assert page.errors == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_background(theme: str) -> None:
    """By WCAG 2.1, contrast (minimum)."""
    style = (Path(html.__file__).parent / "assets" / "report.css").read_text(encoding="utf-8")
    block = style[style.index("[data-theme" if theme == "dark" else ":root {") :].partition("}")[0]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block))

    def luminance(name: str) -> float:
        parts = [int(colours[name][at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    texts = ("ink", "soft", "before", "after", "bad", "good")
    pairs = [(text, ground) for text in texts for ground in ("paper", "card")]
    pairs += [("after", "after-soft"), ("bad", "bad-soft"), ("soft", "line")]
    for text, ground in pairs:
        low, high = sorted((luminance(text), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


def test_names_may_break_after_their_marks_only() -> None:
    assert breakable("a/b_c-d.png") == "a/<wbr>b_<wbr>c-<wbr>d.<wbr>png"
    assert breakable("<i>.png") == "&lt;i&gt;.<wbr>png"
    assert breakable("\x1b[1m") == "\\<wbr>x1b[1m"
