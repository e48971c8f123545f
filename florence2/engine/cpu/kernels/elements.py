"""The types of weights, and how a tile multiplies each: `columns` reads a vector of them, `add` adds its products.

`size`: bytes of an element of w. `inputs`: the type of an element of x. `sums`: the type of a vector of sums.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import config
from numba.core.codegen import get_host_cpu_features

from florence2.engine.cpu.kernels import vectors
from florence2.engine.cpu.kernels.layout import LANES, PAIRS, QUADS
from florence2.engine.cpu.kernels.vectors import BYTE, FLOAT, FLOATS, HALVES, INT32, INTS


class BFloat(ir.Type):
    """The type that llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"


BFLOATS = ir.VectorType(BFloat(), LANES * PAIRS)
BYTES = ir.VectorType(BYTE, LANES * QUADS)
# The features that numba compiles for, which may be fewer than this CPU has.
FEATURES = (get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES).split(",")
HAS_VNNI, HAS_BFLOATS = "+avx512vnni" in FEATURES, "+avx512bf16" in FEATURES


class Floats:
    """float32 weights, one at a time."""

    size, inputs, sums = 4, FLOAT, FLOATS

    @staticmethod
    def columns(builder: ir.IRBuilder, pointer: Any) -> Any:
        return vectors.load(builder, pointer, FLOATS)

    @staticmethod
    def add(builder: ir.IRBuilder, total: Any, value: Any, column: Any) -> Any:
        return vectors.multiply_add(builder, value, column, total)


class UpperHalves(Floats):
    """Upper halves of float32 weights (bfloat16), times float32 inputs: keys and values."""

    size = 2

    @staticmethod
    def columns(builder: ir.IRBuilder, pointer: Any) -> Any:
        bits = builder.zext(vectors.load(builder, pointer, HALVES), INTS)
        return builder.bitcast(lower(builder, bits), FLOATS)


class Together:
    """Several weights of an output, for as many inputs, in one element of an array."""

    size, inputs = 4, INT32

    @staticmethod
    def columns(builder: ir.IRBuilder, pointer: Any) -> Any:
        return vectors.load(builder, pointer, INTS)


class Pairs(Together):
    """Two bfloat16 weights, times two bfloat16 inputs."""

    sums = FLOATS

    @staticmethod
    def add(builder: ir.IRBuilder, total: Any, value: Any, column: Any) -> Any:
        if HAS_BFLOATS:
            values, columns = (builder.bitcast(vector, BFLOATS) for vector in (value, column))
            return vectors.call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, total, values, columns)
        for half in (upper, lower):  # in the order of the instruction
            values, columns = (builder.bitcast(half(builder, vector), FLOATS) for vector in (value, column))
            total = vectors.multiply_add(builder, values, columns, total)
        return total


def upper(builder: ir.IRBuilder, pairs: Any) -> Any:
    """Return the upper of two bfloat16, as the bits of float32."""
    return builder.and_(pairs, INTS([0xFFFF0000] * LANES))


def lower(builder: ir.IRBuilder, pairs: Any) -> Any:
    """Return the lower of two bfloat16, as the bits of float32."""
    return builder.shl(pairs, INTS([16] * LANES))


class Quads(Together):
    """Four int8 weights, times four unsigned bytes, summed in int32."""

    sums = INTS

    @staticmethod
    def add(builder: ir.IRBuilder, total: Any, value: Any, column: Any) -> Any:
        if HAS_VNNI:
            return vectors.call(builder, "llvm.x86.avx512.vpdpbusd.512", INTS, total, value, column)
        inputs, weights = (builder.bitcast(vector, BYTES) for vector in (value, column))
        for place in range(QUADS):
            pick = ir.Constant(INTS, [QUADS * lane + place for lane in range(LANES)])
            wide_inputs = builder.zext(builder.shuffle_vector(inputs, inputs, pick), INTS)
            wide_weights = builder.sext(builder.shuffle_vector(weights, weights, pick), INTS)
            total = builder.add(total, builder.mul(wide_inputs, wide_weights))
        return total


KINDS = {types.float32: Floats, types.uint16: UpperHalves, types.uint32: Pairs, types.int32: Quads}
