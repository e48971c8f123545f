"""One decoding step as functions that numba compiles into one, `step.decode`, which several threads run together.

    step        the order of the stages
    products    linear layers: a thread computes some of the columns
    attention   over the cache: a thread computes some of the heads
    pointwise   layer norms, GELU, softmax
    choice      rules and the best next tokens: a thread handles some of the requests
    sampling    one token at random
    threads     shares of the work, and the barrier between stages
    tiles       products of a few rows and vectors of columns, for each type of weights
    vectors     the LLVM instructions that the others are made of
    layout      how weights, cache and batch lie in memory
    compiler    what numba keeps on disk

Each thread does its share of a stage and waits for the others where it needs theirs; layer norms, which take a
microsecond, each thread computes for itself. Numbers are float32 between the products. No thread holds the
interpreter's lock. Each row's numbers are computed in the same order whatever the number of rows and threads, so they
do not depend on the other rows.

Letters in all of these modules: R rows of the step, N requests, K rows (beams) of a request, L layers, D d_model,
H heads, E size of a head, F inner width of the feed-forward layers, V rows of the embedding, T and S positions of the
caches. E and F are padded to multiples of LANES, T and S to multiples of POSITIONS.
"""
