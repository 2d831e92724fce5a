"""A real S3 server on loopback: moto's, in a thread of the test."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow.fs
from moto.server import ThreadedMotoServer


@dataclass(frozen=True)
class Bucket:
    """`uri`: below which a test may write; `env`: the credentials, as a process finds them in its environment."""

    host: str
    port: int
    name: str = field(default_factory=lambda: f"bucket-{secrets.token_hex(4)}")  # moto keeps what is in one for the process
    secret: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def uri(self) -> str:
        return f"s3://{self.name}/checkpoints?endpoint_override={self.host}:{self.port}&scheme=http"

    @property
    def env(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": "AKIAOFTESTS", "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_DEFAULT_REGION": "eu-west-1"}

    def names(self) -> list[str]:
        """Of everything in the bucket."""
        filesystem = self._filesystem()
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(self.name, recursive=True))
        return sorted(info.path.removeprefix(f"{self.name}/") for info in found if info.is_file)

    def content(self, name: str) -> bytes:
        with self._filesystem().open_input_file(f"{self.name}/{name}") as opened:
            return bytes(opened.read())

    def put(self, name: str, content: bytes) -> None:
        with self._filesystem().open_output_stream(f"{self.name}/{name}") as out:
            out.write(content)

    def make(self) -> None:
        self._filesystem().create_dir(self.name)

    def _filesystem(self) -> pyarrow.fs.S3FileSystem:
        return pyarrow.fs.S3FileSystem(
            access_key=self.env["AWS_ACCESS_KEY_ID"], secret_key=self.secret, region="eu-west-1", scheme="http",
            endpoint_override=f"{self.host}:{self.port}", allow_bucket_creation=True,
        )  # fmt: skip


@contextlib.contextmanager
def bucket(host: str = "127.0.0.1") -> Iterator[Bucket]:
    """An empty bucket, gone with its server at the end."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address=host, port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        made = Bucket(host, port)
        made.make()
        yield made
    finally:
        server.stop()
