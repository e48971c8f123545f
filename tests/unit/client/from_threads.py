"""An asyncio transport that tests can call from a thread."""

from __future__ import annotations

import asyncio
import threading

from florence2_client.transports import open_async_transport


class FromThreads:
    """An asyncio transport with the methods of the other one. Its event loop runs in a thread of its own."""

    def __init__(self, address):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.transport = self.call(self.made, address)

    async def made(self, address):
        return open_async_transport(address)

    def call(self, function, *arguments):
        return asyncio.run_coroutine_threadsafe(function(*arguments), self.loop).result()

    def infer(self, *arguments):
        return self.call(self.transport.infer, *arguments)

    def stream(self, *arguments):
        return self.call(self.collected, *arguments)

    async def collected(self, *arguments):
        return [outputs async for outputs in self.transport.stream(*arguments)]

    def describe(self, *arguments):
        return self.call(self.transport.describe, *arguments)

    def close(self):
        self.call(self.transport.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
