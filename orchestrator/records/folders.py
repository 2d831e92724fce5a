"""All that lies below a folder or URI: how much it is, and its removal."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from orchestrator.errors import Failed
from orchestrator.records.ledger import shown

FAILURES = (OSError, pa.ArrowException, ValueError)


def size_bytes(place: str | Path) -> int:
    """The bytes below a place; 0 where there is nothing. Raises Failed if that can't be told now."""
    try:
        if "://" not in str(place):
            return sum(path.lstat().st_size for path in Path(place).rglob("*") if not path.is_dir())
        filesystem, path = pyarrow.fs.FileSystem.from_uri(str(place))
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(path, recursive=True, allow_not_found=True))
        return sum(info.size or 0 for info in found if info.is_file)
    except FAILURES as error:
        raise Failed(_says("look at", place, error)) from None


def delete(place: str | Path) -> None:
    """Delete a place with all below it, if it is there. Raises Failed where something can't be deleted."""
    try:
        if "://" not in str(place):
            if Path(place).exists():
                shutil.rmtree(place)
            return
        filesystem, path = pyarrow.fs.FileSystem.from_uri(str(place))
        if filesystem.get_file_info(path).type != pyarrow.fs.FileType.NotFound:
            filesystem.delete_dir(path)
    except FAILURES as error:
        raise Failed(_says("remove", place, error)) from None


def _says(verb: str, place: str | Path, error: Exception) -> str:
    return f"can't {verb} '{shown(str(place))}': {getattr(error, 'strerror', None) or ' '.join(str(error).split())}"
