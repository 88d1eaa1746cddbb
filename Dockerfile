# The suite, with its packages in the versions of requirements.lock: docs/guides/container.md
#   docker build --build-arg UID="$(id -u)" -t pretraining .
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS packages
COPY requirements.txt requirements.lock /suite/
WORKDIR /suite
# The lines of the Makefile.
RUN python3 -m venv /opt/venv
RUN /opt/venv/bin/python -m pip install -q --no-cache-dir -c requirements.lock setuptools wheel torch
RUN /opt/venv/bin/python -m pip install -q --no-cache-dir -c requirements.lock --no-build-isolation -r requirements.txt

FROM ${BASE}
# The commit of the code, as .git is not copied; and the user's number, to whom the folders of blocks and runs belong.
ARG COMMIT=
ARG UID=1000
# tini is process 1 and passes signals on; g++ is what torch.compile and Triton compile with.
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini g++ \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid ${UID} trainer
COPY --from=packages /opt/venv /opt/venv
COPY . /suite
WORKDIR /suite
# What is mounted or written: an engine would create missing folders as root.
RUN install -d -o trainer blocks runs tokenizer build /home/trainer/.cache /home/trainer/.cache/huggingface
ENV PATH=/opt/venv/bin:${PATH} PRETRAINING_COMMIT=${COMMIT}
USER trainer
ENTRYPOINT ["tini", "-g", "--", "sh", "/suite/entrypoint.sh"]
CMD ["python3", "-m", "tools.doctor", "--run_folder_or_disk", "runs", "blocks"]
