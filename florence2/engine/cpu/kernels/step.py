"""One step of the decoder, from the last tokens to the best next ones: the order of the stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from florence2.engine.cpu.kernels.attention import attend_to_encoder, attend_to_self
from florence2.engine.cpu.kernels.choice import choose
from florence2.engine.cpu.kernels.compiler import digest_of_sources, kept_on_disk
from florence2.engine.cpu.kernels.pointwise import add, embed, gelu, layer_norm
from florence2.engine.cpu.kernels.products import multiply, multiply_heads
from florence2.engine.cpu.kernels.threads import wait


def build_step(digest: int) -> Callable[..., None]:
    """Return `decode`, which closes over `digest`: when it differs, numba does not use what it kept on disk."""

    @kept_on_disk
    def decode(thread, threads, arrived, weights, vocabulary, cache, batch, scratch):
        """Do this thread's share of a step.

        At the end scratch.best_… hold the best continuations with known tokens: 2K for a request of K beams, one for
        a request of one. `arrived` [1]: zero at the start.
        """
        _ = digest
        rows = len(batch.rows)
        x = scratch.x[thread, :rows]
        embed(batch, weights.embedding, x)
        layer_norm(x, weights.embedding.norm, 0)
        done = 0
        for layer in range(weights.self_norm.weight.shape[0]):
            multiply_heads(thread, threads, weights.self_qkv, layer, x, cache, scratch)
            attend_to_self(thread, threads, layer, cache, batch, scratch)
            done = wait(arrived, done, threads)
            multiply(thread, threads, weights.self_out, layer, scratch.attended[:rows], scratch, scratch.change)
            done = wait(arrived, done, threads)
            add(x, scratch.change)
            layer_norm(x, weights.self_norm, layer)

            multiply_heads(thread, threads, weights.cross_query, layer, x, cache, scratch)
            attend_to_encoder(thread, threads, layer, cache, batch, scratch)
            done = wait(arrived, done, threads)
            multiply(thread, threads, weights.cross_out, layer, scratch.attended[:rows], scratch, scratch.change)
            done = wait(arrived, done, threads)
            add(x, scratch.change)
            layer_norm(x, weights.cross_norm, layer)

            multiply(thread, threads, weights.fc1, layer, x, scratch, scratch.widened)
            gelu(thread, threads, scratch.widened[:rows])
            done = wait(arrived, done, threads)
            multiply(thread, threads, weights.fc2, layer, scratch.widened[:rows], scratch, scratch.change)
            done = wait(arrived, done, threads)
            add(x, scratch.change)
            layer_norm(x, weights.final_norm, layer)
        multiply(thread, threads, weights.head, 0, x, scratch, scratch.logits)
        done = wait(arrived, done, threads)
        choose(thread, threads, weights.embedding.size, vocabulary, batch, scratch)
        wait(arrived, done, threads)

    return decode


decode = build_step(digest_of_sources(Path(__file__).parent))
