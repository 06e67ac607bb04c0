"""Which photographs the training corpus takes from which Debian package: data, looked at by eye."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Selection:
    """Which photographs to take from one package.

    Attributes:
        package: name of the Debian package.
        root: folder of the package that patterns and exclude start from.
        patterns: globs below root.
        licence: what the package states as a whole, where nothing finer is said.
        exclude: fnmatch patterns below root: what is no photograph, or shows people.
        origin: root's name in the source package, by which debian/copyright calls it.
        beside: file that states a photograph's licence, seen from its folder; * is its stem.
        bundles: Qt resource bundles, unpacked where they lie.
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
            # Small copies of what explore_monuments has.
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
        # Small, and downscaled already by whoever chose them.
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
