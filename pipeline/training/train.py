"""Noise2Noise training: two noisy versions of each tile, mini-batch SGD.

Lehtinen et al., "Noise2Noise: learning image restoration without clean data" (2018): against
targets with independent, unbiased noise, the mean squared error has the same minimum as against
clean targets.
"""

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoise_batch.kernels import (
    SGD,
    Adam,
    AdamW,
    DeviceError,
    ExponentialMovingAverage,
    Muon,
    OptionError,
    TrainingError,
)
from denoise_batch.kernels.errors import first_line, is_out_of_memory
from denoise_batch.kernels.optim import Optimizer

from ..device import deterministic_algorithms, device_failures, precision_on, torch_dtype
from ..metrics import psnrs_of_tiles
from ..models import LevelEstimator, Network, find_weights, load_weights
from ..progress import Progress, Stop
from .data import Counts, load_data
from .data_files import compare_range
from .distributed import ProcessGroup
from .model_card import model_card
from .options import TrainOptions
from .pairs import Generators, Pairs, StoredPairs, Validation, mean_and_std, tiles_per_chunk
from .run_folder import Curves, RunFolder, TrainingState, ValidationResult, draw_samples
from .scene_pairs import ScenePairs
from .update import Update, trained_part

STRONG_LEVEL = 10 / 255  # from which noise is seen whatever the picture is
# Most tiles are told a level that is a little wrong, as an estimate is, or much too high, and those
# with weak noise always: so the network looks for itself, and a level too high does little harm.
EXACT_SHARE, TOO_HIGH_SHARE = 0.4, 0.2
LEVEL_SPREAD, TOO_HIGH_SPREAD = 0.3, 0.8  # deviations of its logarithm
LEVEL_OFFSET, TOO_HIGH_OFFSET = 4 / 255, 16 / 255
# A run validates at these parts of its length, but takes a tenth of its time for it at most: a tile
# costs about three times as much in training as in validation.
VALIDATION_SHARE = 0.02
STEPS_PER_VALIDATED_BATCH = 3
FIRST_VALIDATION_S = 10.0
LONGEST_WARMUP = 0.1  # part of a run


@dataclass(frozen=True)
class TrainStart:
    """What is known when training begins.

    Attributes:
        counts: size of the data.
        tiles: training tiles per epoch.
        noisy_psnr: dB of the noisy validation tiles, of one MSE over all of them.
        step: steps that a resumed run has done.
        epoch: the same in epochs.
        steps: steps of the whole run; None if its length is given in minutes.
        best: the best validation of a resumed run so far.
    """

    counts: Counts
    tiles: int
    noisy_psnr: float
    step: int
    epoch: float
    steps: int | None
    best: ValidationResult | None


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        start: the validation of the weights of --init; None without them.
        best: the best validation; `start` if none was better.
        noisy_psnr: dB of the noisy validation tiles, of one MSE over all of them.
        noisy_psnr_mean: the same, averaged over tiles.
        gain: of the best over the noisy tiles, in dB of the PSNR that ranks validations.
        weights: best.safetensors.
    """

    start: ValidationResult | None
    best: ValidationResult
    noisy_psnr: float
    noisy_psnr_mean: float
    gain: float
    weights: Path


def train(
    options: TrainOptions,
    progress: Progress[TrainStart, ValidationResult] | None = None,
    group: ProcessGroup | None = None,
    stop: Stop | None = None,
    command: str = "",
) -> Outcome:
    """Train a network and leave its best weights in the run folder.

    A killed run that is resumed from its last checkpoint ends with the same weights, bit for bit,
    as an uninterrupted one. The weights of --init are validated first, and stay the best until
    others are better.

    Args:
        options: the run.
        progress: receives the start, every step and the result of every validation.
        group: the processes that train together (`process_group`), each calling this function with
            the same options; by default this process alone.
        stop: once set, the run finishes its step, saves a checkpoint and ends.
        command: that began the run, for its model card.

    Raises:
        KeyboardInterrupt: the run was stopped; in the middle of a step the last checkpoint stays.
        OptionError: the run folder holds another run, or the device does not compute in the
            precision.
        TrainingError: there is no usable data, the loss is no longer finite, or the run folder
            cannot be written.
        DeviceError: the device is not available, or failed, or its memory is too small.
    """
    group = group or ProcessGroup()
    stop = Stop() if stop is None else stop  # an unset one is false
    progress = progress if progress and group.is_first else Progress()
    strictly = deterministic_algorithms() if options.deterministic else nullcontext()
    failures = device_failures(options.device, "checkpoints are kept for --resume")
    with strictly, failures, _clear_errors(options):
        device = group.device(options.device)
        precision = precision_on(options.precision, device)
        group.check_batch_size(options.batch_size)
        folder = RunFolder(options.output, group)
        folder.check(options)

        data = _load_data(options, device)
        pairs, validation = data.pairs, data.validation
        group.check_same("data and noisy dB are", (data.counts, round(data.noisy_psnr, 2)))

        generators = Generators(device)
        network, earlier = _new_network(options, pairs, generators)
        network.to(device).set_compute_dtype(torch_dtype(precision))
        trainee = trained_part(network, options)
        group.prepare(trainee)
        parameters = trainee.parameters()
        average = ExponentialMovingAverage(parameters, options.ema)
        loss_sum = torch.zeros((), device=device)
        state = TrainingState(network, _new_optimizer(options, parameters), average, loss_sum)
        update = Update(state, options, pairs.known_share, group)
        schedule = Schedule(options, len(pairs), len(validation.noisy))
        folder.start(options)
        if options.resume:
            folder.load_checkpoint(state)
        progress.on_start(
            TrainStart(
                counts=data.counts,
                tiles=len(pairs),
                noisy_psnr=data.noisy_psnr,
                step=state.step,
                epoch=schedule.epoch(state.step),
                steps=None if options.minutes is not None else schedule.steps(state),
                best=state.best,
            )
        )
        batches = _batches(len(pairs), options, state.step)
        saved_at = time.monotonic()
        validator = _Validator(options, data, schedule, folder, group, earlier, command)

        try:
            network.train()
            while True:
                if stop:
                    raise KeyboardInterrupt
                if schedule.is_due(state):
                    result = validator.validate(state)
                    state.finish_validation(result)
                    folder.save_checkpoint(state)
                    saved_at = time.monotonic()
                    progress.on_result(result)
                    network.train()
                if schedule.is_over(state):
                    break
                lr = schedule.learning_rate(state)
                training_step(state, pairs, next(batches), lr, options, generators, update)
                progress.on_step("", state.step, schedule.steps(state))
                if time.monotonic() - saved_at > 60 * options.checkpoint_minutes:
                    folder.save_checkpoint(state)
                    saved_at = time.monotonic()
        except KeyboardInterrupt:
            if state.is_consistent:
                folder.save_checkpoint(state)
            raise
        finally:
            validator.curves.draw()
    assert state.best is not None  # the end of a run is validated
    gain = state.best.validation_psnr - data.noisy_psnr
    if options.ranks_by_mean:
        gain = state.best.validation_psnr_mean - data.noisy_psnr_mean
    noisy_psnrs = data.noisy_psnr, data.noisy_psnr_mean
    return Outcome(state.start, state.best, *noisy_psnrs, gain, folder.best)


@dataclass(frozen=True)
class _Data:
    """What a run trains on, and validates with.

    Attributes:
        pairs: the training tiles.
        validation: the validation tiles.
        counts: size of the data.
        chunk: validation tiles whose errors are computed at once.
        noisy_psnr: dB of the noisy validation tiles, of one MSE over all of them.
        noisy_psnr_mean: the same, averaged over tiles.
    """

    pairs: Pairs
    validation: Validation
    counts: Counts
    chunk: int
    noisy_psnr: float
    noisy_psnr_mean: float


def _load_data(options: TrainOptions, device: torch.device) -> _Data:
    warnings = compare_range(options)
    try:
        pairs, validation, counts = load_data(options, device)
    except TrainingError as error:
        raise TrainingError("; ".join((str(error), *warnings))) from error
    counts = replace(counts, notes=(*counts.notes, *warnings))
    chunk = tiles_per_chunk(validation.clean.shape[3])
    psnrs = psnrs_of_tiles(validation.noisy, validation.clean, chunk)
    return _Data(pairs, validation, counts, chunk, *psnrs)


class _Validator:
    """Validates a run's network, and keeps in its folder what that gave.

    Attributes:
        curves: of the validations so far.
    """

    def __init__(
        self,
        options: TrainOptions,
        data: _Data,
        schedule: "Schedule",
        folder: RunFolder,
        group: ProcessGroup,
        earlier: dict[str, Any],
        command: str,
    ) -> None:
        self._options = options
        self._data = data
        self._schedule = schedule
        self._folder = folder
        self._group = group
        self._earlier = earlier  # how the weights of --init were trained
        self._command = command
        loss = "estimator" if options.estimator else options.loss
        self.curves = Curves(folder.curves, data.noisy_psnr, loss)

    def validate(self, state: TrainingState) -> ValidationResult:
        """Validate the averaged weights, and write them if they are the best, table and pictures.

        Raises:
            TrainingError: the loss or the PSNR is not finite.
        """
        options, group, data = self._options, self._group, self._data
        clean, noisy = data.validation.clean, data.validation.noisy
        training_loss = _finish_steps(state, options, group)
        with state.updating(), state.average.applied():
            level = None if options.estimator else group.local_rows(data.validation.level)
            local = denoise_tiles(state.network, group.local_rows(noisy), level)
            denoised = group.all_gather(local, len(noisy))
            psnrs = psnrs_of_tiles(denoised, clean, data.chunk)
            _check_finite(psnrs[0], "validation PSNR", state, options)
            result = _result(state, self._schedule, training_loss, *psnrs)
            training = _describe(options, data, result)
            if group.is_first:
                if options.estimator:
                    said = {**self._earlier, "estimator": training}
                else:  # an estimator stays as it was
                    kept = {key: self._earlier[key] for key in self._earlier if key == "estimator"}
                    said = {**training, **kept}
                self._folder.save_weights(state.network, result, said)
        if group.is_first:
            rows = self._folder.record(result)
            self.curves.add(rows)
            card = model_card(options, state.network, data.counts, training, rows, self._command)
            self._folder.save_card(card)
            if result.is_best or result.number == 1:
                draw_samples(self._folder.samples, clean, noisy, denoised)
        return result


@contextmanager
def _clear_errors(options: TrainOptions) -> Iterator[None]:
    """Turn a full disk and full memory into errors that say how to mend it."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{error.filename or options.output}: {error.strerror or error}; mend it, then go on "
            "with --resume"
        ) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"--device {options.device}: its memory is too small ({first_line(error)}); "
            f"checkpoints are kept; use a smaller --batch-size (now {options.batch_size}), "
            f"--tile-px ({options.tile_px}) or --validation-tiles ({options.validation_tiles})"
        ) from error


def training_step(
    state: TrainingState,
    pairs: Pairs,
    indices: Tensor,
    lr: float,
    options: TrainOptions,
    generators: Generators,
    update: Update,
) -> None:
    """Train on one batch; the host never waits for the device, except for camera noise (JPEG).

    Args:
        state: updated in place; its network is in training mode.
        pairs: the training tiles.
        indices: the tiles of the global batch, int64 (n,), on the host.
        lr: learning rate of this step.
        options: seed and augmentation.
        generators: seeded here for this step.
        update: of this state, with the processes that share the batch.
    """
    started = time.perf_counter()
    network, group = state.network, update.group

    def denoise(images: Tensor) -> Tensor:
        output = network.eval()(group.local_rows(images))
        network.train()
        return group.scatter_back(output, images)

    generators.seed(options.seed, state.step)
    noisy, target, level = pairs.batch(indices, generators, denoise)
    if options.augment:
        noisy, target = _random_symmetry(noisy, target, generators)
    told = _roughly(level, generators) if network.spec.takes_level else level
    state.optimizer.lr = lr
    with state.updating():
        update(noisy, target, level, told)
        state.step += 1
        state.seconds += group.broadcast_time(time.perf_counter() - started)


def weakness(level: Tensor) -> Tensor:
    """Return how weak a level is, from 1 for no noise through ½ at `STRONG_LEVEL` to 0."""
    return 1 / (1 + (level / STRONG_LEVEL).square())


def _roughly(level: Tensor, generators: Generators) -> Tensor:
    """Return the level, for some tiles a little off and for some too high, as estimates are."""
    draw = torch.randn(3, len(level), generator=generators.device, device=level.device)
    share = torch.special.ndtr(draw[2])
    is_too_high = share > 1 - TOO_HIGH_SHARE
    size = draw.abs()
    spread = torch.where(is_too_high, TOO_HIGH_SPREAD * size[0], LEVEL_SPREAD * draw[0])
    excess = TOO_HIGH_OFFSET * size[1].square()  # far too high sometimes, as of dithering
    offset = torch.where(is_too_high, excess, LEVEL_OFFSET * size[1])
    rough = level * spread.exp() + offset
    return torch.where(share < EXACT_SHARE * (1 - weakness(level)), level, rough)


def denoise_tiles(
    network: Network, noisy: Tensor, level: Tensor | None = None, batch_size: int = 50
) -> Tensor:
    """Return the network's output for tiles (N, C, H, W), in inference mode.

    Args:
        network: set to inference mode.
        noisy: the tiles.
        level: of their noise, (N,); estimated by default where the network takes one.
        batch_size: tiles at once.
    """
    network.eval()
    levels = [None] * len(noisy) if level is None else torch.split(level, batch_size)
    parts = zip(torch.split(noisy, batch_size), levels, strict=False)
    return torch.cat([network.forward(part, of_part) for part, of_part in parts])


@dataclass(frozen=True)
class Schedule:
    """Length of a run, in epochs, steps or minutes; the learning rate and validations along it.

    Attributes:
        options: the run.
        tiles: tiles per epoch.
        validation_tiles: tiles of a validation.
    """

    options: TrainOptions
    tiles: int
    validation_tiles: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch."""
        return math.ceil(self.tiles / self.options.batch_size)

    def tiles_until(self, step: int) -> int:
        """Return the tiles that the steps before this one train on."""
        epochs, steps = divmod(step, self.steps_per_epoch)
        return epochs * self.tiles + min(steps * self.options.batch_size, self.tiles)

    def epoch(self, step: int) -> float:
        """Return the epochs, with a fraction, that are done before this step."""
        return self.tiles_until(step) / self.tiles

    def is_due(self, state: TrainingState) -> bool:
        """Whether to validate now: the start, at a mark, at the end, or for a first look."""
        if state.step == state.validations == 0:
            return self.options.init is not None
        if state.step == state.validated_step:
            return False
        if self.is_mark(state):
            return True
        seconds = state.total_seconds + state.seconds
        return (
            state.validated_step == 0
            and not self.options.deterministic
            and seconds >= FIRST_VALIDATION_S
            and self.steps(state) >= self._least_steps
        )

    def is_mark(self, state: TrainingState) -> bool:
        """Whether this step is the run's last, or one at which every such run validates.

        A run in minutes looks at the time since its last validation instead.
        """
        if self.is_over(state):
            return True
        if self.options.minutes is None:
            part = math.ceil(VALIDATION_SHARE * self.steps(state))
            return state.step % max(part, self._least_steps) == 0
        is_time = state.seconds >= VALIDATION_SHARE * 60 * self.options.minutes
        return is_time and state.step - state.validated_step >= self._least_steps

    @property
    def _least_steps(self) -> int:
        """The steps that take about ten times as long as a validation."""
        return math.ceil(
            STEPS_PER_VALIDATED_BATCH * self.validation_tiles / self.options.batch_size
        )

    def is_over(self, state: TrainingState) -> bool:
        """Whether the run has reached its length."""
        return self.fraction(state) >= 1

    def fraction(self, state: TrainingState) -> float:
        """Return the fraction of the run that is done, from 0; 1 or more at its end.

        Minutes count time spent in steps, summed over resumed parts of the run, without validation
        and waiting.
        """
        if self.options.minutes is not None:
            return (state.total_seconds + state.seconds) / (60 * self.options.minutes)
        return state.step / self.steps(state)

    def steps(self, state: TrainingState) -> int:
        """Return the steps of the whole run; an estimate if its length is given in minutes."""
        if self.options.minutes is not None:
            fraction = self.fraction(state)
            return max(round(state.step / fraction), state.step) if fraction > 0 else 1
        return self.options.steps or self.options.epochs * self.steps_per_epoch

    def learning_rate(self, state: TrainingState) -> float:
        """Return the next step's rate: linear warm-up, then constant or a half cosine to 0."""
        options, fraction = self.options, self.fraction(state)
        if options.warmup_epochs:
            epoch = state.step / self.steps_per_epoch
            risen = max(epoch / options.warmup_epochs, fraction / LONGEST_WARMUP)
            if risen < 1:
                return options.lr * (risen + 0.01) / 1.01
        if options.schedule == "constant":
            return options.lr
        if options.minutes is None:
            # The cosine begins where the warm-up ends; in minutes that moment is not known.
            warmup = options.warmup_epochs * self.steps_per_epoch / self.steps(state)
            warmup = min(warmup, LONGEST_WARMUP)
            fraction = (fraction - warmup) / (1 - warmup)
        return options.lr * 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0)))


def _new_network(
    options: TrainOptions, pairs: Pairs, generators: Generators
) -> tuple[Network, dict[str, Any]]:
    """Load the weights of --init, or make a network standardised by the noisy training tiles.

    Standardisation matters more than anything else (course paper, section V). A network has no
    estimator before that is trained.

    Returns:
        The network, and how the weights of --init were trained.
    """
    initial = torch.Generator().manual_seed(options.seed)
    if options.init is not None:
        loaded = load_weights(find_weights(options.init))
        network = loaded.network
        if network.architecture != options.network:
            raise OptionError(
                f"--init {options.init}: holds {network.architecture}, but --network is "
                f"{options.network}"
            )
        if options.estimator and network.estimator is None:
            network.estimator = LevelEstimator(initial)
        return network.train(), loaded.training
    generators.seed(options.seed, -1)
    mean, std = mean_and_std(pairs, options.tile_px, generators)
    std = [value or 1.0 for value in std]  # an empty channel has none
    network = Network(options.network, mean, std, initial)
    network.estimator = None
    return network, {}


def _new_optimizer(options: TrainOptions, parameters: list[Tensor]) -> Optimizer:
    lr, decay = options.lr, options.weight_decay
    if options.optimizer == "sgd":
        nesterov = options.nesterov and options.momentum > 0
        return SGD(parameters, lr, options.momentum, nesterov, decay)
    if options.optimizer == "muon":
        return Muon(parameters, lr, options.momentum, options.nesterov, decay)
    kind = {"adam": Adam, "adamw": AdamW}[options.optimizer]
    return kind(parameters, lr, weight_decay=decay)


def _batches(count: int, options: TrainOptions, step: int) -> Iterator[Tensor]:
    """Yield the indices of every step's tiles, from this step on."""
    steps_per_epoch = math.ceil(count / options.batch_size)
    epoch, done = divmod(step, steps_per_epoch)
    for number in itertools.count(epoch):
        order = _epoch_order(count, options, number)
        for place in range(done, steps_per_epoch):
            yield order[place * options.batch_size :][: options.batch_size]
        done = 0


def _epoch_order(count: int, options: TrainOptions, number: int) -> Tensor:
    """Return every tile's index once; the order depends only on seed and epoch."""
    if not options.shuffle:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + number)
    return torch.randperm(count, generator=generator)


def _random_symmetry(
    noisy: Tensor, target: Tensor, generators: Generators
) -> tuple[Tensor, Tensor]:
    """Apply one of the square's eight symmetries, the same to the whole batch."""
    choice = int(torch.randint(8, (), generator=generators.host))
    if choice & 4:
        noisy, target = noisy.flip(3), target.flip(3)
    quarters = choice & 3
    return noisy.rot90(quarters, (2, 3)), target.rot90(quarters, (2, 3))


def _finish_steps(state: TrainingState, options: TrainOptions, group: ProcessGroup) -> float | None:
    """Wait for the device and return the mean loss since the last validation; None before any step.

    Raises:
        TrainingError: it is not finite.
    """
    if state.step == 0:
        return None
    started = time.perf_counter()
    loss = state.loss_sum.item() / (state.step - state.validated_step)
    _check_finite(loss, "loss", state, options)
    state.seconds += group.broadcast_time(time.perf_counter() - started)
    return loss


def _check_finite(value: float, name: str, state: TrainingState, options: TrainOptions) -> None:
    """Check that training has not diverged.

    Raises:
        TrainingError: it has.
    """
    if math.isfinite(value):
        return
    if state.step == 0:
        raise TrainingError(
            f"--init {options.init}: the {name} of these weights is {value}; start from others"
        )
    kept = f"; the best weights so far are in {options.output}" if state.best else ""
    raise TrainingError(
        f"the {name} became {value} by step {state.step}: use a smaller --lr (now "
        f"{options.lr:g}) or a longer --warmup-epochs{kept}"
    )


def _result(
    state: TrainingState,
    schedule: Schedule,
    training_loss: float | None,
    psnr: float,
    psnr_mean: float,
) -> ValidationResult:
    seconds = max(state.seconds, 1e-9)
    tiles = schedule.tiles_until(state.step) - schedule.tiles_until(state.validated_step)
    # The first look depends on the clock; of the same run's weights the same shall be the best.
    is_candidate = schedule.options.minutes is not None or schedule.is_mark(state)
    if state.best is None:
        is_better = True
    elif schedule.options.ranks_by_mean:
        is_better = psnr_mean > state.best.validation_psnr_mean
    else:
        is_better = psnr > state.best.validation_psnr
    return ValidationResult(
        number=state.validations + 1,
        step=state.step,
        epoch=schedule.epoch(state.step),
        training_loss=training_loss,
        validation_psnr=psnr,
        validation_psnr_mean=psnr_mean,
        lr=state.optimizer.lr if state.step else 0.0,
        seconds=seconds,
        images_per_s=tiles / seconds,
        is_best=is_candidate and is_better,
    )


def _describe(options: TrainOptions, data: _Data, result: ValidationResult) -> dict[str, object]:
    """Return what a weights file says about its training."""
    pairs = data.pairs
    # Only a two-tensor file brings tiles of its own number and size.
    tile_px = pairs.tile_px if isinstance(pairs, StoredPairs) else options.tile_px
    method = pairs.method if isinstance(pairs, ScenePairs) else "shots"
    return {
        **({} if options.value_range is None else {"range": list(options.value_range)}),
        **({} if options.axes is None else {"axes": options.axes}),
        **({} if method == "shots" else {"self": method}),
        "noise": options.noise if options.kind == "clean" else options.kind,
        "targets": options.targets,
        "loss": "mse of √level" if options.estimator else options.loss,
        "seed": options.seed,
        "step": result.step,
        "epoch": round(result.epoch, 3),
        "validation_psnr": round(result.validation_psnr, 3),
        "validation_psnr_mean": round(result.validation_psnr_mean, 3),
        "noisy_psnr": round(data.noisy_psnr, 3),
        "noisy_psnr_mean": round(data.noisy_psnr_mean, 3),
        "validation_tiles": len(data.validation.noisy),
        "tiles": len(pairs),
        "tile_px": tile_px,
    }
