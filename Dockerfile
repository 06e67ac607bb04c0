# The command for NVIDIA GPUs: docker build -t denoise-batch . (docs/gpu.md). Nobody has run it on one yet.
FROM nvidia/cuda:12.8.1-base-ubuntu24.04

# Triton compiles C with Python's headers at the first use, the installation C++.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-dev python3-venv gcc g++ \
    && rm -rf /var/lib/apt/lists/*

COPY . /src
RUN python3 -m venv /opt/denoise-batch \
    && /opt/denoise-batch/bin/pip install --no-cache-dir --constraint /src/constraints.txt "/src[gpu]" \
    && rm -rf /src

RUN useradd --create-home denoise && install --directory --owner denoise /cache /data
ENV PATH=/opt/denoise-batch/bin:$PATH \
    TRITON_CACHE_DIR=/cache/triton
VOLUME /cache
USER denoise
WORKDIR /data
ENTRYPOINT ["denoise-batch"]
CMD ["--help"]
