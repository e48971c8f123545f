"""The threads' shares of the work, and the barrier at which they wait for each other."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from florence2.engine.cpu.kernels.compiler import compiled
from florence2.engine.cpu.kernels.layout import LANES, WIDTH
from florence2.engine.cpu.kernels.vectors import INT32, INT64

SPINS = 2000  # looks at the others' progress before the core is offered to another program


@compiled
def share(count, thread, threads):
    """Return the first and the end of this thread's share of `count` things."""
    return count * thread // threads, count * (thread + 1) // threads


@compiled
def share_columns(columns, thread, threads):
    """Return the first and the end of this thread's vectors of columns: whole tiles, except at the very end."""
    vectors = columns // LANES
    first, last = share((vectors + WIDTH - 1) // WIDTH, thread, threads)
    return first * WIDTH, min(last * WIDTH, vectors)


@compiled
def wait(arrived, done, threads):
    """Wait until all threads have finished as many stages as this one; return the arrivals that makes."""
    if threads == 1:
        return done
    done += threads
    spins = 0
    arrive(arrived)
    while arrivals(arrived) < done:
        spins += 1
        if spins % SPINS == 0:
            offer_core()
    return done


@intrinsic
def arrive(context, arrived):
    """Add one to arrived[0], atomically."""

    def generate(context, builder, signature, arguments):
        pointer = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        builder.atomic_rmw("add", pointer, INT64(1), "seq_cst")
        return context.get_dummy_value()

    return types.void(arrived), generate


@intrinsic
def arrivals(context, arrived):
    """Return arrived[0] as other threads have left it."""

    def generate(context, builder, signature, arguments):
        pointer = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(arrived), generate


@intrinsic
def offer_core(context):
    """Call sched_yield of the C library."""

    def generate(context, builder, signature, arguments):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(INT32, []), "sched_yield")
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), generate
