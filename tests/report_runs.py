"""Hand-made results and summaries for tests of reports."""

from denoise_batch.models import shipped_file, shipped_names
from denoise_batch.quality import Quality
from denoise_batch.streaming.result import Result, Summary

SECONDS = {"decode": 0.01, "transfer": 0.0, "compute": 0.06, "encode": 0.02, "measure": 0.01}
AWKWARD = "ä <b>'\"&.png"


def quality_of(index: int) -> Quality:
    return Quality(25.0 + index, 1.0, 20.0 - index / 10, 30.0 - index / 10, "reference")


def summary_of(results: list[Result], seconds: float = 2.0) -> Summary:
    return Summary(tuple(results), seconds, "cpu", str(shipped_file(shipped_names()[0])))
