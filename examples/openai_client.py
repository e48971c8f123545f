"""Detect objects with OpenAI's client through the gateway: python openai_client.py IMAGE [URL]."""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8080/v1"
image = base64.b64encode(Path(sys.argv[1]).read_bytes()).decode()

with OpenAI(base_url=url, api_key=os.environ.get("FLORENCE2_API_KEY", "unused")) as client:
    response = client.chat.completions.create(
        model="florence2",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "<OD>"},
                    {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}},
                ],
            }
        ],
    )

answer = response.choices[0].message.model_dump()["florence2"]["answer"]
for label, box in zip(answer["labels"], answer["bboxes"], strict=True):
    print(label, box)
