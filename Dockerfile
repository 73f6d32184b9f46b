# syntax=docker/dockerfile:1
# A server on the CPU. Build: docker build -t neuralchat-lite .
# Run: see docs/how-to/deploy.md.

ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm AS build

RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/neuralchat
ENV PATH=/opt/neuralchat/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# torch first, from the index of CPU builds: elsewhere it pulls gigabytes of CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH=torch>=2.8
RUN pip install --index-url "${TORCH_INDEX}" "${TORCH}"

WORKDIR /source
COPY pyproject.toml CMakeLists.txt README.md LICENSE ./
COPY neuralchat_lite neuralchat_lite
RUN pip install '.[serve,sentencepiece]'

FROM python:${PYTHON}-slim-bookworm

# What the kernels' and torch's threads need.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --user-group --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin neuralchat \
    && install -d -o neuralchat -g neuralchat /data

COPY --from=build /opt/neuralchat /opt/neuralchat
ENV PATH=/opt/neuralchat/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NEURALCHAT_LITE_CACHE=/data/quantized \
    HF_HOME=/data/hub

USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000

# Loading a model may take minutes, the first time also downloading and quantizing it.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]

ENTRYPOINT ["neuralchat-lite"]
CMD ["serve", "Intel/neural-chat-7b-v3-2", "--host", "0.0.0.0"]
