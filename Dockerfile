# syntax=docker/dockerfile:1
# Builds this project's images; docker-compose.yml builds those that it runs. docs/adr/0011 gives the reasons.
#
#   docker build --target cpu .       the embedded server on Python's slim image
#   docker build --target gpu .       the same command with tritonserver of NVIDIA's image; the default
#   docker build --target export .    florence2 export
#   docker build --target ui .        florence2 ui

ARG PYTHON_IMAGE=docker.io/library/python:3.12-slim-bookworm
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.07-py3


# --- the project's wheel, separate so that a code change rebuilds only one small layer ---
FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /checkout
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .


# --- CPU: packages without the project ---
FROM ${PYTHON_IMAGE} AS cpu-packages
# Set it to an empty string for PyPI, whose torch for x86-64 is a CUDA build of gigabytes.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PATH=/opt/florence2/bin:$PATH
RUN python3 -m venv /opt/florence2
WORKDIR /checkout
COPY pyproject.toml constraints.txt ./
COPY florence2/__init__.py florence2/
RUN pip install --no-cache-dir --constraint constraints.txt ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} torch
# The project's code is not copied yet, so pip installs an empty package here, and then removes it.
RUN mkdir client export && touch README.md LICENSE \
    && pip install --no-cache-dir --constraint constraints.txt '.[serve]' \
    && pip uninstall --yes florence2-triton


FROM ${PYTHON_IMAGE} AS cpu-base
ENV PATH=/opt/florence2/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp florence2 \
    && install --directory --owner=florence2 --group=florence2 /models
COPY --from=cpu-packages /opt/florence2 /opt/florence2
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel pip install --no-cache-dir --no-deps /wheel/*.whl
USER 10001


FROM cpu-base AS export
USER 0
WORKDIR /checkout
COPY constraints.txt ./
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir --constraint constraints.txt "$(echo /wheel/*.whl)[export]" \
    && install --directory --owner=florence2 --group=florence2 /hub
ENV HF_HOME=/hub
USER 10001
ENTRYPOINT ["florence2", "export"]


FROM cpu-base AS cpu
# For the CPU that builds the image. On another one the server compiles at each start, for 20 s (docs/containers.md).
USER 0
RUN florence2 compile --precision int8 bfloat16 float32 int4
USER 10001
EXPOSE 8000 8001 8002
# Runs a real inference, because Triton's health endpoints do not notice a dead model process (docs/adr/0004).
HEALTHCHECK --interval=30s --timeout=35s --start-period=10m --retries=3 CMD ["florence2", "health", "--timeout", "30"]
CMD ["florence2", "serve", "--repository", "/models/repository", "--host", "0.0.0.0"]


# --- the web page and the gateway: no torch, no Triton ---
FROM ${PYTHON_IMAGE} AS ui-packages
ENV PATH=/opt/florence2/bin:$PATH
RUN python3 -m venv /opt/florence2
WORKDIR /checkout
COPY pyproject.toml constraints.txt ./
COPY florence2/__init__.py florence2/
RUN mkdir client export && touch README.md LICENSE \
    && pip install --no-cache-dir --constraint constraints.txt '.[ui,gateway]' \
    && pip uninstall --yes florence2-triton


FROM ${PYTHON_IMAGE} AS ui
ENV PATH=/opt/florence2/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp florence2
COPY --from=ui-packages /opt/florence2 /opt/florence2
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel pip install --no-cache-dir --no-deps /wheel/*.whl
USER 10001
EXPOSE 7860 8080
CMD ["florence2", "ui", "--host", "0.0.0.0"]


# --- GPU: NVIDIA's image has tritonserver, the C++ backends and virtualenv; the Python models need torch ---
FROM ${TRITON_IMAGE} AS gpu-packages
ENV PATH=/opt/florence2/bin:$PATH
RUN python3 -m virtualenv /opt/florence2
WORKDIR /checkout
COPY pyproject.toml constraints.txt ./
COPY florence2/__init__.py florence2/
RUN mkdir client export && touch README.md LICENSE \
    && pip install --no-cache-dir --constraint constraints.txt '.[models]' \
    && pip uninstall --yes florence2-triton


FROM ${TRITON_IMAGE} AS gpu
ENV PATH=/opt/florence2/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp florence2 \
    && install --directory --owner=florence2 --group=florence2 /models /var/cache/florence2 /var/cache/florence2/tensorrt
COPY --from=gpu-packages /opt/florence2 /opt/florence2
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel pip install --no-cache-dir --no-deps /wheel/*.whl
USER 10001
EXPOSE 8000 8001 8002
# The first start builds TensorRT's engine, which takes minutes.
HEALTHCHECK --interval=30s --timeout=35s --start-period=30m --retries=3 CMD ["florence2", "health", "--timeout", "30"]
CMD ["florence2", "serve", "--repository", "/models/repository", "--host", "0.0.0.0", "--tritonserver", "/opt/tritonserver"]
