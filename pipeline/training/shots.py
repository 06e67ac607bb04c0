"""The shots of a scene, made alike: none is a copy, they lie on each other, and are as bright."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from denoise_batch.kernels import TrainingError

from ..files.ranges import UNIT, ValueRange
from ..files.scratch import memory
from .alignment import Shift, common_area, find_shift
from .brightness import Brightness, find_brightness
from .scene_pairs import Scene

_MOST_AT_WHITE = 1e-3  # share of the pixels that may have the greatest value without being clipped
_EVEN_GAIN = 1.05  # below, a difference in brightness is told as a share of the contrast


@dataclass(frozen=True)
class FoundScene:
    """A scene as it was found: its shots may lie apart, and differ in brightness.

    Attributes:
        scene: the shots.
        ranges: stored samples ↔ [0, 1], of each shot, among all that belong together.
        own: the same of the first shot, by its file alone.
    """

    scene: Scene
    ranges: tuple[ValueRange, ...]
    own: ValueRange


@dataclass(frozen=True)
class MatchedScene:
    """A scene whose shots lie on each other and are as bright as the first.

    Attributes:
        name: for the user.
        scene: the shots.
        shifts: of each shot; none if they were aligned.
        brightness: of the shots that differed from the first one, by their numbers.
    """

    name: str
    scene: Scene
    shifts: tuple[Shift, ...]
    brightness: dict[int, Brightness]


def match_shots(found: FoundScene, name: str) -> MatchedScene:
    """Crop shots to what all of them show, and bring them to the brightness of the first.

    Raises:
        TrainingError: two shots are the same, one is blank or shows another scene, or something
            moved.
    """
    _refuse_useless(found.scene, name)
    scene, shifts = _aligned(found.scene, name)
    scene, brightness = _match_brightness(found, scene, name)
    return MatchedScene(name, scene, shifts, brightness)


def notes_on_shots(matched: Sequence[MatchedScene]) -> tuple[str, ...]:
    """Say of how many scenes shots lay apart or differed in brightness, and where most."""
    notes = []
    shifted = [scene for scene in matched if scene.shifts]
    if shifted:
        most, number = max(
            ((scene, shot) for scene in shifted for shot in range(len(scene.shifts))),
            key=lambda at: max(map(abs, (at[0].shifts[at[1]].down, at[0].shifts[at[1]].right))),
        )
        shift = most.shifts[number]
        notes.append(
            f"shots of {len(shifted)} of {len(matched)} scenes lay apart; each was cropped to what "
            f"all of its shots show ({most.name}: shot {number + 1} by {shift.down:+d} px down, "
            f"{shift.right:+d} px right)"
        )
    differing = [(scene, shot) for scene in matched for shot in scene.brightness]
    if differing:
        most, number = max(differing, key=lambda at: _strength(at[0].brightness[at[1]]))
        factor, difference = _strength(most.brightness[number])
        by = f"{factor:.1f} times" if factor > 1 else f"{100 * difference:.0f} % of the contrast"
        count = len({scene.name for scene, _ in differing})
        notes.append(
            f"shots of {count} of {len(matched)} scenes differ in brightness, by up to {by} "
            f"({most.name}: shot {number + 1}); each was brought to that of its first shot"
        )
    return tuple(notes)


def _strength(brightness: Brightness) -> tuple[float, float]:
    """What to compare differences by: the gain if it is not about 1, then the rest."""
    factor = max(brightness.gain, 1 / brightness.gain)
    return factor if factor > _EVEN_GAIN else 1.0, brightness.difference


def _refuse_useless(scene: Scene, name: str) -> None:
    """Refuse a shot that is another one's copy, noise and all, or blank where others are not."""
    is_blank = (scene.samples == scene.samples[:, :, :1, :1]).flatten(1).all(1)
    if bool(is_blank.all()):
        return
    if bool(is_blank.any()):
        shot = int(is_blank.int().argmax())
        raise TrainingError(f"{name}: shot {shot + 1} has one value everywhere; leave it out")
    seen: dict[int, int] = {}
    for shot, samples in enumerate(scene.samples):
        key = zlib.crc32(memory(samples.contiguous()))
        other = seen.setdefault(key, shot)
        if other != shot and torch.equal(samples, scene.samples[other]):
            raise TrainingError(
                f"{name}: shots {other + 1} and {shot + 1} are the same, noise and all, which "
                "teaches to keep it; leave one of them out, or take another shot"
            )


def _aligned(scene: Scene, name: str) -> tuple[Scene, tuple[Shift, ...]]:
    """Crop shots that lie apart by whole pixels to what all of them show.

    Returns:
        The scene, and the shift of each shot; none if they are aligned.

    Raises:
        TrainingError: parts of a shot moved otherwise than the rest.
    """
    first = scene.unit(0)
    shifts = [Shift(0, 0)]
    for shot in range(1, len(scene)):
        shift = find_shift(first, scene.unit(shot))
        parts, of, pixels = shift.moved
        if parts:
            raise TrainingError(
                f"{name}: {parts} of {of} parts of shot {shot + 1} lie up to {pixels:.0f} px from "
                "where shot 1 has them, beyond a shift of the whole: something moved, or the "
                "camera turned; leave this scene out, or align its shots first"
            )
        shifts.append(shift)
    if not any(shifts):
        return scene, ()
    areas = common_area(shifts, scene.size)
    masks = scene.unknown
    cut = [scene.samples[shot, :, rows, columns] for shot, (rows, columns) in enumerate(areas)]
    samples = torch.empty(len(scene), *cut[0].shape, dtype=scene.samples.dtype)
    for target, crop in zip(samples, cut, strict=True):
        target.copy_(crop)
    if masks is not None:
        masks = torch.stack(
            [masks[shot, :, rows, columns] for shot, (rows, columns) in enumerate(areas)]
        )
    return replace(scene, samples=samples, unknown=masks), tuple(shifts)


def _match_brightness(
    found: FoundScene, scene: Scene, name: str
) -> tuple[Scene, dict[int, Brightness]]:
    """Bring aligned shots to the brightness of the first; what differs otherwise is unknown.

    Returns:
        The scene, and how the shots that differed did, by their numbers.

    Raises:
        TrainingError: a shot shows nothing of what the first one shows.
    """

    def light(shot: int) -> Tensor:
        """In the unit of the shot's range, without its curve."""
        return found.ranges[shot].share(scene.unit(shot))

    masks = torch.zeros(len(scene), 1, *scene.size, dtype=torch.bool)
    if scene.unknown is not None:
        masks |= scene.unknown
    first, differing = light(0), dict[int, Brightness]()
    white = _clipped(first)
    for shot in range(1, len(scene)):
        other = light(shot)
        other_white = _clipped(other)
        hidden = (masks[0] | masks[shot])[0] | white | other_white
        brightness = find_brightness(first, other, hidden)
        if shot == 1 and find_brightness(other, first, hidden) is None:
            raise _of_another_scene(name, 1, 2)
        if brightness is None:
            raise _of_another_scene(name, shot + 1, 1)
        if brightness.is_different:
            masks[shot, 0] |= other_white
            differing[shot] = brightness
    if not differing:
        return scene, {}
    shots = []
    for shot in range(len(scene)):
        values, brightness = light(shot), differing.get(shot, Brightness())
        values = (values - brightness.offset) / brightness.gain
        if brightness.off_line is not None:
            masks[shot, 0] |= brightness.off_line
        # As `denoise-batch` sees the first one, whose file may be another than the brightest one's.
        scale = found.ranges[0]
        shots.append(found.own.to_unit(values * scale.span + scale.offset))
    unknown = masks if bool(masks.any()) else None
    return Scene(torch.stack(shots), UNIT, unknown), differing


def _clipped(light: Tensor) -> Tensor:
    """(H, W): pixels at a shot's greatest value, if they are more than a few."""
    at_white = (light >= light.max()).any(0)
    return at_white & (at_white.float().mean() > _MOST_AT_WHITE)


def _of_another_scene(name: str, shot: int, other: int) -> TrainingError:
    return TrainingError(
        f"{name}: shot {shot} shows nothing of what shot {other} shows: it is another scene, or "
        "too dark; leave it out, or give shots of one scene the same name"
    )
