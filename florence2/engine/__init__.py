"""The language model server: Florence-2's BART with a K/V cache, in-flight batching and exact beam search.

`engine.Engine` is the loop body (`step`), `worker.Worker` the thread around it.
`sequence`, `scheduler` and `beam` are pure Python; the other modules need torch.
"""
