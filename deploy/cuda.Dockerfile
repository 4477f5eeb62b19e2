# An image that runs dbcache-trt on NVIDIA's GPUs with the provider `cuda`. From the root of the repository:
#
#   docker build -f deploy/cuda.Dockerfile -t dbcache-trt .
#   docker run --rm --gpus all -v "$PWD/engines:/engines:ro" -v "$PWD/out:/output" \
#       dbcache-trt --engine /engines/flux --provider cuda --prompt "…"
#
# This file is linted by `cargo xtask check-deploy`. No image was built from it or run yet (docs/gpu.md).
#
# Images are named by their tags. A tag may come to mean another image: who builds for others pins each by its digest
# (`FROM rust:…@sha256:…`), which only the registry can tell.

# The command and the C library. Only this stage has a compiler. Its glibc is older than that of the last stage.
FROM rust:1.92-bookworm AS build
WORKDIR /source
COPY Cargo.toml Cargo.lock README.md ./
COPY src src
COPY capi capi
# Members of the workspace, and files that its manifest names: without them cargo does not start.
COPY benches benches
COPY examples examples
COPY fuzz fuzz
COPY xtask xtask
COPY .cargo .cargo
# Headers and the static library are for builds, not for runs.
RUN cargo build --release --locked --package dbcache-trt \
    && cargo xtask install --prefix /installed \
    && rm -r /installed/include /installed/lib/cmake /installed/lib/pkgconfig /installed/lib/libdbcache_trt.a \
    && install -D --strip target/release/dbcache-trt /installed/bin/dbcache-trt

# ONNX Runtime's build for GPUs, as `setup` fetches it and compares it with the SHA-256 in the source. `setup` also fetches CUDA and
# cuDNN, 2.1 GB that the last stage has from NVIDIA already: only ONNX Runtime's own four files are kept.
FROM python:3.12-slim-bookworm AS libraries
COPY --from=build /installed/bin/dbcache-trt /usr/local/bin/dbcache-trt
ENV DBCACHE_TRT_HOME=/fetched
RUN dbcache-trt setup --provider cuda --via pip \
    && mkdir /onnxruntime \
    && cp /fetched/providers/cuda/*/libonnxruntime* /onnxruntime/ \
    && ln -s libonnxruntime.so.1.31.1 /onnxruntime/libonnxruntime.so \
    && rm -r /fetched

# CUDA 13.0 and cuDNN 9 without compilers: the versions for which that ONNX Runtime is built.
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04
COPY --from=libraries /onnxruntime /opt/onnxruntime
COPY --from=build /installed /usr/local
# ONNX Runtime takes CUDA and cuDNN from this image by the system's loader. Builds of providers that compile, and whatever else
# `setup` fetches later, lie in the data folder.
ENV ORT_DYLIB_PATH=/opt/onnxruntime/libonnxruntime.so \
    DBCACHE_TRT_HOME=/data
# The user writes to these folders only. A volume that is mounted there must belong to 10001, or be writable for it.
RUN ldconfig \
    && useradd --uid 10001 --user-group --create-home dbcache \
    && mkdir -p /engines /data/builds /output \
    && chown -R dbcache:dbcache /data /output
# By number, so that hosts can tell that it is not root.
USER 10001:10001
WORKDIR /output
VOLUME ["/engines", "/data/builds", "/output"]
# For hosts that keep a container for many runs: whether the driver and a GPU can still be used.
HEALTHCHECK --interval=60s --timeout=30s --start-period=30s \
    CMD ["/bin/bash", "-o", "pipefail", "-c", "dbcache-trt providers --provider cuda | grep -Eq '^cuda +usable'"]
ENTRYPOINT ["dbcache-trt"]
CMD ["--help"]
