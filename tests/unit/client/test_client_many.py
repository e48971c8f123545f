"""run_many and retries of both clients, against transports that are slow, busy or away as told."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import pytest

from florence2.errors import (
    Cancelled,
    ConnectionFailed,
    DeadlineExceeded,
    InternalError,
    InvalidImage,
    InvalidOption,
    InvalidRequest,
    Unavailable,
)
from florence2_client import AsyncClient, Client, Question
from florence2_client.exchange import FIRST_WAIT, LONGEST_WAIT, Retry
from tests.unit.client.fake_transport import outputs, png

IMAGE = png()


class SlowTransport:
    """Waits as many milliseconds as the request's MAX_NEW_TOKENS, answers, and counts who is under way."""

    def __init__(self):
        self.lock, self.now, self.most, self.served = threading.Lock(), 0, 0, 0

    def begin(self, tensors):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        return int(tensors["MAX_NEW_TOKENS"][0]) / 1000 if "MAX_NEW_TOKENS" in tensors else 0.001

    def end(self):
        with self.lock:
            self.now -= 1
            self.served += 1
        return outputs()

    def infer(self, model, tensors, timeout):
        time.sleep(self.begin(tensors))
        return self.end()

    def close(self):
        pass


class AsyncSlowTransport(SlowTransport):
    async def infer(self, model, tensors, timeout):
        await asyncio.sleep(self.begin(tensors))
        return self.end()

    async def close(self):
        pass


@pytest.fixture(params=["threads", "asyncio"])
def ask_many(request):
    """Asks with either client; returns the replies and the transport."""

    def ask(asked, take=None, **options):
        if request.param == "threads":
            transport = SlowTransport()
            with Client(transport=transport) as client:
                return list(itertools.islice(client.run_many(asked, **options), take)), transport

        async def collect():
            replies = []
            async with AsyncClient(transport=transport) as client:
                async for reply in client.run_many(asked, **options):
                    replies.append(reply)
                    if len(replies) == take:
                        break
            return replies

        transport = AsyncSlowTransport()
        return asyncio.run(collect()), transport

    return ask


def images(milliseconds):
    return [Question(IMAGE, "od", key=ms, options={"max_new_tokens": ms}) for ms in milliseconds]


def test_replies_come_in_order_or_as_they_are_ready(ask_many):
    """In order a slow question holds its place; out of order it comes when it is done."""
    asked = images([400, 1, 1, 1])
    assert [reply.question.key for reply in ask_many(asked, concurrency=4)[0]] == [400, 1, 1, 1]
    assert [reply.question.key for reply in ask_many(asked, concurrency=4, ordered=False)[0]] == [1, 1, 1, 400]


@pytest.mark.parametrize("ordered", [True, False])
def test_no_more_are_under_way_than_asked(ask_many, ordered):
    """The limit is used and kept."""
    replies, transport = ask_many(images([5] * 30), concurrency=3, ordered=ordered)
    assert len(replies) == 30
    assert transport.most == 3


@pytest.mark.parametrize("ordered", [True, False])
def test_an_endless_supply_is_read_only_as_answers_are_taken(ask_many, ordered):
    """Ten answers from an endless supply read not much more than ten questions."""
    read = []

    def supply():
        for number in itertools.count():
            read.append(number)
            yield IMAGE, "od"

    replies, _ = ask_many(supply(), take=10, concurrency=4, ordered=ordered)
    assert len(replies) == 10
    assert len(read) <= 10 + 2 * 4


def test_a_slow_head_does_not_pile_up_answers(ask_many):
    """While the first in order is awaited, at most twice the concurrency has been read."""
    read = []
    asked = (read.append(question.key) or question for question in images([200] + [1] * 100))
    replies, _ = ask_many(asked, take=1, concurrency=4)
    assert replies[0].question.key == 200
    assert len(read) <= 8 + 1


def test_an_error_is_one_reply_among_others(ask_many):
    """A bad image costs its neighbors nothing, and `unwrap` raises it."""
    replies, _ = ask_many([(IMAGE, "od"), (b"", "od"), (IMAGE, "od", "text")])
    assert [type(reply.error) for reply in replies] == [type(None), InvalidImage, type(None)]
    assert replies[0].unwrap() is replies[0].result
    with pytest.raises(InvalidImage):
        replies[1].unwrap()


def test_common_options_give_way_to_a_questions_own(ask_many):
    """Options of the call are for all; what a question brings goes first."""
    replies, transport = ask_many(images([1]), concurrency=1, max_new_tokens=10_000)
    assert len(replies) == 1 and transport.served == 1


def test_nothing_asked_is_nothing_answered(ask_many):
    """An empty supply ends at once; a concurrency of nought is refused."""
    assert ask_many([])[0] == []
    with pytest.raises(InvalidOption):
        ask_many([(IMAGE, "od")], concurrency=0)
    for concurrency in (float("nan"), 2.5, True, None):  # NaN would send nothing, and say nothing
        with pytest.raises(InvalidOption, match="a whole number"):
            ask_many([(IMAGE, "od")], concurrency=concurrency)


def test_a_bug_in_the_supply_is_not_hidden(ask_many):
    """What the given iterator raises comes out of `run_many`."""

    def broken():
        yield IMAGE, "od"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask_many(broken())


class BusyTransport:
    """Raises the given errors first, one a request, then answers."""

    def __init__(self, *errors):
        self.errors, self.timeouts = list(errors), []

    def infer(self, model, tensors, timeout):
        self.timeouts.append(timeout)
        if self.errors:
            raise self.errors.pop(0)
        return outputs()

    def close(self):
        pass


class AsyncBusyTransport(BusyTransport):
    async def infer(self, model, tensors, timeout):
        return super().infer(model, tensors, timeout)

    async def close(self):
        pass


@pytest.fixture(params=["threads", "asyncio"])
def ask_busy(request):
    """Asks one question of a transport that raises these errors first; returns what it was asked."""

    def ask(*errors, retry_for=5.0, **options):
        if request.param == "threads":
            transport = ask.transport = BusyTransport(*errors)
            Client(transport=transport, retry_for=retry_for).run(IMAGE, "od", **options)
        else:
            transport = ask.transport = AsyncBusyTransport(*errors)
            asyncio.run(AsyncClient(transport=transport, retry_for=retry_for).run(IMAGE, "od", **options))
        return transport.timeouts

    return ask


@pytest.mark.parametrize("error", [Unavailable("busy"), ConnectionFailed("away")])
def test_a_busy_or_absent_server_is_asked_again(ask_busy, error):
    """Two refusals, then the answer; the time limit of the last attempt is what is left of it."""
    timeouts = ask_busy(error, error, timeout=10)
    assert len(timeouts) == 3
    assert timeouts[0] > timeouts[1] > timeouts[2] > 8


@pytest.mark.parametrize("error", [InvalidRequest("yours"), InternalError("ours"), DeadlineExceeded("late")])
def test_what_cannot_pass_is_not_asked_again(ask_busy, error):
    """Mistakes, faults and missed deadlines are told at once."""
    with pytest.raises(type(error)):
        ask_busy(error)
    assert len(ask_busy.transport.timeouts) == 1


def test_retries_end_with_the_servers_own_reason(ask_busy):
    """Without retries it is that of the first refusal. A timeout ends retries too."""
    with pytest.raises(Unavailable, match="busy"):
        ask_busy(Unavailable("busy"), retry_for=0)
    start = time.monotonic()
    with pytest.raises(Unavailable, match="busy"):
        ask_busy(*[Unavailable("busy")] * 100, timeout=0.5)
    assert time.monotonic() - start < 3


def test_waits_grow_and_are_bounded():
    """Waits double up to the longest, are never shorter than half of that, and end with `retry_for`."""
    now = 0.0
    retry = Retry(timeout=None, retry_for=100, clock=lambda: now)
    longest, waits = FIRST_WAIT, []
    with pytest.raises(Unavailable):
        while True:
            wait = retry.wait_after(Unavailable("busy"))
            assert longest / 2 <= wait <= longest
            longest = min(2 * longest, LONGEST_WAIT)
            waits.append(wait)
            now += wait
    assert 90 < sum(waits) <= 100
    assert retry.remaining() is None


def test_closing_ends_a_wait():
    """A thread that waits to ask again learns at once that the client was closed."""
    client = Client(transport=BusyTransport(*[Unavailable("busy")] * 1000), retry_for=1000)
    threading.Timer(0.2, client.close).start()
    start = time.monotonic()
    with pytest.raises(Cancelled):
        client.run(IMAGE, "od")
    assert time.monotonic() - start < 3
