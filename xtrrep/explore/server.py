"""The explorer's web server: the page, a column for the slider, and the script. Starlette under uvicorn, an extra."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xtrrep.console import DataError, UsageError, XtrrepError, say
from xtrrep.explore import page
from xtrrep.explore.answers import Session
from xtrrep.explore.indexes import Indexed
from xtrrep.explore.state import SIDES, State, read_state

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

SCRIPT = Path(__file__).with_name("explore.js")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def require() -> None:
    """Raise DataError where Starlette or uvicorn is not installed."""
    if missing := [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise DataError(f"the page needs {' and '.join(missing)}", hint="pip install 'xtrrep[explore]'")


def application(found: Mapping[str, Indexed], hosts: Sequence[str] = LOOPBACK) -> Starlette:
    """The web application over complete indexes. hosts: the names under which it answers, "*" for any.

    Raises DataError as `require`.
    """
    require()
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import FileResponse, HTMLResponse
    from starlette.routing import Route

    session = Session(found)
    data = next(iter(found.values())).cfg.data.id

    def whole(request: Request) -> Response:
        state = read_state(request.query_params, found)
        results = (_results(session, state, 0), _results(session, state, 1))
        return HTMLResponse(page.whole(state, found, results, _why(session, state), data))

    def column(request: Request) -> Response:
        state = read_state(request.query_params, found)
        side = request.query_params.get("side", "")
        if side not in SIDES:
            return HTMLResponse(page.failed(f"no side {side!r}"), status_code=400)
        return HTMLResponse(_results(session, state, SIDES.index(side)))

    def script(request: Request) -> Response:
        return FileResponse(SCRIPT, media_type="text/javascript")

    return Starlette(
        routes=[Route("/", whole), Route("/column", column), Route("/explore.js", script)],
        # A page elsewhere could otherwise read this one through a name that leads here.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
    )


def _results(session: Session, state: State, side: int) -> str:
    if not state.query.strip():
        return ""
    try:
        return page.column(state, side, session.answer(state.query, state.columns[side]))
    except XtrrepError as error:
        return page.failed(f"{error} ({error.hint})" if error.hint else str(error))


def _why(session: Session, state: State) -> str:
    for side, column in enumerate(state.columns):
        if column.doc and state.query.strip():
            try:
                return page.why(session.explain(state.query, column), side)
            except XtrrepError as error:
                return page.failed(f"{error} ({error.hint})" if error.hint else str(error))
    return ""


def serve(found: Mapping[str, Indexed], host: str, port: int) -> None:
    """Answer until interrupted. Raises DataError without the extra, UsageError where the port is taken."""
    app = application(found, LOOPBACK if host in LOOPBACK else ("*",))
    import socket

    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}", hint=f"--port {port + 1}") from None
    with listening:
        say(f"http://{host}:{listening.getsockname()[1]}/ (Ctrl-C ends it)")
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
