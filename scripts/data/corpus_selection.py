"""The photographs of the training corpus by Debian package, selected by eye."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Selection:
    """The photographs to take from one package.

    Attributes:
        package: name of the Debian package.
        root: folder in the package that `patterns` and `exclude` start from.
        patterns: globs below `root`.
        licence: the package's licence, where no finer one is stated.
        exclude: fnmatch patterns below `root` for drawings and people.
        origin: name of `root` in the source package, as debian/copyright uses it.
        beside: file with a photograph's licence, relative to its folder; * is its stem.
        bundles: Qt resource bundles to unpack in place.
        downscale: one factor for the whole package.
    """

    package: str
    root: str
    patterns: tuple[str, ...]
    licence: str
    exclude: tuple[str, ...] = ()
    origin: str = ""
    beside: str = ""
    bundles: str = ""
    downscale: float | None = None


SELECTIONS = (
    Selection(
        "gcompris-qt-data",
        "usr/share/gcompris-qt/rcc/gcompris/src/activities",
        (
            "categorization/resource/images/*/*.webp",
            "clickgame/resource/*.webp",
            "details/resource/image/*_background.webp",
            "erase/resource/*.webp",
            "explore_farm_animals/resource/animals/*.webp",
            "explore_monuments/resource/*/*.webp",
            "explore_world_animals/resource/animals/*.webp",
            "explore_world_music/resource/music/*.webp",
        ),
        "GPL-3+",
        exclude=(
            *("*/alphabets/*", "*/numbers/*", "*/volleyball*"),
            *("*Gogh*", "*/Eglise_dAuvers*", "*/PortraitOf*"),
            # Musicians.
            *("*/australia*", "*/ireland*", "*/italy*", "*/japan*", "*/mexico*", "*/orchestra*"),
            # Film grain, blown highlights.
            *("*/castleClinton*", "*/castillodeSanMarcos*"),
            # Small copies of images in explore_monuments.
            *("*/monuments/brandenburgGate*", "*/monuments/colosseum*", "*/greatPyramid.*"),
        ),
        origin="src/activities",
        bundles="usr/share/gcompris-qt/rcc/*.rcc",
    ),
    Selection(
        "scratch",
        "usr/share/scratch/Media/Backgrounds",
        ("*/*.jpg",),
        "CC-BY-SA-3.0",
        exclude=(
            *("*/party-room*", "*/room?.*", "*/school2*", "*/spotlight*", "*/woods-and-bench*"),
            # Film grain.
            "*/moon*",
        ),
        origin="Media/Backgrounds",
        # Small, and already downscaled by their editors.
        downscale=1.25,
    ),
    Selection("tuxpaint-data", "usr/share/tuxpaint/templates", ("*.jpg",), "GPL-2+"),
    Selection(
        "lomiri-wallpapers-16.04",
        "usr/share/backgrounds",
        ("*.jpg",),
        "CC-BY-SA-4.0",
        exclude=("analogpattern*", "umang*"),
        origin="16.04",
    ),
    Selection(
        "lomiri-wallpapers-20.04",
        "usr/share/backgrounds",
        ("Kleiber*.jpg",),
        "CC-BY-SA-3.0",
        origin="20.04",
    ),
    Selection(
        "lxqt-themes",
        "usr/share/lxqt/wallpapers",
        ("*.jpg", "*.png"),
        "LGPL-2.1+",
        exclude=("*logo*", "*origami*", "*plasma*", "simple_*", "triangles*"),
        origin="wallpapers",
        beside="License",
    ),
    Selection("mate-backgrounds", "usr/share/backgrounds/mate", ("nature/*.jpg",), "GPL-2+"),
    Selection(
        "palapeli-data", "usr/share/palapeli/collection", ("*.jpg",), "GPL-2+", beside="*.desktop"
    ),
    Selection(
        "plasma-workspace-wallpapers",
        "usr/share/wallpapers",
        ("*/contents/images/2560x1600.jpg",),
        "GPL-2+",
        exclude=("Autumn/*",),
        beside="../../metadata.json",
    ),
)
