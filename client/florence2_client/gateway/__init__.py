"""The gateway of `florence2 gateway`: OpenAI's API, answered by a Florence-2 server.

No other part of the client imports it, or the web framework that it needs (the `gateway` extra).
"""
