"""The toolkit as one wheel that travels to a cluster's nodes: zipped from the installed packages, without dependencies.

Ray installs it there with plain `pip install --target`, so a Requires-Dist would fetch everything anew on every node; the nodes have the
dependencies. A user has no source tree, so it is made from what is imported. Ray keeps a wheel on a cluster by its file's name, so the
name holds a hash of what is in it (as the build tag, https://packaging.python.org/specifications/binary-distribution-format/).
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

LEFT_OUT = ("__pycache__",)


def make_wheel(name: str, version: str, packages: Mapping[str, Path], folder: Path) -> Path:
    """Write NAME-VERSION-0HASH-py3-none-any.whl with the packages' files into a folder; the same files give the same bytes."""
    files: dict[str, bytes] = {}
    for package, root in packages.items():
        for path in sorted(p for p in root.rglob("*") if p.is_file() and not set(LEFT_OUT) & set(p.parts)):
            files[f"{package}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    info = f"{name}-{version}.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: orchestrator\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{inside},sha256={_digest(content)},{len(content)}" for inside, content in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]).encode() + b"\n"
    content_hash = hashlib.sha256(files[f"{info}/RECORD"]).hexdigest()[:16]
    wheel = folder / f"{name}-{version}-0{content_hash}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside, content in files.items():
            archive.writestr(zipfile.ZipInfo(inside, (2020, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return wheel


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
