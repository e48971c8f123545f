"""Copies between the rows of the padded cache."""

import torch

from florence2.config import TextConfig
from florence2.engine.cuda.cache import PaddedCache

TEXT = TextConfig(40, 16, 1, 2, 2, 4, 24, 32, max_positions=10, scale_embedding=False)


def test_rows_are_read_before_they_are_written():
    """Beams that swap rows keep what each has decoded."""
    cache = PaddedCache(TEXT, 4, torch.float32, torch.device("cpu"))
    cache.self_keys.normal_()
    before = cache.self_keys.clone()
    cache.copy_rows([(1, 0), (0, 1)], slice(3, 6))
    assert torch.equal(cache.self_keys[:, [0, 1], :, 3:6], before[:, [1, 0], :, 3:6])
    assert torch.equal(cache.self_keys[:, :, :, :3], before[:, :, :, :3])
    assert torch.equal(cache.self_keys[:, 2:], before[:, 2:])
