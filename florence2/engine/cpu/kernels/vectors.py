"""The LLVM instructions that kernels are made of, on vectors of LANES numbers.

Every CPU has such vectors in some form: one register of AVX-512, two of AVX, four of NEON.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from florence2.engine.cpu.kernels.compiler import compiled
from florence2.engine.cpu.kernels.layout import LANES

BYTE, INT32, INT64, FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
HALF = ir.IntType(16)
FLOATS, INTS, HALVES = (ir.VectorType(each, LANES) for each in (FLOAT, INT32, HALF))


@intrinsic
def as_float(context, value):
    """Return float32 from float32, or from the upper half of one."""

    def generate(context, builder, signature, arguments):
        if value == types.float32:
            return arguments[0]
        return builder.bitcast(builder.shl(builder.zext(arguments[0], INT32), INT32(16)), FLOAT)

    return types.float32(value), generate


@intrinsic
def as_element(context, value, array):
    """Return a float32 as `array` holds it: itself, or its upper half, rounded to nearest, ties to even."""

    def generate(context, builder, signature, arguments):
        number = arguments[0]
        if array.dtype == types.float32:
            return number
        bits = builder.bitcast(number, INT32)
        last = builder.and_(builder.lshr(bits, INT32(16)), INT32(1))
        rounded = builder.lshr(builder.add(bits, builder.add(INT32(0x7FFF), last)), INT32(16))
        is_number = builder.fcmp_ordered("ord", number, number)
        return builder.trunc(builder.select(is_number, rounded, INT32(0x7FC0)), HALF)

    return array.dtype(types.float32, array), generate


@intrinsic
def power_of_two(context, exponent):
    """Return 2 ** exponent: int32 -> float32, by writing the bits of the exponent."""

    def generate(context, builder, signature, arguments):
        biased = builder.add(arguments[0], INT32(127))
        return builder.bitcast(builder.shl(biased, INT32(23)), FLOAT)

    return types.float32(types.int32), generate


def largest_of(transform: Callable[[ir.IRBuilder, Any], Any]) -> Any:
    """Return a numba intrinsic: the largest number in a row's whole vectors, each of which goes through `transform`.

    It is NaN only if all of them are. The row must be contiguous. Compilers do not vectorize such a loop themselves.
    """

    @intrinsic
    def largest(context, row):
        def generate(context, builder, signature, arguments):
            numbers = context.make_array(row)(context, builder, arguments[0])
            highest = cgutils.alloca_once_value(builder, FLOATS([-math.inf] * LANES))
            with loop(builder, builder.sdiv(numbers.nitems, INT64(LANES))) as vector:
                values = transform(builder, load(builder, at(builder, numbers.data, vector, 4 * LANES), FLOATS))
                builder.store(call(builder, "llvm.maxnum.v16f32", FLOATS, builder.load(highest), values), highest)
            return call(builder, "llvm.vector.reduce.fmax.v16f32", FLOAT, builder.load(highest))

        return types.float32(row), generate

    return largest


maximum_of_vectors = largest_of(lambda builder, values: values)
magnitude_of_vectors = largest_of(lambda builder, values: call(builder, "llvm.fabs.v16f32", FLOATS, values))


@compiled
def magnitude(row):
    """Return the largest absolute value in a row; NaN does not count."""
    largest = magnitude_of_vectors(row)
    for i in range(len(row) // LANES * LANES, len(row)):
        largest = abs(row[i]) if abs(row[i]) > largest else largest
    return largest


@compiled
def maximum(row):
    """Return the largest number in a row; NaN does not count."""
    largest = maximum_of_vectors(row)
    for i in range(len(row) // LANES * LANES, len(row)):
        largest = row[i] if row[i] > largest else largest
    return largest


@contextlib.contextmanager
def loop(builder: ir.IRBuilder, count: Any) -> Iterator[Any]:
    """Emit a loop over indices up to `count`. Unrolled it would need more registers than there are: LLVM must not."""
    before, body, after = builder.block, *(builder.append_basic_block() for _ in range(2))
    builder.cbranch(builder.icmp_signed(">", count, INT64(0)), body, after)
    builder.position_at_end(body)
    index = builder.phi(INT64)
    index.add_incoming(INT64(0), before)
    yield index
    following = builder.add(index, INT64(1))
    index.add_incoming(following, builder.block)
    again = builder.cbranch(builder.icmp_signed("<", following, count), body, after)
    once = builder.module.add_metadata([ir.MetaDataString(builder.module, "llvm.loop.unroll.disable")])
    # The first property of a loop refers to the list itself, which `add_metadata` cannot express.
    properties = ir.values.MDValue(builder.module, [], name=str(len(builder.module.metadata)))
    properties.operands = properties, once
    again.set_metadata("llvm.loop", properties)
    builder.position_at_end(after)


def rows(builder: ir.IRBuilder, array: Any, first: Any, count: int) -> list[Any]:
    """Return pointers to the beginnings of `count` rows of a two-dimensional array."""
    pitch = builder.extract_value(array.strides, 0)
    return [at(builder, array.data, builder.mul(pitch, builder.add(first, INT64(row))), 1) for row in range(count)]


def at(builder: ir.IRBuilder, pointer: Any, index: Any, size: int) -> Any:
    """Return the byte pointer `index` elements of `size` bytes after `pointer`."""
    return builder.gep(builder.bitcast(pointer, BYTE.as_pointer()), [builder.mul(index, INT64(size))])


def load(builder: ir.IRBuilder, pointer: Any, type_: Any) -> Any:
    """Load a value from any address, aligned or not."""
    return builder.load(builder.bitcast(pointer, type_.as_pointer()), align=1)


def store(builder: ir.IRBuilder, value: Any, pointer: Any) -> None:
    """Store floats at any address of a float."""
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=4)


def prefetch(builder: ir.IRBuilder, pointer: Any) -> None:
    """Prefetch into the second-level cache; does nothing if the address is invalid."""
    pointer = builder.bitcast(pointer, BYTE.as_pointer())
    signature = ir.FunctionType(ir.VoidType(), [pointer.type, INT32, INT32, INT32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    reading, second_cache, data = INT32(0), INT32(2), INT32(1)
    builder.call(function, [pointer, reading, second_cache, data])


def splat(builder: ir.IRBuilder, value: Any) -> Any:
    """Return a vector of LANES copies of a value."""
    vector = ir.VectorType(value.type, LANES)
    single = builder.insert_element(vector(ir.Undefined), value, INT32(0))
    return builder.shuffle_vector(single, vector(ir.Undefined), INTS([0] * LANES))


def multiply_add(builder: ir.IRBuilder, one: Any, other: Any, total: Any) -> Any:
    """Return one * other + total, rounded once; vectors of floats."""
    return call(builder, "llvm.fma.v16f32", FLOATS, one, other, total)


def call(builder: ir.IRBuilder, name: str, type_: Any, *arguments: Any) -> Any:
    """Call one of LLVM's own functions."""
    signature = ir.FunctionType(type_, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)
