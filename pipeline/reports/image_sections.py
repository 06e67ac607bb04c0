"""The parts of the HTML report that show images: pictures in full, and the table of all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ..quality import Quality
from ..streaming.result import Result
from .pictures import VIEW_PX, Thumbnails, View
from .report import Report
from .table import is_scored

TALLEST_VIEW_PX = 640
_NOTHING = '<span class="soft">–</span>'


@dataclass(frozen=True)
class Pictures:
    """What is shown of one image.

    Attributes:
        thumbnails: before and after.
        view: in full, for some images.
        problem: why there is nothing to show.
    """

    thumbnails: Thumbnails | None = None
    view: View | None = None
    problem: str = ""


def views(
    report: Report,
    in_full: Sequence[Result],
    numbers: dict[int, int],
    pictures: dict[int, Pictures],
) -> str:
    """Pictures in full, worst first; of a long run the worst and the best."""
    if not in_full:
        return ""
    done, half = report.totals.done, len(in_full) // 2
    blocks = []
    if done > len(in_full):
        groups = [
            (f"Worst {half}", f"of {done}", in_full[:half]),
            (f"Best {half}", f"of {done}", in_full[half:]),
        ]
    else:
        order = "in the order of their quality, worst first" if done > 1 else ""
        groups = [("Before and after", order, in_full)]
    for title, note, group in groups:
        small = f"<small>{note}</small>" if note else ""
        blocks.append(f"<h2>{title}{small}</h2>")
        for result in group:
            number = numbers[id(result)]
            blocks.append(_article(result, number, pictures.get(number, Pictures())))
    return "".join(blocks)


def _article(result: Result, number: int, picture: Pictures) -> str:
    name = escape(result.job.name)
    head = f'<header><h3>{name}</h3><p class="facts">{_facts(result)}</p></header>'
    if picture.view is None:
        problem = escape(picture.problem or "the report had no room for this picture")
        body = f'<p class="soft">Cannot be shown: {problem}</p>'
    else:
        seen = picture.view
        crops = "".join(
            f'<figure><img src="{uri}" alt="{escape(caption)}: the part of {name} that changed '
            f'most" loading="lazy"><figcaption>{escape(caption)}</figcaption></figure>'
            for caption, uri in seen.crops
        )
        residual = (
            f'<figure class="wide"><img src="{seen.residual}" alt="What was removed from {name}, '
            'amplified four times around gray" loading="lazy"><figcaption>Removed from the whole '
            "picture, ×4 around gray. Outlines in it would be lost detail.</figcaption></figure>"
        )
        shown = slider(seen.noisy, seen.denoised, result.job.name, seen.size)
        body = (
            f'<div class="split">{shown}<div class="crops" aria-label="Where the most changed, '
            f'pixel by pixel">{crops}{residual}</div></div>'
        )
    return f'<article class="card picture" id="image-{number}">{head}{body}</article>'


def slider(noisy: str, denoised: str, name: str, size: tuple[int, int] | None) -> str:
    """Both images on top of each other; the range input is for keyboards and screen readers."""
    name = escape(name)
    extent = f' width="{size[0]}" height="{size[1]}"' if size else ""
    width = f' style="max-width:{_view_width(size)}px;width:100%"' if size else ""
    source = (f' src="{denoised}"', f' src="{noisy}"') if denoised else ("", "")
    return (
        f'<div class="compare"{width}>'
        f'<img class="denoised"{source[0]}{extent} alt="{name}, denoised">'
        f'<img class="noisy"{source[1]}{extent} alt="{name}, noisy">'
        f'<input type="range" min="0" max="100" step="1" value="50" '
        f'aria-label="{name}: how much of the noisy picture is shown">'
        '<span class="edge" aria-hidden="true"></span>'
        '<span class="tag l" aria-hidden="true">Noisy</span>'
        '<span class="tag r" aria-hidden="true">Denoised</span></div>'
    )


def _view_width(size: tuple[int, int]) -> int:
    """CSS pixels: small pictures twice as large, tall ones no taller than a screen."""
    width, height = size
    zoom = 2 if max(size) <= VIEW_PX // 2 else 1
    return max(240, min(zoom * width, round(width * TALLEST_VIEW_PX / height)))


def _facts(result: Result) -> str:
    quality = result.quality
    facts = []
    if result.size:
        pages = f", {result.pages} pages" if result.pages > 1 else ""
        facts.append(f"{result.size[0]}×{result.size[1]}{pages}")
    if quality is not None:
        if quality.sigma_in_255 is not None and quality.sigma_out_255 is not None:
            facts.append(
                f"σ̂ <b>{quality.sigma_in_255:.1f}</b> → <b>{quality.sigma_out_255:.1f}</b>"
            )
        if quality.psnr_in is not None and quality.psnr_out is not None:
            mark = est(quality.basis == "estimate")
            facts.append(
                f"PSNR <b>{_db(quality.psnr_in)}</b> → <b>{_db(quality.psnr_out)}</b> dB{mark}"
            )
        if quality.gain is not None and math.isfinite(quality.gain):
            side = "good" if quality.gain > 0 else "bad"
            facts.append(f'gain <b class="{side}">{quality.gain:+.2f} dB</b>')
        elif quality.reason:
            facts.append(f"no PSNR: {escape(quality.reason)}")
    return "".join(
        f'<span class="num">{fact}</span>' for fact in facts if "no PSNR" not in fact
    ) + ("".join(f"<span>{fact}</span>" for fact in facts if "no PSNR" in fact))


def table(report: Report, numbers: dict[int, int], pictures: dict[int, Pictures]) -> str:
    """Every image as a row of a table that sorts and searches."""
    results = report.results
    has_quality = any(result.quality and result.quality.sigma_in_255 for result in results)
    has_psnr = any(is_scored(result.quality) for result in results)
    headings = [("Image", "name"), ("Size", "")]
    headings += [("σ̂ in", ""), ("σ̂ out", "")] * has_quality
    headings += [("PSNR in", ""), ("PSNR out", ""), ("Gain", "")] * has_psnr
    headings += [("Time", ""), ("Status", "")]
    head = "".join(
        f'<th scope="col" class="{kind}"><button type="button">{text}</button></th>'
        for text, kind in headings
    )
    body = "".join(
        _row(result, numbers[id(result)], pictures, has_quality, has_psnr) for result in results
    )
    failed = ""
    if report.totals.failed:
        failed = '<label><input type="checkbox" id="failed"> only failed</label>'
    hidden = sum(
        result.status != "failed" and numbers[id(result)] not in pictures for result in results
    )
    missing = f" · {hidden} without a thumbnail, to keep this file small" if hidden else ""
    return (
        f'<h2 id="table">All images<small>a thumbnail opens before and after{missing}</small></h2>'
        '<div class="tools"><input type="search" id="search" placeholder="Find by name" '
        f'aria-label="Find images by name">{failed}<span class="soft num" id="count" '
        'aria-live="polite"></span></div>'
        f'<div class="tablebox"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _row(
    result: Result,
    number: int,
    pictures: dict[int, Pictures],
    has_quality: bool,
    has_psnr: bool,
) -> str:
    quality, name = result.quality, escape(result.job.name)
    picture = pictures.get(number, Pictures())
    thumbnail = ""
    if picture.thumbnails is not None:
        where = (
            f'data-full="image-{number}"'
            if picture.view
            else f'data-before="{picture.thumbnails.noisy}"'
        )
        thumbnail = (
            f'<button type="button" class="thumb" aria-label="Before and after: {name}" {where}>'
            f'<img src="{picture.thumbnails.denoised}" alt="" loading="lazy"></button>'
        )
    reason = f'<p class="{"bad" if result.status == "failed" else ""}">{escape(result.reason)}</p>'
    cells = [
        f'<td class="name"><div>{thumbnail}<div>{name}{reason if result.reason else ""}</div>'
        "</div></td>"
    ]
    if result.size:
        cells.append(_cell(result.pixels, f"{result.size[0]}×{result.size[1]}"))
    else:
        cells.append(_cell(None, _NOTHING))
    shown = quality or Quality(None, None)
    if has_quality:
        cells += [_measure(shown.sigma_in_255, 1), _measure(shown.sigma_out_255, 1)]
    if has_psnr:
        mark = est(shown.basis == "estimate")
        cells += [_measure(shown.psnr_in, 2), _measure(shown.psnr_out, 2, mark)]
        cells += [_gain(quality)]
    seconds = sum(result.seconds.values())
    cells.append(_cell(seconds or None, f"{seconds:.2f} s" if seconds else _NOTHING))
    cells.append(f'<td><span class="chip {result.status}">{result.status}</span></td>')
    return f'<tr data-name="{name}" data-status="{result.status}">{"".join(cells)}</tr>'


def _cell(value: float | None, text: str) -> str:
    key = "" if value is None or not math.isfinite(value) else f"{value:.10g}"
    return f'<td data-v="{key}">{text}</td>'


def _measure(value: float | None, digits: int, mark: str = "") -> str:
    if value is None:
        return _cell(None, _NOTHING)
    text = f"{value:.{digits}f}" if math.isfinite(value) else "∞"
    return _cell(value, text + mark)


def _gain(quality: Quality | None) -> str:
    gain = quality.gain if quality else None
    if gain is None or not math.isfinite(gain):
        return _cell(None, _NOTHING)
    side = "good" if gain > 0 else "bad"
    return _cell(gain, f'<span class="{side}">{gain:+.2f}</span>')


def est(is_estimated: bool) -> str:
    """The mark of an estimated value."""
    mark = '<span class="est" title="estimated without a reference, by SURE">est.</span>'
    return mark if is_estimated else ""


def _db(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "∞"
