"""Label Studio's run-length encoding of masks: a bit stream over an image's rows, with four equal channels.

The header holds the number of values (32 bits), the number of bits of a value minus one (5 bits), and the four widths
that the length of a run may have, each minus one (4 bits each). A run is a 1, the index of its width (2 bits), its
length minus one, and its value.
The format is that of thi.ng's rle-pack, which Label Studio's editor reads.
"""

from __future__ import annotations

import numpy as np

from florence2_client.masks import Mask

WIDTHS = (3, 4, 8, 16)
LONGEST = 1 << WIDTHS[-1]
CHANNELS = 4
VALUE_BITS = 8


def brush_rle(mask: Mask) -> list[int]:
    """Return the bytes of a mask, bool [height, width].

    >>> brush_rle(np.array([[True]]))
    [0, 0, 0, 4, 57, 27, 252, 111, 248]
    """
    flat = mask.reshape(-1)
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))
    lengths = np.diff(np.append(starts, flat.size)) * CHANNELS
    bits = [f"{flat.size * CHANNELS:032b}{VALUE_BITS - 1:05b}", *(f"{width - 1:04b}" for width in WIDTHS)]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        value = 255 if flat[start] else 0
        for done in range(0, length, LONGEST):
            run = min(length - done, LONGEST)
            index = next(index for index, width in enumerate(WIDTHS) if run <= 1 << width)
            bits.append(f"1{index:02b}{run - 1:0{WIDTHS[index]}b}{value:0{VALUE_BITS}b}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))
