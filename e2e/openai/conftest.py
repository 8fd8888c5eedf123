"""Where the servers are, and clients to them.

SLUICE_URL          of the server under test, as in http://127.0.0.1:8080
SLUICE_ADMIN_URL    of its admin listener
SLUICE_GUARDED_URL  of a second server with API keys, --max-concurrency 1 and a small --max-body
SLUICE_GUARDED_ADMIN_URL, SLUICE_GUARDED_KEY, SLUICE_GUARDED_MAX_BODY
SLUICE_REFERENCE    reference.json of the model that the first serves (default: tiny-moe's)

run.sh sets them all. Tests of what is not given are skipped.
"""

import json
import os
import urllib.request
from pathlib import Path

import openai
import pytest

REFERENCE = Path(__file__).resolve().parents[2] / "models" / "tiny-moe" / "reference.json"


def wanted(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        pytest.skip(f"{name} is not set")
    return value


def api(url: str, key: str = "unused") -> openai.OpenAI:
    # Without retries: a refusal is what some tests wait for.
    return openai.OpenAI(base_url=url.rstrip("/") + "/v1", api_key=key, max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def client():
    with api(wanted("SLUICE_URL")) as made:
        yield made


@pytest.fixture(scope="session")
def model(client) -> str:
    return client.models.list().data[0].id


@pytest.fixture(scope="session")
def guarded():
    with api(wanted("SLUICE_GUARDED_URL"), wanted("SLUICE_GUARDED_KEY")) as made:
        yield made


@pytest.fixture(scope="session")
def references() -> list[dict]:
    return json.loads(Path(os.environ.get("SLUICE_REFERENCE") or REFERENCE).read_text())["references"]


@pytest.fixture
def metrics():
    """() -> {name with labels: value} of the server under test."""
    url = wanted("SLUICE_ADMIN_URL").rstrip("/") + "/metrics"

    def read() -> dict[str, float]:
        with urllib.request.urlopen(url, timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    return read
