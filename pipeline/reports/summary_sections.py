"""The parts of the HTML report that show the run as a whole: cards, charts, notes, what it was."""

from collections.abc import Sequence
from html import escape

from ..streaming.result import STAGES, Result
from .charts import Change, dumbbells
from .image_sections import est
from .report import Report
from .table import is_scored

MOST_NOTES = 200


def cards(report: Report) -> str:
    """Totals at a glance, and each stage's share of the work."""
    totals, summary = report.totals, report.summary
    counts = [f"{n} failed" for n in (totals.failed,) if n]
    counts += [f"{n} skipped" for n in (totals.skipped,) if n]
    counts += [f"{n} left" for n in (summary.left,) if n]
    cards = [
        (
            "Images denoised",
            str(totals.done),
            ", ".join(counts) or f"{summary.megapixels:.1f} megapixels",
        )
    ]
    if totals.gain is not None and totals.psnr_in is not None:
        estimated = totals.basis == "estimate"
        source = "estimated by SURE" if estimated else "against the references"
        cards.append(
            (
                "Mean gain",
                f"{totals.gain:+.2f} <small>dB</small>{est(estimated)}",
                f"PSNR {totals.psnr_in:.2f} → {totals.psnr_out:.2f} dB, {totals.scored} images, "
                f"{source}",
            )
        )
    if totals.sigma_in_255 is not None:
        cards.append(
            (
                "Noise, mean σ̂",
                f"{totals.sigma_in_255:.1f} <small>→ {totals.sigma_out_255:.1f}</small>",
                "of 255, estimated before and after",
            )
        )
    if totals.done and summary.seconds:
        cards.append(
            (
                "Speed",
                f"{summary.megapixels / summary.seconds:.1f} <small>MP/s</small>",
                f"{totals.done / summary.seconds:.2f} images/s, {_duration(summary.seconds)}",
            )
        )
    items = "".join(
        f'<div class="card"><dt>{title}</dt><dd>{value}</dd><p>{note}</p></div>'
        for title, value, note in cards
    )
    return f'<dl class="cards">{items}</dl>{_stages(report)}'


def _stages(report: Report) -> str:
    seconds = report.summary.stage_seconds
    total = sum(seconds.values())
    if not total:
        return ""
    bars = "".join(
        f'<i class="k{index}" style="width:{100 * seconds[stage] / total:.2f}%"></i>'
        for index, stage in enumerate(STAGES)
    )
    legend = "".join(
        f'<span><i class="k{index}"></i>{stage} <b>{100 * seconds[stage] / total:.0f} %</b></span>'
        for index, stage in enumerate(STAGES)
    )
    return (
        '<div class="card stages"><div class="legend"><span>Work by stage; stages of different '
        f'images overlap</span></div><div class="bar" aria-hidden="true">{bars}</div>'
        f'<div class="legend">{legend}</div></div>'
    )


def charts(results: Sequence[Result]) -> str:
    """PSNR and noise of every image, before and after."""
    sigma, psnr, estimated = [], [], False
    for result in results:
        quality = result.quality
        if quality is None:
            continue
        name = result.job.name
        if quality.sigma_in_255 is not None and quality.sigma_out_255 is not None:
            sigma.append(Change(name, quality.sigma_in_255, quality.sigma_out_255))
        if is_scored(quality) and quality.psnr_in is not None and quality.psnr_out is not None:
            psnr.append(Change(name, quality.psnr_in, quality.psnr_out))
            estimated |= quality.basis == "estimate"
    plots = []
    if len(psnr) > 1:
        kind = "estimated by SURE" if estimated else "against the references"
        svg = dumbbells(psnr, "PSNR of every image before and after", "dB", 2)
        plots.append(("PSNR, dB", kind, svg))
    if len(sigma) > 1:
        svg = dumbbells(sigma, "Noise of every image before and after", "of 255", 1)
        plots.append(("Noise σ̂, of 255", "estimated", svg))
    if not plots:
        return ""
    key = '<b class="before">before</b> → <b class="after">after</b>'
    figures = "".join(
        f'<figure class="card plot"><figcaption>{title} <span>{kind}, {key}</span></figcaption>'
        f"{svg}</figure>"
        for title, kind, svg in plots
    )
    return f'<div class="plots">{figures}</div>'


def notes(results: Sequence[Result]) -> str:
    """What the user should know of single images."""

    found = [note for result in results for note in result.notes]
    if not found:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in found[:MOST_NOTES])
    more = f"<li>{len(found) - MOST_NOTES} more</li>" if len(found) > MOST_NOTES else ""
    return f'<h2>Notes</h2><ul class="card notes">{items}{more}</ul>'


def about(report: Report) -> str:
    """What was run, with what, and what the numbers mean."""
    options = report.options
    rows = [
        ("Inputs", ", ".join(options.inputs)),
        ("Reference", str(options.reference) if options.reference else "none"),
        ("Weights", f"{report.weights['name'] or report.weights['file']}"),
        ("Architecture", report.weights["architecture"] or "unknown"),
        ("Weights' sha256", report.weights["sha256"] or "unknown"),
        ("Device", f"{report.device['name']}: {report.device['description']}"),
        ("Versions", ", ".join(f"{name} {value}" for name, value in report.versions.items())),
        (
            "Options",
            f"strength {options.strength:g}, precision {options.precision}, format "
            f"{options.format}, quality {options.quality}, self-ensemble "
            f"{'on' if options.tta else 'off'}",
        ),
        (
            "σ̂",
            "standard deviation of the noise in units of 1/255, estimated from the picture alone; "
            "fine texture counts a little, in the output as well",
        ),
    ]
    if report.totals.basis == "estimate":
        rows.append(
            (
                "est.",
                "PSNR estimated without a reference by Monte-Carlo SURE (Ramani, Blu, Unser 2008);"
                " it holds for white Gaussian noise and is left out where the noise is not white",
            )
        )
    items = "".join(
        f"<dt>{escape(term)}</dt><dd>"
        + (f"<code>{escape(text)}</code>" if "sha256" in term else escape(text))
        + "</dd>"
        for term, text in rows
    )
    return f'<h2>This run</h2><dl class="card about">{items}</dl>'


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
