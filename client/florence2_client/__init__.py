"""Client library of Florence-2 on Triton.

    from florence2_client import Client

    with Client("grpc://127.0.0.1:8001") as client:
        result = client.run("street.jpg", "od")
        print(result.answer.labels)
        result.draw("street.jpg").save("street.od.png")

Errors are those of `florence2.errors`.
"""

from florence2_client.client import Client
from florence2_client.drawing import draw
from florence2_client.result import Result

__all__ = ["Client", "Result", "draw"]
