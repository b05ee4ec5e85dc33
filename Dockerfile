# The project's image: the dashboard service, the demo, and the command `otel-tracker`.
#   docker build -t otel-tracker .
ARG PYTHON=3.13-slim-bookworm

FROM python:${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
WORKDIR /src
# Everything fetched is pinned with its hash. First, so that a change of the code does not fetch it
# again; wheels only, since the image has no compiler.
COPY deploy/requirements.txt deploy/requirements-build.txt deploy/
RUN python -m venv /opt/otel-tracker \
    && /opt/otel-tracker/bin/pip install --require-hashes --only-binary :all: -r deploy/requirements.txt \
    && pip install --require-hashes --only-binary :all: -r deploy/requirements-build.txt
COPY pyproject.toml README.md LICENSE ./
COPY otel_tracker otel_tracker
# pip cannot check the hash of a folder, so the project comes by itself, built by what is there.
RUN pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/otel-tracker/bin/pip install --no-deps dist/*.whl \
    && /opt/otel-tracker/bin/python -m pip uninstall --yes pip

FROM python:${PYTHON}
# As the Collector and Jaeger: one id for all that read the token.
RUN groupadd --gid 10001 otel-tracker \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp otel-tracker
COPY --from=build /opt/otel-tracker /opt/otel-tracker
# The root may be read-only: bytecode is compiled already, and what is written goes to /tmp.
ENV PATH=/opt/otel-tracker/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["otel-tracker"]
CMD ["--help"]
