"""The memory that a file takes, told from its head before anything is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

# Bytes of each sample that a codec, decoding or encoding, takes beside Pillow's image (12
# megapixels of RGB, gray and RGBA, with Pillow 12's libraries).
_CODEC_BYTES = {"JPEG2000": 12, "AVIF": 9, "WEBP": 6}
_CODEC_BYTES |= {"HEIF": 9, "JXL": 12, "RAW": 6}  # not measured
_HOLE_BYTES = 24  # of each pixel, while those without meaning are filled from their surroundings
# Of files whose pages are on disk: of what is known of each page, and of the samples that stand for
# all while their range is sought.
_RECORD_BYTES, _RANGE_BYTES = 1 << 14, 1 << 25


@dataclass(frozen=True)
class PageSize:
    """One page, as it will be decoded.

    Attributes:
        pixels: width times height.
        bands: samples of each pixel, with alpha.
        sample_bytes: of each sample.
        has_holes: it may have pixels without meaning, or outliers: it has alpha, or deep samples.
    """

    pixels: int
    bands: int
    sample_bytes: int
    has_holes: bool = False

    @property
    def total_bytes(self) -> int:
        """Of its samples."""
        return self.pixels * self.bands * self.sample_bytes


@dataclass(frozen=True)
class Footprint:
    """What a file takes.

    Attributes:
        pages: those that hold pictures.
        format: Pillow's name of the file's.
    """

    pages: Sequence[PageSize]
    format: str = ""

    @property
    def pixels(self) -> int:
        """Of all pages."""
        return sum(page.pixels for page in self.pages)

    @property
    def sample_bytes(self) -> int:
        """Of all pages, decoded."""
        return sum(page.total_bytes for page in self.pages)

    def peak_bytes(self, output_format: str) -> int:
        """About the most that its reading and writing take at once, without the network.

        All pages live until the last is written, as read, as denoised and as they will be stored;
        beside them a page at a time is in Pillow, in a codec, or marked pixel by pixel.

        Args:
            output_format: Pillow's name of the output's.
        """
        held = sum(3 * page.total_bytes for page in self._accepted)
        return held + max((self._beside(page, output_format) for page in self._accepted), default=0)

    def peak_bytes_on_disk(self, output_format: str) -> int:
        """The same if the pages are on disk: of two pages at most, which follow each other.

        Args:
            output_format: Pillow's name of the output's.
        """
        pages = [
            5 * page.total_bytes + self._beside(page, output_format) for page in self._accepted
        ]
        is_deep = any(page.sample_bytes > 1 for page in self.pages)
        return max(pages, default=0) + _RECORD_BYTES * len(self.pages) + _RANGE_BYTES * is_deep

    @property
    def disk_bytes(self) -> int:
        """What the pages then take on disk: as read, as denoised, and which pixels they keep."""
        return sum(2 * page.total_bytes + 2 * page.pixels * page.has_holes for page in self.pages)

    @property
    def _accepted(self) -> Sequence[PageSize]:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 1 << 62)
        return [page for page in self.pages if page.pixels <= limit]  # others are refused

    def _beside(self, page: PageSize, output_format: str) -> int:
        """Bytes for a page that is being coded, beside its samples."""
        codec = max(_CODEC_BYTES.get(name, 0) for name in (self.format, output_format))
        holes = _HOLE_BYTES * page.has_holes
        return page.pixels * (2 + max(codec * page.bands, holes)) + 2 * page.total_bytes
