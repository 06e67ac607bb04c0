"""Image files that are not read: what they are, by suffix and by content, and the way to read them.

`images.py` lists what is read. Anything else is refused under its own name, although Pillow may
open it: of camera RAW it would read the thumbnail, of FITS the samples without their scale.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

from PIL import Image

from denoise_batch.kernels.errors import ImageError

from .extras import EXTRAS, READ

RAW = "camera RAW"

# Kind → suffixes. Of a folder's files with these suffixes a run says that it passed them over.
_KINDS = {
    RAW: ".3fr .ari .arw .bay .cap .cr2 .cr3 .crw .dcr .dcs .dng .drf .eip .erf .fff .gpr .iiq "
    ".k25 .kdc .mdc .mef .mos .mrw .nef .nrw .orf .pef .ptx .r3d .raf .raw .rw2 .rwl .rwz .sr2 "
    ".srf .srw .x3f",
    "HEIF": ".heic .heics .heif .heifs .hif .avci .avcs",
    "JPEG XL": ".jxl",
    "JPEG XR": ".jxr .wdp .hdp",
    "OpenEXR": ".exr",
    "Radiance HDR": ".hdr .rgbe .xyze",
    "a Photoshop document": ".psd .psb",
    "a layered document": ".xcf .kra .ora .clip .afphoto .pdn",
    "DDS": ".dds",
    "an icon": ".ico .cur .icns",
    "FITS": ".fit .fits .fts",
    "DICOM": ".dcm .dicom",
    "a microscope's own format": ".czi .lif .nd2 .lsm .stk .oib .oif .ims .mrc .dm3 .dm4",
    "a whole slide": ".svs .ndpi .scn .bif .mrxs .vms",
    "NIfTI": ".nii .nrrd .mha .mhd",
    "a stereo JPEG": ".jps .mpo",
    "animated AVIF or PNG": ".avifs .apng",
    "JPEG-LS": ".jls",
    "high-throughput JPEG 2000": ".jph .jhc",
    "BPG": ".bpg",
    "FLIF": ".flif",
    "DjVu": ".djvu .djv",
    "DPX or Cineon": ".dpx .cin",
    "a bitmap of X": ".xbm .xpm",
    "Photo CD": ".pcd",
    "Encapsulated PostScript": ".eps .epsf",
    "a metafile of Windows": ".wmf .emf",
}  # fmt: skip
_KIND_OF = {suffix: kind for kind, row in _KINDS.items() for suffix in row.split()}
# Suffixes that an installed extra reads.
READ_WITH_EXTRAS = frozenset(suffix for suffix, kind in _KIND_OF.items() if kind in READ)

# Where in the file → what is there → kind.
_SIGNATURES = (
    (0, b"FUJIFILMCCD-RAW", RAW),
    (0, b"IIRO", RAW), (0, b"IIRS", RAW), (0, b"MMOR", RAW),  # Olympus
    (0, b"IIU\0", RAW),  # Panasonic, Leica
    (0, b"FOVb", RAW),  # Sigma
    (0, b"\0MRM", RAW),  # Minolta
    (6, b"HEAPCCDR", RAW), (8, b"CR\2", RAW), (4, b"ftypcrx", RAW),  # Canon
    (8, b"IIII", RAW), (8, b"MMMM", RAW),  # Phase One
    (0, b"ARRI", RAW),
    (4, b"ftypjxl ", "JPEG XL"), (4, b"JXL ", "JPEG XL"), (0, b"\xff\x0a", "JPEG XL"),
    (0, b"II\xbc", "JPEG XR"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"), (0, b"#?RGBE", "Radiance HDR"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"gimp xcf", "a layered document"),
    (0, b"DDS ", "DDS"),
    (0, b"\0\0\1\0", "an icon"), (0, b"\0\0\2\0", "an icon"), (0, b"icns", "an icon"),
    (0, b"SIMPLE  =", "FITS"), (0, b"XTENSION=", "FITS"),
    (128, b"DICM", "DICOM"),
    (0, b"ZISRAWFILE", "a microscope's own format"),
    (0, b"\xda\xce\xbe\x0a", "a microscope's own format"),
    (0, b"BPG\xfb", "BPG"),
    (0, b"FLIF", "FLIF"),
    (0, b"AT&TFORM", "DjVu"),
    (0, b"SDPX", "DPX or Cineon"), (0, b"XPDS", "DPX or Cineon"),
    (0, b"%!PS", "Encapsulated PostScript"), (0, b"\xc5\xd0\xd3\xc6", "Encapsulated PostScript"),
    (0, b"%PDF", "PDF"),
    (0, b"\x89HDF", "HDF5"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"<svg", "SVG"),
    (0, b"PK\3\4", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip file"),
    (4, b"ftypqt", "a film"), (4, b"ftypisom", "a film"), (4, b"ftypmp4", "a film"),
    (0, b"\x1aE\xdf\xa3", "a film"),
)  # fmt: skip
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"miaf"}
_TIFF_MAGIC = {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}
# Kinds whose files are TIFF inside; others that hold TIFF have the wrong name.
_LIKE_TIFF = {RAW, "a microscope's own format", "a whole slide"}
# Formats whose first bytes cannot be chance.
_SIGNED_FORMATS = {"PNG", "JPEG", "GIF", "WEBP", "TIFF", "JPEG2000", "AVIF"}
_ICON_HEADS = {b"\0\0\1\0", b"\0\0\2\0"}

HEAD_BYTES = 4096  # as many as `kind_of_content` looks at


def kind_of_name(path: Path) -> str:
    """Kind of the image files with this suffix that are not read; "" for all other suffixes."""
    return _KIND_OF.get(path.suffix.lower(), "")


def kind_of_content(head: bytes) -> str:
    """Kind of a file that is not read, by its first `HEAD_BYTES`; "" if they do not tell."""
    for at, signature, kind in _SIGNATURES:
        if head.startswith(signature, at) and _is_plausible(head):
            return kind
    if head[4:8] == b"ftyp":
        brands = {head[at : at + 4] for at in range(8, min(int.from_bytes(head[:4]), 256), 4)}
        if brands & _HEIF_BRANDS and not brands & {b"avif", b"avis"}:
            return "HEIF"
    return ""


def kind_to_read(path: Path, head: bytes) -> str:
    """Refuse a file that is not read, by its content and, where that may deceive, by its name.

    Args:
        path: the file; a TIFF file is believed to be what its name says, and so is camera RAW.
        head: its first `HEAD_BYTES`.

    Returns:
        The kind, if an extra reads it; "" for what is read without.

    Raises:
        ImageError: it names the kind, and the way to a file that is read.
    """
    if kind := kind_of_content(head):
        if kind in READ:
            return kind
        raise ImageError(refusal(kind))
    kind = kind_of_name(path)
    held = {b"\xff\xd8\xff": "JPEG", b"\x89PN": "PNG"}.get(head[:3], "") if kind == RAW else ""
    if kind and kind not in _LIKE_TIFF and head[:4] in _TIFF_MAGIC:
        held = "TIFF"
    if held:
        raise ImageError(f"is named {path.suffix} ({kind}), but holds {held}; rename it")
    if kind and (kind == RAW or head[:4] in _TIFF_MAGIC):
        if kind == RAW and kind in READ:
            return kind
        raise ImageError(refusal(kind))
    return ""


def unknown_kind(path: Path, head: bytes, readable: Collection[str]) -> str:
    """Kind of a file that cannot be opened, for the user; "" if nothing tells.

    Args:
        path: the file.
        head: its first `HEAD_BYTES`.
        readable: Pillow's names of the formats that are read: such a file is damaged.
    """
    begun = _begun(head)
    if begun & set(readable):
        return ""
    return kind_of_name(path) or next(iter(sorted(begun)), "")


def begun_format(head: bytes, readable: Collection[str]) -> str:
    """Which of the formats that are read a file begins with, surely; "" if none.

    Args:
        head: its first bytes.
        readable: Pillow's names of these formats.
    """
    return next(iter(sorted(_begun(head) & set(readable) & _SIGNED_FORMATS)), "")


def _begun(head: bytes) -> set[str]:
    """Pillow's names of the formats that a file begins like."""
    Image.init()
    return {
        name
        for name, (_, accepts) in Image.OPEN.items()
        if accepts is not None and accepts(head[:16]) is True
    }


def refusal(kind: str) -> str:
    """Why a file of this kind is not read, and the way to it."""
    way = "convert it to TIFF or PNG first"
    if kind == RAW:
        way = "develop it to a 16-bit TIFF first (darktable-cli, rawtherapee-cli or dcraw -6 -T)"
    if kind in READ:  # but not under this name
        way = "to have it developed, give it the suffix of its kind, such as .dng"
    elif kind in EXTRAS:
        way = f"install the extra: pip install 'denoise-batch[{EXTRAS[kind].name}]', or {way}"
    return f"is {kind}, which is not read; {way}"


def passed_over_line(names: Iterable[str]) -> str:
    """One line on image files that a run passed over; "" without any.

    Args:
        names: of the files.
    """
    counts = count_suffixes(names)
    if not counts:
        return ""
    listed = ", ".join(f"{count} {suffix}" for suffix, count in counts.items())
    kinds = {_KIND_OF.get(suffix, "") for suffix in counts}
    extras = sorted({EXTRAS[kind].name for kind in kinds & EXTRAS.keys()})
    ways = [f"pip install 'denoise-batch[{','.join(extras)}]'"] if extras else []
    ways += ["convert to TIFF or PNG first"] * bool(kinds - EXTRAS.keys())
    return f"passed over: {listed} (not supported; {', '.join(ways)})"


def count_suffixes(names: Iterable[str]) -> dict[str, int]:
    """How many files there are of each suffix, in lower case; the most frequent first."""
    counts: dict[str, int] = {}
    for name in names:
        suffix = Path(name).suffix.lower()
        counts[suffix] = counts.get(suffix, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _is_plausible(head: bytes) -> bool:
    """Whether what looks like an icon's head says how many icons there are: TGA begins like it."""
    return head[:4] not in _ICON_HEADS or 0 < int.from_bytes(head[4:6], "little") <= 64
