# Fovea as an image. What each part weighs, how to build and run it: deploy/image.md
#
#   docker build -t fovea .                  serving on CPUs; models come by volume at /models
#   docker build -t fovea --target gpu .     the same with CUDA
#   docker build -t fovea --target demo .    CPUs, with this repository's models inside
#
# Every stage has the same base, so the virtual environment of a build stage fits the final one.
ARG BASE=python:3.13-slim-trixie
# opencv: with it, for models whose manifest says resampler = "opencv"; 160 MB.
ARG WITH=""

# --- Build: an environment from a hashed lock, in wheels only, so no compiler is needed even here ---
FROM ${BASE} AS build
WORKDIR /src
RUN ["python", "-m", "venv", "--without-pip", "/opt/fovea"]
COPY requirements requirements

# Dependencies first: a change of the service reuses their layer. The lock holds setuptools to build the service; it goes
# afterwards. Bytecode is made here (a read-only root would compile at every start), of all but what no server imports, and
# trusted as it is (unchecked-hash): an image is never edited.
FROM build AS build-cpu
ARG WITH
RUN python -m pip --python /opt/fovea/bin/python install --no-cache-dir --no-compile --only-binary :all: --require-hashes \
    -r requirements/cpu.txt ${WITH:+-r "requirements/$WITH.txt"}
COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN python -m pip --python /opt/fovea/bin/python install --no-cache-dir --no-compile --no-deps --no-build-isolation . \
 && python -m pip --python /opt/fovea/bin/python uninstall --yes setuptools \
 && python -m compileall -q -j 0 --invalidation-mode unchecked-hash -x '/(tests|transformers|tools|f2py|distutils)/' /opt/fovea/lib

FROM build AS build-gpu
ARG WITH
RUN python -m pip --python /opt/fovea/bin/python install --no-cache-dir --no-compile --only-binary :all: --require-hashes \
    -r requirements/gpu.txt ${WITH:+-r "requirements/$WITH.txt"}
COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN python -m pip --python /opt/fovea/bin/python install --no-cache-dir --no-compile --no-deps --no-build-isolation . \
 && python -m pip --python /opt/fovea/bin/python uninstall --yes setuptools \
 && python -m compileall -q -j 0 --invalidation-mode unchecked-hash -x '/(tests|transformers|tools|f2py|distutils)/' /opt/fovea/lib

# --- Run ---
FROM ${BASE} AS runtime
LABEL org.opencontainers.image.title="Fovea" \
      org.opencontainers.image.description="Production inference for image classification" \
      org.opencontainers.image.licenses="Apache-2.0"
# The base's installers have no place in a server.
RUN ["python", "-m", "pip", "uninstall", "--yes", "--root-user-action", "ignore", "wheel", "setuptools", "pip"]
# Settings as environment, so that flags and `-e FOVEA_...` both override them. ONNX Runtime reports to its maker, from its
# import on, unless it is told not to here.
ENV PATH=/opt/fovea/bin:$PATH \
    ORT_DISABLE_TELEMETRY=1 \
    FOVEA_SERVER__HOST=0.0.0.0 \
    FOVEA_SERVER__PORT=8000 \
    FOVEA_REPOSITORY__PATH=/models
WORKDIR /models
EXPOSE 8000
STOPSIGNAL SIGTERM
# -I: nothing of /models is ever imported.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["python", "-I", "-c", \
    "import http.client as h, os; c = h.HTTPConnection('127.0.0.1', int(os.environ['FOVEA_SERVER__PORT']), timeout=2); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["fovea", "serve"]

# The import is a smoke test of the finished image, and leaves bytecode of what the service uses of the standard library: the
# base ships none.
FROM runtime AS serving-gpu
COPY --from=build-gpu /opt/fovea /opt/fovea
RUN ["python", "-c", "import service.rest.run, service.tracing.otlp, service.workbench.check, service.workbench.classify"]
ENV PYTHONDONTWRITEBYTECODE=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001

FROM runtime AS serving-cpu
COPY --from=build-cpu /opt/fovea /opt/fovea
RUN ["python", "-c", "import service.rest.run, service.tracing.otlp, service.workbench.check, service.workbench.classify"]
ENV PYTHONDONTWRITEBYTECODE=1
USER 10001:10001

# --- Targets: labels last, so that a new revision reuses every layer ---
FROM serving-gpu AS gpu
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision=$REVISION

FROM serving-cpu AS demo
COPY model_repo /models
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision=$REVISION

FROM serving-cpu AS cpu
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision=$REVISION
