# One image for every role: `tuner serve`, `tuner worker`, `tuner migrate`.
# torch compiles fused steps at run time: on a CPU it needs g++, on a GPU Triton needs gcc.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/tuner
COPY constraints.txt pyproject.toml README.md ./
COPY tuner_service ./tuner_service
COPY workers ./workers
COPY migrations ./migrations
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/tuner/bin/pip install -c constraints.txt '.[all,plots,parquet]'

FROM python:3.11-slim-bookworm
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home tuner \
    && install --directory --owner=tuner --group=tuner --mode=0700 /data
COPY --from=build /opt/tuner /opt/tuner
# Where the wheel keeps `workers`, for the health check and `celery -A workers.celery_app`.
ENV PYTHONPATH=/opt/tuner/lib/python3.11/site-packages/tuner_service/bundled
ENV PATH=/opt/tuner/bin:$PATH TUNER_DATA_DIR=/data PYTHONUNBUFFERED=1
USER tuner
VOLUME /data
EXPOSE 8000
ENTRYPOINT ["tuner"]
CMD ["--help"]
