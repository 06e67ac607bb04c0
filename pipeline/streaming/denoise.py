"""The main job: folders of noisy images in, the same folders denoised out."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..checkpoint import find_weights, load_weights
from ..device import resolve_device
from ..files.scan import scan
from ..options import DenoiseOptions
from .stream import Result, stream


@dataclass(frozen=True)
class Summary:
    """What a run came to.

    Attributes:
        results: one for every image, in the order of the inputs.
        seconds: from the first read to the last write.
        device: where the network ran.
        weights: the file it was loaded from.
        is_interrupted: Ctrl-C ended the run early; the rest has no result.
    """

    results: tuple[Result, ...]
    seconds: float
    device: str
    weights: str
    is_interrupted: bool

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some failed, 6 every file failed, 130 interrupted."""
        if self.is_interrupted:
            return 130
        failed = sum(result.status == "failed" for result in self.results)
        if failed == 0:
            return 0
        return 6 if failed == len(self.results) else 1


def denoise(
    options: DenoiseOptions,
    on_start: Callable[[int], None] = lambda count: None,
    on_result: Callable[[Result], None] = lambda result: None,
) -> Summary:
    """Do what the options say; one bad image never stops the rest.

    Args:
        options: the run.
        on_start: told the number of images.
        on_result: told of every image as soon as it is done.

    Raises:
        OptionError: an input that is not there, or an output that would overwrite an input.
        NoImagesError: the inputs hold no image.
        DeviceError: the device is not there.
        WeightsError: the weights cannot be used.
    """
    device = resolve_device(options.device)
    weights_file = find_weights(options.weights)
    network = load_weights(weights_file).network.to(device)
    jobs = scan(options.inputs, options.output, recursive=options.recursive)
    on_start(len(jobs))

    results: dict[int, Result] = {}
    positions = {job: position for position, job in enumerate(jobs)}

    def record(result: Result) -> None:
        results[positions[result.job]] = result
        on_result(result)

    started = time.perf_counter()
    todo = []
    for job in jobs:
        if job.output.exists() and not options.overwrite:
            record(Result(job, "skipped"))
        else:
            todo.append(job)
    is_interrupted = False
    try:
        stream(
            todo,
            network,
            device=device,
            batch_size=options.batch_size,
            reference=options.reference,
            quality=options.quality,
            on_result=record,
        )
    except KeyboardInterrupt:
        is_interrupted = True
    return Summary(
        tuple(results[position] for position in sorted(results)),
        time.perf_counter() - started,
        str(device),
        str(weights_file),
        is_interrupted,
    )
