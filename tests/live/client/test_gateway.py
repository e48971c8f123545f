"""The gateway in front of the real server, used through the programs that people have: OpenAI's SDK, LiteLLM."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import litellm
import openai
import pytest

from florence2.answers import TextAnswer
from florence2.server.embedded import EmbeddedServer
from florence2_client import Client
from florence2_client.gateway.app import GatewayOptions, make_app
from florence2_client.gateway.server import Front

KEY = "a-key-of-the-test"
ROOT = Path(__file__).parents[3]
SCENE = ROOT / "demo/images/scene.png"
URL = "data:image/png;base64," + base64.b64encode(SCENE.read_bytes()).decode()


def messages(task, url=URL):
    content = [{"type": "text", "text": task}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module")
def base_url(server: EmbeddedServer) -> Iterator[str]:
    front = Front("127.0.0.1", 0, drain_seconds=10)
    with front.running(make_app(GatewayOptions(url=server.grpc_url, keys=(KEY,)), None)):
        yield f"{front.url}/v1"


@pytest.fixture
def sdk(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key=KEY, max_retries=0) as client:
        yield client


@pytest.mark.parametrize(
    ("asked", "task", "text"),
    [
        ("<CAPTION>", "caption", None), ("detailed caption", "detailed_caption", None), ("od", "od", None),
        ("<OCR_WITH_REGION>", "ocr_with_region", None), ("<REGION_PROPOSAL>", "region_proposal", None),
        ("<CAPTION_TO_PHRASE_GROUNDING>a purple star", "ground", "a purple star"),
        ("<REFERRING_EXPRESSION_SEGMENTATION>the purple star", "segment", "the purple star"),
        ("<REGION_TO_CATEGORY>60,175,295,455", "classify_region", "60,175,295,455"),
    ],
)  # fmt: skip
def test_answers_are_those_of_the_client(server, sdk, asked, task, text):
    completion = sdk.chat.completions.create(model="florence2", messages=messages(asked), logprobs=True)
    with Client(server.grpc_url) as client:
        expected = client.run(SCENE, task, text)
    [choice] = completion.choices
    assert choice.message.florence2 == {**json.loads(json.dumps(expected.to_dict()))}
    if isinstance(expected.answer, TextAnswer):
        assert choice.message.content == expected.answer.text.partition("<")[0]
    else:
        assert json.loads(choice.message.content) == expected.answer.to_json()
    assert choice.finish_reason == "stop"
    assert "".join(each.token for each in choice.logprobs.content) == expected.text
    assert completion.usage.completion_tokens == expected.num_tokens
    assert completion.usage.prompt_tokens == expected.num_prompt_tokens


def test_a_stream_adds_up_to_the_answer(sdk):
    asked = {"model": "florence2", "messages": messages("<DETAILED_CAPTION>")}
    whole = sdk.chat.completions.create(**asked, extra_body={"num_beams": 1})
    *chunks, usage = sdk.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "stop" and usage.usage == whole.usage
    cut = sdk.chat.completions.create(**asked, max_tokens=3)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 3


def test_the_async_sdk_sends_requests_at_once(base_url):
    async def run():
        async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY) as client:
            tasks = ["<OD>", "<OCR>", "<CAPTION>"] * 4
            answers = await asyncio.gather(
                *(client.chat.completions.create(model="florence2", messages=messages(task)) for task in tasks)
            )
            stream = await client.chat.completions.create(model="florence2", messages=messages("ocr"), stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return [answer.choices[0].message for answer in answers], text

    answers, text = asyncio.run(run())
    assert [message.florence2["task"] for message in answers] == ["<OD>", "<OCR>", "<CAPTION>"] * 4
    assert text == answers[1].content == "HELLO TRITON"


def test_mistakes_raise_the_exceptions_of_the_sdk(base_url, sdk):
    def ask(**changes):
        sdk.chat.completions.create(**{"model": "florence2", "messages": messages("<OD>"), **changes})

    with pytest.raises(openai.BadRequestError) as refused:
        ask(extra_body={"num_beams": 99})
    assert refused.value.code == "INVALID_OPTION" and "num_beams must be" in refused.value.message
    with pytest.raises(openai.BadRequestError) as refused:
        ask(messages=messages("od", "data:image/png;base64,AAAA"))
    assert refused.value.code == "INVALID_IMAGE"
    with pytest.raises(openai.NotFoundError):
        ask(model="gpt-4o")
    with openai.OpenAI(base_url=base_url, api_key="wrong") as other, pytest.raises(openai.AuthenticationError):
        other.models.list()


@pytest.mark.filterwarnings("ignore:Item:UserWarning")
def test_litellm_gets_an_answer(base_url):
    answer = litellm.completion(
        model="openai/florence2", api_base=base_url, api_key=KEY, messages=messages("<OCR>"), max_tokens=20
    )
    assert answer.choices[0].message.content == "HELLO TRITON" and answer.usage.completion_tokens > 0


def test_five_hundred_clients_are_answered_or_told_to_come_back(base_url):
    async def run():
        headers = {"Authorization": f"Bearer {KEY}"}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(headers=headers, connector=connector) as session:

            async def send():
                body = {"model": "florence2", "messages": messages("<CAPTION>"), "max_tokens": 4, "num_beams": 1}
                async with session.post(f"{base_url}/chat/completions", json=body) as response:
                    found = await response.json()
                    return response.status, response.headers.get("Retry-After"), "choices" in found

            return await asyncio.gather(*(send() for _ in range(500)))

    outcomes = Counter(asyncio.run(run()))
    assert set(outcomes) <= {(200, None, True), (429, "2", False)} and outcomes[200, None, True] >= 100


def test_hostile_requests_get_the_documented_answers(base_url, tmp_path):
    """Schemathesis makes them up from the gateway's own description."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{base_url.removesuffix('/v1')}/openapi.json"]
    command += ["-H", f"Authorization: Bearer {KEY}", "--checks", checks, "--max-examples", "40", "--seed", "1"]
    run = subprocess.run([*command, "--suppress-health-check", "all"], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-4000:]


def test_one_command_serves_both_and_stops_when_requests_are_answered(repository, tmp_path):
    command = [str(Path(sys.executable).with_name("florence2")), "gateway", "--serve", "--repository", str(repository)]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "FLORENCE2_API_KEYS": f"{KEY},another"}
    gateway = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        line = next(line for line in gateway.stdout if line.startswith("The gateway is at "))
        threading.Thread(target=gateway.stdout.read, daemon=True).start()
        with openai.OpenAI(base_url=line.split()[4], api_key="another", max_retries=0) as client:

            def ask(_=None):
                return client.chat.completions.create(
                    model="florence2", messages=messages("<MORE_DETAILED_CAPTION>"), extra_body={"num_beams": 16}
                )

            ask()
            with ThreadPoolExecutor(4) as pool:
                asked = [pool.submit(ask) for _ in range(4)]
                metrics = f"{line.split()[4].removesuffix('/v1')}/metrics"
                while running_requests(metrics) < 4 and not all(job.done() for job in asked):
                    pass
                gateway.send_signal(signal.SIGTERM)
                answers = [job.result() for job in asked]
        assert all(answer.choices[0].finish_reason == "stop" for answer in answers)
        assert gateway.wait(60) == 0
    finally:
        gateway.kill()
        gateway.wait()


def running_requests(metrics):
    """Return the running requests, without the one for the metrics."""

    async def read():
        headers = {"Authorization": f"Bearer {KEY}"}
        async with aiohttp.ClientSession(headers=headers) as session, session.get(metrics) as page:
            lines = (await page.text()).splitlines()
            return next(float(line.split()[1]) for line in lines if line.startswith("florence2_gateway_running")) - 1

    return asyncio.run(read())
