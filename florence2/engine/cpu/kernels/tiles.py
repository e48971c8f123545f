"""Products of a few rows and a few vectors of columns: the innermost loop of linear layers and of attention.

Each type of weights has a class below: `columns` reads a vector of them, `add` adds its products with the inputs to the
sums. `size`: bytes of an element of w. `inputs`: the type of an element of x. `sums`: the type of a vector of sums.
`unit`: elements of w that a step takes for one output. `parts`: elements of x that it takes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from florence2.engine.cpu.kernels import vectors
from florence2.engine.cpu.kernels.layout import BLOCK, BLOCK_BYTES, CODES, GROUP, LANES, PAIRS, QUADS
from florence2.engine.cpu.kernels.vectors import BYTE, FLOAT, FLOATS, HALVES, INT32, INT64, INTS


class BFloat(ir.Type):
    """The type that llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"


BFLOATS = ir.VectorType(BFloat(), LANES * PAIRS)
BYTES = ir.VectorType(BYTE, LANES * QUADS)
WORDS = ir.VectorType(ir.IntType(16), LANES * 2)
CACHE_LINE = 64
# The features that numba compiles for, which may be fewer than this CPU has.
FEATURES = (get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES).split(",")
HAS_VNNI, HAS_BFLOATS = "+avx512vnni" in FEATURES, "+avx512bf16" in FEATURES


def tile(rows: int, width: int) -> Any:
    """Return a numba intrinsic that multiplies `rows` rows by `width` vectors of columns, all sums in registers.

    multiply(x, first, w, start, pitch, ahead, stride, steps, sums, row, column): sums[row + r, column + v * LANES + l]
    becomes the sum over i < steps of x[first + r, i] * w[start + v * pitch + i * stride + l], for r < rows, v < width
    and l < LANES. Unless `ahead` is None, each step prefetches what lies `ahead` elements further on in w. A step of
    int4 weights is one of their blocks, and multiplies as many elements of x as it has quads.

    x: [R, inputs]; w: flat; `KINDS` has the types of both. sums: float32, which for int8 and int4 weights hold the bits
    of an int32. A row's sums are made in the same order whatever the number of rows.
    """

    @intrinsic
    def multiply(context, x, first, w, start, pitch, ahead, stride, steps, sums, row, column):
        kind = KINDS[w.dtype]

        def generate(context, builder, signature, arguments):
            arrays = {0: x, 2: w, 8: sums}
            x_array, w_array, sums_array = (
                context.make_array(type_)(context, builder, arguments[place]) for place, type_ in arrays.items()
            )
            first_, start_, pitch_, ahead_, stride_, steps_, row_, column_ = (
                arguments[place] for place in (1, 3, 4, 5, 6, 7, 9, 10)
            )
            inputs = vectors.rows(builder, x_array, first_, rows)
            targets = vectors.rows(builder, sums_array, row_, rows)
            starts = [builder.add(start_, builder.mul(pitch_, INT64(vector))) for vector in range(width)]
            columns = [vectors.at(builder, w_array.data, place, kind.size) for place in starts]
            totals = [[cgutils.alloca_once_value(builder, kind.sums(None)) for _ in columns] for _ in inputs]
            with vectors.loop(builder, steps_) as index:
                step = builder.mul(index, stride_)
                if ahead is not types.none:
                    soon = builder.add(step, ahead_)
                    for each in columns:
                        for line in range(0, kind.unit * LANES * kind.size, CACHE_LINE):
                            place = vectors.at(builder, each, soon, kind.size)
                            vectors.prefetch(builder, vectors.at(builder, place, INT64(line), 1))
                places = [vectors.at(builder, each, step, kind.size) for each in columns]
                element = builder.mul(index, INT64(kind.parts))
                for part in range(kind.parts):
                    weights = [kind.columns(builder, place, part) for place in places]
                    add_products(builder, kind, inputs, builder.add(element, INT64(part)), weights, totals)
            for target, row_totals in zip(targets, totals, strict=True):
                for vector, total in enumerate(row_totals):
                    place = vectors.at(builder, target, builder.add(column_, INT64(vector * LANES)), 4)
                    vectors.store(builder, builder.load(total), place)
            return context.get_dummy_value()

        return types.void(x, first, w, start, pitch, ahead, stride, steps, sums, row, column), generate

    return multiply


def add_products(builder: ir.IRBuilder, kind: Any, inputs: Any, index: Any, weights: Any, totals: Any) -> None:
    """Add one step of a tile: each row's input times the weights of all columns."""
    for row_inputs, row_totals in zip(inputs, totals, strict=True):
        value = vectors.splat(builder, vectors.load(builder, vectors.at(builder, row_inputs, index, 4), kind.inputs))
        for total, column_weights in zip(row_totals, weights, strict=True):
            builder.store(kind.add(builder, builder.load(total), value, column_weights), total)


@intrinsic
def rescale(context, y, row, column, weights, row_scale, scale, offset, bias):
    """Turn the sums y of a `tile` with such weights into outputs: (y - offset) * (row_scale * scale) + bias.

    Works on y[row, column + l] for l < LANES; scale, offset and bias are indexed by column.
    """

    def generate(context, builder, signature, arguments):
        arrays = {0: y, 5: scale, 6: offset, 7: bias}
        y_array, *of_columns = (
            context.make_array(type_)(context, builder, arguments[place]) for place, type_ in arrays.items()
        )
        _, row_, column_, _, row_scale_, *_ = arguments
        [target] = vectors.rows(builder, y_array, row_, 1)
        place = vectors.at(builder, target, column_, 4)
        scales, offsets, biases = (
            vectors.load(builder, vectors.at(builder, each.data, column_, 4), FLOATS) for each in of_columns
        )
        sums = vectors.load(builder, place, KINDS[weights.dtype].sums)
        if sums.type is INTS:
            sums = builder.sitofp(sums, FLOATS)
        factor = builder.fmul(vectors.splat(builder, row_scale_), scales)
        vectors.store(builder, vectors.multiply_add(builder, builder.fsub(sums, offsets), factor, biases), place)
        return context.get_dummy_value()

    return types.void(y, row, column, weights, row_scale, scale, offset, bias), generate


class Floats:
    """float32 weights, one at a time."""

    size, inputs, sums, unit, parts = 4, FLOAT, FLOATS, 1, 1

    @staticmethod
    def columns(builder: ir.IRBuilder, pointer: Any, part: int) -> Any:
        return vectors.load(builder, pointer, FLOATS)

    @staticmethod
    def add(builder: ir.IRBuilder, total: Any, value: Any, column: Any) -> Any:
        return vectors.multiply_add(builder, value, column, total)


class UpperHalves(Floats):
    """Upper halves of float32 weights (bfloat16), times float32 inputs: keys and values."""

    size = 2

    @staticmethod
    def columns(builder: ir.IRBuilder, pointer: Any, part: int) -> Any:
        bits = builder.zext(vectors.load(builder, pointer, HALVES), INTS)
        return builder.bitcast(lower(builder, bits), FLOATS)


class Together:
    """Several weights of an output, for as many inputs, in one element of an array."""

    size, inputs, unit, parts = 4, INT32, 1, 1

    @staticmethod
    def columns(builder: ir.IRBuilder, pointer: Any, part: int) -> Any:
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


class Codes(Quads):
    """Blocks of int4 weights, which become int8 weights in the registers."""

    size, unit, parts = 1, BLOCK_BYTES // LANES, BLOCK // QUADS

    @staticmethod
    def columns(builder: ir.IRBuilder, pointer: Any, part: int) -> Any:
        """Return lowest + spacing * code, for four inputs of each output."""
        group = CODES + part * QUADS // GROUP * 2 * LANES
        lowest = _repeated(builder, vectors.at(builder, pointer, INT64(group), 1), 0x01010101)
        spacing = _repeated(builder, vectors.at(builder, pointer, INT64(group + LANES), 1), 0x00010001)
        codes = vectors.load(builder, vectors.at(builder, pointer, INT64(part // 2 * QUADS * LANES), 1), INTS)
        if part % 2:
            codes = builder.lshr(codes, INTS([4] * LANES))
        codes = builder.and_(codes, INTS([0x0F0F0F0F] * LANES))
        # Two bytes at a time: 15 * 17 fits into the lower one, so nothing is carried into the upper one.
        levels = builder.mul(builder.bitcast(codes, WORDS), builder.bitcast(spacing, WORDS))
        return builder.bitcast(builder.add(builder.bitcast(levels, BYTES), builder.bitcast(lowest, BYTES)), INTS)


def _repeated(builder: ir.IRBuilder, pointer: Any, pattern: int) -> Any:
    """Load a byte for each lane, and repeat it in the lane's bytes where the pattern has a one."""
    single = builder.zext(vectors.load(builder, pointer, ir.VectorType(BYTE, LANES)), INTS)
    return builder.mul(single, INTS([pattern] * LANES))


KINDS = {
    types.float32: Floats,
    types.uint16: UpperHalves,
    types.uint32: Pairs,
    types.int32: Quads,
    types.uint8: Codes,
}
