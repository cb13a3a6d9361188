# The first stage installs, the second copies the result: the image has no pip in its venv, no compiler, no cache and no
# embedded servers. It runs as an unprivileged user. The build needs neither BuildKit nor secrets.
FROM python:3.13-slim AS build
WORKDIR /src
COPY requirements.lock ./
# Up to its second heading the lock has the runtime dependencies; the rest is for `cistern up` and for developers.
RUN sed '/^# The private PostgreSQL and Redis/,$d' requirements.lock > run.lock \
    && python -m venv --without-pip /opt/cistern \
    && pip --python /opt/cistern/bin/python install --no-cache-dir --require-hashes --requirement run.lock
COPY pyproject.toml README.md LICENSE ./
COPY api api
COPY domain domain
COPY worker worker
RUN pip --python /opt/cistern/bin/python install --no-cache-dir --no-deps .

FROM python:3.13-slim
# The tools that make and grow the file systems of volumes.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends btrfs-progs e2fsprogs xfsprogs \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin cistern \
    && install --directory --owner cistern --group cistern /var/lib/cistern
COPY --from=build /opt/cistern /opt/cistern
ENV PATH=/opt/cistern/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CISTERN_DATA_DIR=/var/lib/cistern
USER cistern
WORKDIR /var/lib/cistern
# An empty named volume that is mounted here takes over the owner of the directory, so the user can write to it.
VOLUME /var/lib/cistern
EXPOSE 8000
CMD ["cistern", "serve", "--host", "0.0.0.0"]
