"""Metadata without copies of the noisy picture, and without promises of what an output lacks.

Thumbnails are made again or removed. XMP no longer names a gain map, a film or a depth map that
the output does not hold. All else stays byte for byte. Sources: Adobe's XMP specification, part 3;
EXIF (CIPA DC-008); Google's Ultra HDR and Motion Photo formats.
"""

import hashlib
import io
import re
import struct
import zlib
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

from PIL import Image

_XMP, _PHOTOSHOP, _LAYERS = 700, 34377, 37724  # TIFF tags
_XMP_LEAD = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENSION_LEAD = b"http://ns.adobe.com/xmp/extension/\0"
_PHOTOSHOP_LEAD = b"Photoshop 3.0\0"
_MOST_SEGMENT_BYTES = 65_000
_THUMBNAILS = {1033, 1036}  # resources of Photoshop
_THUMBNAIL_PX = 160
_OFFSET, _LENGTH = 513, 514  # of an EXIF block's thumbnail

# Namespace of XMP → its properties that speak of what an output does not hold.
_GONE = {
    b"http://ns.google.com/photos/1.0/container/": rb"\w+",
    b"http://ns.google.com/photos/1.0/camera/": rb"(?:MotionPhoto|MicroVideo)\w*",
    b"http://ns.google.com/photos/dd/1.0/container/": rb"\w+",
    b"http://ns.google.com/photos/dd/1.0/device/": rb"\w+",
    b"http://ns.google.com/photos/1.0/image/": rb"\w+",
    b"http://ns.adobe.com/hdr-gain-map/1.0/": rb"\w+",
    b"http://ns.apple.com/HDRGainMap/1.0/": rb"\w+",
    b"http://ns.apple.com/pixeldatainfo/1.0/": rb"\w+",
    b"http://ns.xiaomi.com/photos/1.0/camera/": rb"\w+",
    b"http://ns.oppo.com/photos/1.0/camera/": rb"(?:MotionPhoto|VideoLength|OLivePhoto)\w*",
    b"http://ns.adobe.com/xap/1.0/": rb"Thumbnails",
}
_PREFIXES = re.compile(rb"""\sxmlns:([\w.-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")


def clean_tags(tags: MutableMapping[int, Any]) -> None:
    """Remove copies of the noisy picture, and promises of what is left out, from TIFF's tags."""
    tags.pop(_LAYERS, None)
    for tag, clean in ((_XMP, clean_xmp), (_PHOTOSHOP, clean_resources)):
        if isinstance(value := tags.get(tag), bytes):
            tags[tag] = clean(value, [])


def clean_xmp(packet: bytes, dropped: list[str]) -> bytes:
    """An XMP packet without thumbnails and without promises of what is left out.

    Everything else stays byte for byte.

    Args:
        packet: in UTF-8.
        dropped: gets the names of copies that were removed.
    """
    bound = [(m[1], m[2] if m[2] is not None else m[3]) for m in _PREFIXES.finditer(packet)]
    for prefix, uri in dict.fromkeys(bound):
        if names := _GONE.get(uri):
            before = packet
            packet = _without_properties(packet, re.escape(prefix), names)
            if packet != before and names == rb"Thumbnails":
                dropped.append("thumbnail in XMP")
            elif packet != before and uri.endswith(b"/image/"):
                dropped.append("original picture in XMP")
    packet = re.sub(rb"""\s[\w.-]+:provenance\s*=\s*(?:"self#jumbf[^"]*"|'self#jumbf[^']*')""",
                    b"", packet)  # fmt: skip
    # Declarations that nothing uses any more would still name what is gone.
    for prefix, uri in dict.fromkeys(bound):
        is_about = uri in _GONE or uri.startswith(b"http://ns.google.com/photos/")
        if is_about and not re.search(rb"[<\s/]" + re.escape(prefix) + rb":", packet):
            packet = re.sub(
                rb"\sxmlns:" + re.escape(prefix) + rb"""\s*=\s*(?:"[^"]*"|'[^']*')""", b"", packet
            )
    return packet


def clean_resources(data: bytes, dropped: list[str]) -> bytes:
    """Photoshop's image resources without thumbnails.

    Args:
        data: the resources, one after the other.
        dropped: gets the names of copies that were removed.
    """
    kept, at = [], 0
    while at + 12 <= len(data):
        (number,) = struct.unpack_from(">H", data, at + 4)
        size_at = at + 6 + (data[at + 6] + 2) // 2 * 2
        if size_at + 4 > len(data):
            break
        (size,) = struct.unpack_from(">I", data, size_at)
        end = size_at + 4 + size + size % 2
        if number in _THUMBNAILS and data[at : at + 4] == b"8BIM":
            dropped.append("Photoshop's thumbnail")
        else:
            kept.append(data[at:end])
        at = end
    return b"".join(kept) + data[at:]


def clean_segments(segments: bytes, dropped: list[str]) -> bytes:
    """XMP and Photoshop segments of a JPEG file without copies and promises."""
    packets, extensions, resources, kept = [], [], [], []
    at = 0
    while at + 4 <= len(segments):
        size = int.from_bytes(segments[at + 2 : at + 4])
        body = segments[at + 4 : at + 2 + size]
        if body.startswith(_XMP_LEAD):
            packets.append(body.removeprefix(_XMP_LEAD))
        elif body.startswith(_EXTENSION_LEAD):
            extensions.append(body.removeprefix(_EXTENSION_LEAD))
        elif body.startswith(_PHOTOSHOP_LEAD):
            resources.append(body.removeprefix(_PHOTOSHOP_LEAD))
        else:
            kept.append(segments[at : at + 2 + size])
        at += 2 + size
    # An extension: GUID, whole size, offset, part.
    whole = b"".join(part[40:] for part in sorted(extensions, key=lambda part: part[36:40]))
    extension = clean_xmp(whole, dropped)
    guids = {part[:32] for part in extensions}
    guid = hashlib.md5(extension, usedforsecurity=False).hexdigest().upper().encode()
    if not _has_properties(extension):
        extension, guid = b"", b""
    result = []
    for packet in packets:
        packet = clean_xmp(packet, dropped)
        for old in guids if extension != whole else ():
            packet = packet.replace(old, guid)
        if whole and not extension:
            packet = re.sub(rb"""\s[\w.-]+:HasExtendedXMP\s*=\s*(?:""|'')""", b"", packet)
            packet = re.sub(rb"""<([\w.-]+:HasExtendedXMP)\s*(?:/>|>\s*</\1>)""", b"", packet)
        result.append(_segment(0xE1, _XMP_LEAD + packet))
    if extension == whole:
        result += [_segment(0xE1, _EXTENSION_LEAD + part) for part in extensions]
    else:
        for start in range(0, len(extension), _MOST_SEGMENT_BYTES):
            place = guid + struct.pack(">II", len(extension), start)
            part = extension[start : start + _MOST_SEGMENT_BYTES]
            result.append(_segment(0xE1, _EXTENSION_LEAD + place + part))
    whole = b"".join(resources)
    cleaned = clean_resources(whole, dropped)
    parts = resources
    if cleaned != whole:
        starts = range(0, len(cleaned), _MOST_SEGMENT_BYTES)
        parts = [cleaned[start : start + _MOST_SEGMENT_BYTES] for start in starts]
    result += [_segment(0xED, _PHOTOSHOP_LEAD + part) for part in parts]
    return b"".join(result + kept)


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2) + body


def _without_properties(packet: bytes, prefix: bytes, names: bytes) -> bytes:
    """XMP without these properties: as attributes, and as elements with all that they hold."""
    name = prefix + b":" + names
    packet = re.sub(rb"""\s""" + name + rb"""\s*=\s*(?:"[^"]*"|'[^']*')""", b"", packet)
    element = re.compile(rb"<(" + name + rb")(?:\s[^<>]*?)?(?:/>|(?<!/)>.*?</\1\s*>)", re.DOTALL)
    while (shorter := element.sub(b"", packet)) != packet:
        packet = shorter
    return packet


def _has_properties(packet: bytes) -> bool:
    """Whether an XMP packet says anything."""
    for start in re.finditer(rb"<[\w.-]+:Description\b([^>]*)>", packet):
        attributes = re.sub(
            rb"""\s(?:xmlns|rdf):[\w.-]+\s*=\s*(?:"[^"]*"|'[^']*')""", b"", start[1]
        )
        if b"=" in attributes:
            return True
        if not start[1].endswith(b"/") and re.match(rb"\s*<[^/]", packet[start.end() :]):
            return True
    return False


def clean_text(name: bytes, data: bytes, dropped: list[str]) -> bytes:
    """A text chunk of a PNG file, if it is XMP or one of ImageMagick's profiles, cleaned."""
    keyword, _, rest = data.partition(b"\0")
    if name == b"iTXt" and keyword == b"XML:com.adobe.xmp":
        with suppress(ValueError, zlib.error):
            # Whether it is compressed, how, language, translated keyword, text.
            language, translated, text = rest[2:].split(b"\0", 2)
            is_compressed = rest[:1] == b"\1"
            packet = zlib.decompress(text) if is_compressed else text
            cleaned = clean_xmp(packet, dropped)
            if cleaned != packet:
                text = zlib.compress(cleaned) if is_compressed else cleaned
                return b"\0".join([keyword, rest[:2] + language, translated, text])
        return data
    kind = keyword.removeprefix(b"Raw profile type ").lower()
    if kind == keyword.lower() or kind not in {b"exif", b"app1", b"xmp", b"8bim", b"iptc"}:
        return data
    with suppress(ValueError, zlib.error, struct.error, IndexError):
        text = zlib.decompress(rest[1:]) if name == b"zTXt" else rest
        profile = bytes.fromhex("".join(text.decode("latin-1").split("\n")[3:]))
        cleaned = _clean_profile(profile, dropped)
        if cleaned == profile:
            return data
        lines = [cleaned.hex()[at : at + 72] for at in range(0, 2 * len(cleaned), 72)]
        head = text.decode("latin-1").split("\n")[1]
        text = "\n".join(["", head, f"{len(cleaned):8}", *lines, ""]).encode("latin-1")
        return keyword + b"\0" + (b"\0" + zlib.compress(text) if name == b"zTXt" else text)
    return data


def _clean_profile(profile: bytes, dropped: list[str]) -> bytes:
    if profile.startswith(b"Exif\0\0"):
        without = with_thumbnail(profile, None)
        dropped += ["EXIF thumbnail"] * (without != profile)
        return without
    if profile.startswith(b"8BIM"):
        return clean_resources(profile, dropped)
    return clean_xmp(profile, dropped)


def has_thumbnail(block: bytes | None) -> bool:
    """Whether an EXIF block holds a thumbnail."""
    with suppress(struct.error):
        return block is not None and _Block(block).second > 0
    return False


def with_thumbnail(block: bytes, picture: Image.Image | None) -> bytes:
    """An EXIF block whose thumbnail, if it has one, shows `picture`.

    The other bytes stay where they are, since makers' notes point into them. The thumbnail is
    removed if there is no picture, or if the new one would take more bytes.

    Raises:
        struct.error: the block is damaged.
    """
    read = _Block(block)
    if not read.second:
        return block
    tags, result, order = read.tags(), bytearray(block), read.order
    is_jpeg = _OFFSET in tags and _LENGTH in tags
    data = b""
    if is_jpeg and picture is not None:
        data = _thumbnail(picture, tags[_LENGTH][0])
    for where, size in ((_OFFSET, _LENGTH), (273, 279)):  # a JPEG, or strips
        if where in tags and size in tags and tags[size][2] == 1:
            at = read.start + tags[where][0]
            room = max(0, min(tags[size][0], len(result) - at))
            result[at : at + room] = data.ljust(room, b"\0")
    if data:
        struct.pack_into(order + "HII", result, tags[_LENGTH][1] + 2, 4, 1, len(data))
    else:
        struct.pack_into(order + "I", result, read.link, 0)
    if is_jpeg and read.start + tags[_OFFSET][0] + tags[_LENGTH][0] >= len(block):
        del result[read.start + tags[_OFFSET][0] + len(data) :]
    return bytes(result)


class _Block:
    """An EXIF block: where it points to its second directory, that of the thumbnail."""

    def __init__(self, block: bytes) -> None:
        self.block = block
        self.start = 6 if block.startswith(b"Exif\0\0") else 0
        self.order = "<" if block[self.start : self.start + 2] == b"II" else ">"
        first = self.number("I", self.start + 4)
        count = self.number("H", self.start + first)
        self.link = self.start + first + 2 + 12 * count
        self.second = self.number("I", self.link)

    def number(self, layout: str, at: int) -> int:
        return int(struct.unpack_from(self.order + layout, self.block, at)[0])

    def tags(self) -> dict[int, tuple[int, int, int]]:
        """The second directory's first value, position and number of values, by tag."""
        at = self.start + self.second
        found = {}
        for entry in range(at + 2, at + 2 + 12 * self.number("H", at), 12):
            letter = "H" if self.number("H", entry + 2) == 3 else "I"
            value = self.number(letter, entry + 8)
            found[self.number("H", entry)] = value, entry, self.number("I", entry + 4)
        return found


def _thumbnail(picture: Image.Image, most_bytes: int) -> bytes:
    """A small JPEG of a picture; b"" if none takes so few bytes."""
    if picture.mode not in {"1", "L", "LA", "RGB", "RGBA"}:
        return b""
    share = _THUMBNAIL_PX / max(picture.size)
    size = [max(1, round(side * min(1.0, share))) for side in picture.size]
    small = picture.resize((size[0], size[1]), Image.Resampling.BOX, reducing_gap=2.0)
    small = small.convert("L" if picture.mode in {"1", "L", "LA"} else "RGB")
    for quality in (85, 75, 60, 40):
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality)
        if len(buffer.getvalue()) <= most_bytes:
            return buffer.getvalue()
    return b""
