"""The language model server: Florence-2's BART with a K/V cache, in-flight batching and exact beam search.

`engine.Engine` is the loop body (`step`), `worker.Worker` the thread around it, and `sender.Sender` the thread that
answers. `sequence`, `scheduler` and `beam` are pure Python. What computes is behind `backend.Backend`, which `cpu` and
`cuda` implement.
"""
