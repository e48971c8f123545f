"""An image and two overlapping parts of it, and what a part shows of a box."""

SIZE = (1000, 800)
WHOLE = (0, 0, *SIZE)
LEFT, RIGHT = (0, 0, 600, 800), (400, 0, 1000, 800)


def clipped(box, part):
    """Return what a part shows of a box, in the part's own pixels; None if it shows nothing."""
    x1, y1, x2, y2 = max(box[0], part[0]), max(box[1], part[1]), min(box[2], part[2]), min(box[3], part[3])
    return [x1 - part[0], y1 - part[1], x2 - part[0], y2 - part[1]] if x1 < x2 and y1 < y2 else None


def quad(x1, y1, x2, y2):
    return [x1, y1, x2, y1, x2, y2, x1, y2]
