"""One file from a web host: gone on with where it broke off, and put in place only with the checksum it should have."""

from __future__ import annotations

import os
import time
from pathlib import Path

from xtrrep.artifacts.hashes import hash_file
from xtrrep.artifacts.locks import lock
from xtrrep.console import DataError, progress

WAITS = (1.0, 4.0)  # seconds before another try, of tries in a row that brought nothing
LONGEST = 60.0  # seconds that a host may ask to be left alone
BUSY = (408, 429, 500, 502, 503, 504)
SECONDS = float(os.environ.get("IR_DATASETS_DL_TIMEOUT", "15"))  # without a byte


def download(url: str, path: Path, md5: str, size: int | None, hint: str) -> None:
    """Fetch `url` to `path`. Processes that want the same file wait for one another.

    What an interrupted run left in `.partial-NAME` beside it is gone on with. Raises DataError, with `hint`, where the
    host does not deliver or sends other bytes than those of the MD5 listed.
    """
    partial = path.with_name(f".partial-{path.name}")
    with lock(path.with_name(f".lock-{path.name}"), str(path)):
        if path.is_file():
            return
        _fill(url, partial, size, hint)
        found = hash_file(partial, algorithm="md5")
        if found != md5:
            partial.unlink()
            raise DataError(f"{url} sent other bytes than listed: MD5 {found}, and {md5} was expected", hint=hint)
        os.replace(partial, path)


def _fill(url: str, partial: Path, size: int | None, hint: str) -> None:
    """Append to `partial` until the host says that it is whole. Raises DataError."""
    import requests

    waits = list(WAITS)
    with progress(size or 0, f"fetch {partial.name.removeprefix('.partial-')}", "B") as bar:
        while True:
            have = partial.stat().st_size if partial.exists() else 0
            wait = None
            try:
                with requests.get(
                    url, stream=True, timeout=SECONDS, headers={"Range": f"bytes={have}-"} if have else {}
                ) as answer:
                    if answer.status_code == 416:  # nothing after what we have
                        return
                    why = f"it answered with status {answer.status_code}"
                    if answer.ok:
                        whole = answer.status_code == 200  # a host without ranges sends it from the start
                        with partial.open("wb" if whole else "ab") as file:
                            bar.n = 0 if whole else have
                            for block in answer.iter_content(1 << 20):
                                file.write(block)
                                bar.update(len(block))
                        return
                    asked = answer.headers.get("Retry-After", "")
                    wait = min(float(asked), LONGEST) if asked.isdecimal() else None
                    if answer.status_code not in BUSY:
                        waits.clear()
            except requests.RequestException as error:
                why = _reason(error)
            if partial.exists() and partial.stat().st_size > have:
                waits = list(WAITS)  # it brought something
            if not waits:
                raise DataError(f"could not download {url} ({why})", hint=hint)
            time.sleep(max(wait or 0.0, waits.pop(0)))


def _reason(error: BaseException) -> str:
    """The innermost reason that the HTTP library gives."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        return _reason(reason)
    return str(error).partition("\n")[0].rpartition(">: ")[2][:200] or type(error).__name__
