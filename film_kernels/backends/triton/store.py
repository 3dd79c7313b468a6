"""What `autotune` measured, on disk: a JSON file that is written in one step and that nobody has to trust."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import threading
import warnings
from pathlib import Path

_FORMAT = "film_kernels triton measurements 1"
_LARGEST = 64 * 2**20  # bytes: a record has about 1000
_lock = threading.Lock()


def path() -> Path:
    """FILM_KERNELS_TUNING, or film_kernels/triton.json in the user's cache folder (without a home, in that for
    temporary files)."""
    if chosen := os.environ.get("FILM_KERNELS_TUNING"):
        return Path(chosen)
    if cache := os.environ.get("XDG_CACHE_HOME"):
        folder = Path(cache)
    else:
        try:
            folder = Path.home() / ".cache"
        except RuntimeError:  # a container's user may have none
            folder = Path(tempfile.gettempdir())
    return folder / "film_kernels" / "triton.json"


def load(file: Path) -> dict[str, dict] | None:
    """The records in `file` by key; {} where there is no file; None, with a warning, for one that is not ours."""
    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode):  # to read a pipe could take forever
            return _ignored(file, "it is not a file")
        if about.st_size > _LARGEST:
            return _ignored(file, f"it has more than {_LARGEST >> 20} MiB")
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in its name
        return _ignored(file, f"it cannot be read ({error})")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: nested too deeply
        return _ignored(file, "it is not JSON")
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        return _ignored(file, f"it does not say {_FORMAT!r}")
    records = content.get("records")
    if not isinstance(records, dict) or not all(isinstance(record, dict) for record in records.values()):
        return _ignored(file, "its records are not as this version writes them")
    return records


def save(file: Path, key: str, record: dict) -> bool:
    """Add `record` to the file, and say whether that was possible. A file that is not ours is left as it is.

    The file is replaced as a whole, so that a reader sees the old one or the new one; where it is a symbolic link, what
    the link points to is. Of two processes that save at the same moment one may lose its record, which is then measured
    again.
    """
    with _lock:
        records = load(file)
        if records is None:
            return False
        temporary = None
        try:
            content = json.dumps({"format": _FORMAT, "records": {**records, key: record}}, indent=1, sort_keys=True)
            target = file.resolve()
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=target.parent, prefix=target.name, delete=False
            ) as stream:
                temporary = Path(stream.name)
                stream.write(content)
            if target.exists():
                shutil.copymode(target, temporary)
            temporary.replace(target)
        except (OSError, RuntimeError) as error:  # RuntimeError: a record that somebody nested too deeply
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            warnings.warn(f"film_kernels cannot remember its measurements in {file}: {error}", stacklevel=2)
            return False
    return True


def _ignored(file: Path, reason: str) -> None:
    warnings.warn(
        f"film_kernels ignores the tuning file {file}: {reason}; remove it, or name another in FILM_KERNELS_TUNING",
        stacklevel=3,
    )
