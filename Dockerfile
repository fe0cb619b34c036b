# syntax=docker/dockerfile:1.10
#
# docker build .                                        the worker, weights from a volume or Runpod's model cache
# docker build --build-arg BAKE_WEIGHTS=1 --secret id=hf_token,env=HF_TOKEN .      the worker with the weights inside
# docker build --target test --build-arg BASE_IMAGE=ubuntu:24.04 \
#   --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu .         the tests, without a GPU

# torch's own wheels bring CUDA's libraries; the base brings what the NVIDIA container runtime looks for. It is of the
# same major version as the wheels, since Runpod picks hosts by the driver that the image asks for.
ARG BASE_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04
ARG BAKE_WEIGHTS=0

# Runpod's machines and the pinned wheels are amd64, whatever machine builds.
# hadolint ignore=DL3029
FROM --platform=linux/amd64 ${BASE_IMAGE} AS system
# Versions of system packages are left to the distribution: its archive keeps the latest one only.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends ca-certificates ffmpeg python3 \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# Whatever needs pip or a compiler happens here; the worker takes the finished environment alone.
FROM system AS requirements
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends build-essential python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
ARG PIP_EXTRA_INDEX_URL
COPY requirements.txt /tmp/
RUN python3 -m venv /opt/venv && pip install --requirement /tmp/requirements.txt
# English pronunciation for Kokoro, which would download it while a job waits. It is on no package index.
ARG SPACY_MODEL=https://github.com/explosion/spacy-models/releases/download/en_core_web_sm-3.8.0/en_core_web_sm-3.8.0-py3-none-any.whl
# hadolint ignore=DL3013
RUN pip install "${SPACY_MODEL}"

FROM requirements AS test
COPY requirements-dev.txt /tmp/
RUN pip install --requirement /tmp/requirements-dev.txt && useradd --create-home --uid 1001 tester
WORKDIR /home/tester/app
RUN chown 1001 .
COPY --chown=1001 . .
USER 1001
RUN ruff check . && ruff format --check . && mypy && python -m pytest -m "not long"

FROM system AS weights-0
RUN mkdir /weights

FROM requirements AS weights-1
WORKDIR /app
COPY infinitetalk infinitetalk
# The token is one for Hugging Face, for private mirrors alone: the published repositories ask for none.
RUN --mount=type=secret,id=hf_token,env=HF_TOKEN \
    python -m infinitetalk.weights download --folder /weights base-480 adapter wav2vec2 kokoro

# hadolint ignore=DL3006
FROM weights-${BAKE_WEIGHTS} AS weights

FROM system AS worker
RUN useradd --create-home --uid 1001 worker
COPY --from=requirements /opt/venv /opt/venv
WORKDIR /app
COPY --from=weights /weights weights
COPY LICENSE handler.py ./
COPY schemas schemas
COPY infinitetalk infinitetalk
# Deployed, a worker without weights shall stop, not draw cartoons.
ENV INFINITETALK_MODEL=published \
    OUTPUT_DIR=/runpod-volume \
    TINY_DIR=/tmp/tiny \
    HF_HUB_OFFLINE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Network volumes belong to root. Where results go to S3, --build-arg WORKER_UID=1001 runs without privileges.
ARG WORKER_UID=0
USER ${WORKER_UID}
CMD ["python", "-u", "handler.py"]
