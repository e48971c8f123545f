"""Name what bytes are when they are not an image that can be read: a page, a document, a video, a camera's raw file.

Files often have a name that says otherwise. Server and client read their first bytes here.
"""

from __future__ import annotations

import codecs
import re
from typing import Any

HEAD = 4096  # bytes that are looked at
HEIC, PDF = "a HEIC photo", "a PDF document"  # what the client can convert

_BRANDS = (  # of ISO base media files, whose bytes 4 to 8 are `ftyp`
    (re.compile(b"hei[cxms]|hev[cxms]"), HEIC),
    (re.compile(b"avi[fs]"), "an AVIF image"),
    (re.compile(b"mi[af]1|msf1"), HEIC),  # or another image of its family, which does not say more
    (re.compile(b"crx "), "a camera's raw file (Canon CR3)"),
    (re.compile(b"M4[AB] "), "a sound file"),
)
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"PK\3\4", "a ZIP archive or an Office document"),
    (b"PK\5\6", "an empty ZIP archive"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document"),
    (b"{\\rtf", "an RTF document"),
    (b"%!PS", "a PostScript or EPS file"),
    (b"\xc5\xd0\xd3\xc6", "an EPS file"),
    (b"AT&TFORM", "a DjVu document"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL \r\n", "a JPEG XL image"),
    (b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (b"#?R", "a Radiance HDR image"),
    (b"gimp xcf", "a GIMP project"),
    (b"BPG\xfb", "a BPG image"),
    (b"II*\0", "a TIFF that is damaged or of a rare kind, such as a camera's raw file"),
    (b"MM\0*", "a TIFF that is damaged or of a rare kind, such as a camera's raw file"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file (Fujifilm RAF)"),
    (b"IIRO", "a camera's raw file (Olympus ORF)"),
    (b"IIRS", "a camera's raw file (Olympus ORF)"),
    (b"MMOR", "a camera's raw file (Olympus ORF)"),
    (b"IIU\0", "a camera's raw file (Panasonic RW2)"),
    (b"FOVb", "a camera's raw file (Sigma X3F)"),
    (b"\0MRM", "a camera's raw file (Minolta MRW)"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
    (b"FLV\1", "a video (Flash)"),
    (b"\x30\x26\xb2\x75", "a video or sound file (Windows Media)"),
    (b"\0\0\1\xba", "a video (MPEG)"),
    (b"\0\0\1\xb3", "a video (MPEG)"),
    (b"OggS", "a video or sound file (Ogg)"),
    (b"ID3", "a sound file (MP3)"),
    (b"fLaC", "a sound file (FLAC)"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"\x89HDF", "an HDF5 file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file (`git lfs pull` fetches it)"),
)
_TEXTS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"(?is)<(!doctype html|html|head|body|script|title|meta|div)\b"), "an HTML page"),
    (re.compile(rb"(?is)<svg\b|<[?!].*?<svg\b"), "an SVG drawing"),
    (re.compile(rb"<\?xml|<[A-Za-z]"), "an XML document"),
    (re.compile(rb"[\[{]"), "JSON or other text"),
)


def found_format(data: bytes) -> str | None:
    """Return what the bytes are, with an article (`an HTML page`), or None if that is not known.

    Only a decoder can tell whether an image can be read; ask here once it has failed.
    """
    head = data[:HEAD]
    if not data.strip(b"\0"):
        return "nothing but zero bytes" if data else "empty (0 bytes)"
    if head.lstrip(b"\xef\xbb\xbf\0 \t\r\n").startswith(b"%PDF-"):
        return PDF
    if head[4:8] == b"ftyp":
        brands = head[8 : int.from_bytes(head[:4], "big")]
        return next((kind for brand, kind in _BRANDS if brand.search(brands)), "a video (MP4 or QuickTime)")
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WAVE"):
        return "a video (AVI)" if head[8:12] == b"AVI " else "a sound file (WAVE)"
    if head[128:132] == b"DICM":
        return "a DICOM file"
    if head[257:262] == b"ustar":
        return "a tar archive"
    return next((kind for start, kind in _STARTS if head.startswith(start)), None) or _text_format(head)


def _text_format(head: bytes) -> str | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "text in UTF-16"
    if text.translate(None, bytes(range(32, 256)) + b"\t\n\r\f\v\x1b"):  # control characters
        return None
    if kind := next((kind for pattern, kind in _TEXTS if pattern.match(text)), None):
        return kind
    try:
        codecs.utf_8_decode(text, "strict", False)  # the last character may be cut off
    except UnicodeDecodeError:
        return None
    return "plain text"


def is_camera_raw(image: Any) -> bool:
    """Return whether an opened image is a camera's raw file: a TIFF whose first image is a preview or the sensor's."""
    tags = getattr(image, "tag_v2", {})
    is_preview = tags.get(254) == 1 and 330 in tags  # NewSubfileType, SubIFDs
    is_sensor = tags.get(262) == 32803  # PhotometricInterpretation: color filter array
    return is_preview or is_sensor or 50706 in tags or 50752 in tags  # DNGVersion; of Canon's CR2
