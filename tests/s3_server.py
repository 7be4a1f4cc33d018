"""An S3 server on loopback, moto's, with one empty bucket."""

import logging
import os
from typing import Any, NamedTuple

import pytest


class S3(NamedTuple):
    """A bucket on a server that the environment leads to, and nowhere else."""

    url: str  # of the bucket
    endpoint: str  # of the server
    client: Any  # boto3's

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=self._bucket, Key=key, Body=body)

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self._bucket, Key=key)["Body"].read()

    def keys(self, folder: str = "") -> list[str]:
        """The keys that begin with this, without it."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=folder)
        return [item["Key"].removeprefix(folder) for page in pages for item in page.get("Contents", [])]

    @property
    def _bucket(self) -> str:
        return self.url.removeprefix("s3://")


@pytest.fixture(scope="session")
def s3_server():
    """The address of the server."""
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """An empty bucket, to which the environment leads."""
    import boto3

    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="models")
    made = S3("s3://models", s3_server, client)
    yield made
    for key in made.keys():
        client.delete_object(Bucket="models", Key=key)
