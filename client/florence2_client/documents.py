"""The pages of a document as images: PDF, TIFF with several pages, or any single image."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import reprlib
import threading
from collections.abc import Iterator

from PIL import Image

from florence2.config import ImageConfig
from florence2.errors import InvalidImage, InvalidOption
from florence2.formats import PDF, found_format
from florence2.images import encoded_image
from florence2_client.images import ImageLike, decoded_image, read_bytes

POINTS_PER_INCH = 72
NEW_SUBFILE_TYPE, OVERVIEW = 254, 1  # a tag of TIFF, and its bit for a smaller copy of another page

_pdfium = threading.Lock()  # PDFium runs in one thread at a time


def pages(document: ImageLike, dpi: float = 200) -> Iterator[Image.Image]:
    """Yield the pages of a PDF, rendered at `dpi`, or of a TIFF; any other image is a single page.

    The document may have any form that an image may have. Pages that would be too large are rendered smaller. PDF needs
    the package pypdfium2. Raise InvalidImage if the document cannot be read, or only with a password.

    >>> [page.size for page in pages("scene.png")]
    [(768, 768)]
    """
    if not (isinstance(dpi, (int, float)) and math.isfinite(dpi) and dpi > 0):
        raise InvalidOption(f"dpi must be a number above 0, not {reprlib.repr(dpi)}")
    in_memory = isinstance(document, Image.Image) or hasattr(document, "__array__")
    data = None if in_memory else encoded_image(read_bytes(document))
    if data is not None and found_format(data) == PDF:
        yield from _pdf_pages(data, dpi)
    elif data is not None and data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        for frame in _page_frames(io.BytesIO(data)):
            yield decoded_image(data, frame)
    else:
        yield decoded_image(document if data is None else data)


def page_count(file: str) -> int:
    """Return how many pages a file has: those of a PDF or TIFF, as its suffix says, and 1 for any other.

    A document that cannot be read counts as one page, too; `pages` says what is wrong with it.
    """
    suffix = os.path.splitext(file)[1].lower()
    if suffix in (".tif", ".tiff"):
        return len(_page_frames(file))
    if suffix == ".pdf":
        with contextlib.suppress(ImportError, OSError, ValueError, RuntimeError):
            import pypdfium2

            with _pdfium, contextlib.closing(pypdfium2.PdfDocument(file)) as document:
                return len(document) or 1
    return 1


def _pdf_pages(data: bytes, dpi: float) -> Iterator[Image.Image]:
    try:
        import pypdfium2
    except ImportError as error:
        remedy = "needs the package pypdfium2: pip install 'florence2-triton[pdf]'"
        raise InvalidImage(f"this is a PDF document, which {remedy}") from error
    try:
        with _pdfium:
            document = pypdfium2.PdfDocument(data)
            number = len(document)
    except pypdfium2.PdfiumError as error:
        reason = "needs a password" if "password" in str(error).lower() else "is damaged or incomplete"
        raise InvalidImage(f"the PDF document {reason}") from error
    try:
        if not number:
            raise InvalidImage("the PDF document has no pages")
        for index in range(number):
            try:
                with _pdfium:
                    page = document[index]
                    width, height = page.get_size()
                    largest = math.sqrt(ImageConfig.max_pixels / max(width * height, 1e-9))
                    image = page.render(scale=min(dpi / POINTS_PER_INCH, 0.99 * largest)).to_pil().convert("RGB")
                    page.close()
            except (pypdfium2.PdfiumError, ValueError, RuntimeError) as error:
                raise InvalidImage(f"page {index + 1} of the PDF document is damaged") from error
            yield image
    finally:
        with _pdfium:
            document.close()


def _page_frames(file: str | io.BytesIO) -> list[int]:
    """Return the frames of a TIFF that are pages, and not smaller copies of other pages."""
    frames = []
    # EOFError after the last page; what Pillow makes of a damaged file is named when it is decoded.
    with contextlib.suppress(Exception), Image.open(file, formats=("TIFF",)) as image:
        for frame in itertools.count():
            image.seek(frame)
            if not getattr(image, "tag_v2", {}).get(NEW_SUBFILE_TYPE, 0) & OVERVIEW:
                frames.append(frame)
    return frames or [0]
