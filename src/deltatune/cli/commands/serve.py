"""`deltatune serve`: a server of adapters on one base, with OpenAI's routes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from deltatune.cli.commands.store import VARIABLE
from deltatune.cli.options.quantize_options import AdapterQuantize
from deltatune.cli.options.shared_options import CHECK_PRECISION, DATA, Json, option
from deltatune.cli.ui.screen import say
from deltatune.cli.ui.serve_screen import show_started
from deltatune.core.errors import DeltatuneError

if TYPE_CHECKING:
    from deltatune.serving.server.guard.api_keys import KeyFile
    from deltatune.serving.server.guard.request_log import RequestLog
    from deltatune.store.adapter_store import AdapterStore

SERVER, MEMORY = "Server", "Memory"


def serve(
    model: Annotated[
        str | None,
        option(
            "--model",
            "-m",
            panel=DATA,
            metavar="MODEL",
            help="The base: a folder, a name on the hub, or builtin. Default: the one that the adapters name.",
        ),
    ] = None,
    store: Annotated[
        str | None,
        option(
            "--store",
            panel=DATA,
            metavar="DIR",
            help="A store of adapters: a folder, or s3://... What is added to it is served without a restart. Default: "
            f"{VARIABLE}.",
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        option(
            "--adapter",
            "-a",
            panel=DATA,
            metavar="[NAME=]FOLDER",
            help="A trained adapter, or the folder of its run, without any store; give it again for more.",
        ),
    ] = None,
    other_base: Annotated[
        bool, option("--other-base", panel=DATA, help="Serve adapters of other weights of the same shapes too.")
    ] = False,
    quantize: AdapterQuantize = None,
    precision: Annotated[
        str,
        option("--precision", panel=DATA, metavar="KIND", help="auto, float32 or bfloat16.", callback=CHECK_PRECISION),
    ] = "auto",
    host: Annotated[str, option("--host", panel=SERVER, metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, option("--port", "-p", panel=SERVER, metavar="NUMBER", help="Port; 0 is any free one.")
    ] = 8000,
    keys: Annotated[
        Path | None,
        option("--keys", panel=SERVER, metavar="FILE", help="Who may call: a file that `deltatune keys` makes."),
    ] = None,
    no_keys: Annotated[
        bool, option("--no-keys", panel=SERVER, help="Listen on other addresses than this machine's without keys.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        option("--allow-host", panel=SERVER, metavar="NAME", help="Another name of the server, such as a proxy's."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        option("--allow-origin", panel=SERVER, metavar="ORIGIN", help="A web page of another origin that may call."),
    ] = None,
    request_seconds: Annotated[
        float, option("--request-seconds", panel=SERVER, metavar="SECONDS", help="What a request may take.")
    ] = 600.0,
    drain_seconds: Annotated[
        float,
        option("--drain-seconds", panel=SERVER, metavar="SECONDS", help="For running requests, on SIGTERM or Ctrl-C."),
    ] = 30.0,
    log_prompts: Annotated[
        bool, option("--log-prompts", panel=SERVER, help="Write what was sent into the log, prompts and all.")
    ] = False,
    adapters_in_memory: Annotated[
        int,
        option("--adapters-in-memory", panel=MEMORY, metavar="NUMBER", help="Those used longest ago make room.", min=1),
    ] = 64,
    rows: Annotated[
        int, option("--rows", panel=MEMORY, metavar="NUMBER", help="Answers that are written at once.", min=1)
    ] = 64,
    queue: Annotated[
        int, option("--queue", panel=MEMORY, metavar="NUMBER", help="Requests that wait; more get 503.", min=1)
    ] = 512,
    as_json: Json = False,
) -> None:
    """Serve any number of adapters on one base, over HTTP in the form of OpenAI's API.

    Each adapter of the store is a model: `german` is one, `german:0.7+legal:0.3` two with weights, `base` none. Text
    generators answer /v1/completions and /v1/chat/completions, others /v1/classify, /v1/tag and /v1/answer, all of them
    /v1/embeddings. A page to try them is at /. Without keys it listens to this machine alone. SIGTERM or Ctrl-C lets
    running requests finish; the second one ends it at once.

      deltatune serve --store adapters
      deltatune serve --model gpt2 --store adapters --keys keys.json --host 0.0.0.0
      deltatune serve --adapter runs/train-recipes-lora-r-8 --port 0
    """
    check_extra()
    from deltatune.serving.server.guard.bounds import Bounds
    from deltatune.serving.server.guard.guards import Guarding
    from deltatune.serving.server.guard.origins import Origins, check_exposure, is_local
    from deltatune.serving.server.guard.request_log import RequestLog
    from deltatune.serving.server.server_process import address_of, listen, serve_until_signal

    if not 0 <= port <= 65535:
        raise DeltatuneError(f"--port {port}: ports are numbers from 1 to 65535, and 0 is any free one")
    check_exposure(host, keys is not None, no_keys)
    log = RequestLog(bodies=log_prompts)
    guarding = Guarding(
        bounds=Bounds(request_seconds=request_seconds, drain_seconds=drain_seconds),
        keys=None if keys is None else read_key_file(keys, log),
        anyone_is_admin=not no_keys,
        origins=Origins.of(host, tuple(allow_host or ()), tuple(allow_origin or ())),
        log=log,
    )
    with ExitStack() as stack:
        opened = stack.enter_context(opened_store(store, adapter or ()))
        sock = stack.enter_context(listen(host, port))  # before the model is loaded, which takes longer to fail
        from deltatune.serving.engine.engine_limits import EngineLimits
        from deltatune.serving.open_service import base_of, open_service
        from deltatune.serving.server.application import create_app

        check_served(opened)
        base = model or base_of(opened)
        service = stack.enter_context(
            open_service(
                opened,
                base,
                other_base=other_base,
                quantize=quantize,
                precision=precision,
                adapters=adapters_in_memory,
                limits=EngineLimits(rows=rows, queue=queue),
            )
        )
        guard = create_app(service, guarding)
        address = address_of(sock)
        serve_until_signal(guard, sock, lambda: show_started(service, base, address, guarding, is_local(host), as_json))
    say("stopped", aside=True)


def check_served(store: AdapterStore) -> None:
    """Raise DeltatuneError where all adapters draw pictures, which the server does not."""
    entries = store.list()
    if entries and all(entry.task == "image" for entry in entries):
        names = ", ".join(entry.name for entry in entries[:5])
        raise DeltatuneError(
            f"{names} {'draws' if len(entries) == 1 else 'draw'} pictures, which no server here does: deltatune draw "
            '--adapter FOLDER --text "what to draw"'
        )


def check_extra() -> None:
    """Raise DeltatuneError where the packages of the server are missing."""
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise DeltatuneError(f'the server needs {", ".join(missing)}: pip install "deltatune[serve]"')


def read_key_file(path: Path, log: RequestLog) -> KeyFile:
    """The file of keys; what is wrong with a later change of it is told to the log."""
    from deltatune.serving.server.guard.api_keys import KeyFile

    return KeyFile(path, lambda problem: log.event("keys", problem=problem))


@contextmanager
def opened_store(store: str | None, adapters: Sequence[str]) -> Iterator[AdapterStore]:
    """The store that is served: the user's, or one for single adapters that lasts as long as the server."""
    from deltatune.store.adapter_store import AdapterStore

    if store is not None and adapters:
        raise DeltatuneError(
            "--store and --adapter exclude each other: `deltatune store add` puts an adapter into the store"
        )
    place = store or (None if adapters else os.environ.get(VARIABLE))
    if place:
        opened = AdapterStore(place)
        if not opened.exists:
            raise DeltatuneError(f"there is no store {place}; `deltatune store add FOLDER --store {place}` makes one")
        yield opened
        opened.close()
        return
    if not adapters:
        raise DeltatuneError(
            "nothing says which adapters are served: give --store DIR, set "
            f"{VARIABLE}, or give --adapter FOLDER, once for each adapter"
        )
    with tempfile.TemporaryDirectory(prefix="deltatune-") as folder:
        opened = AdapterStore(Path(folder) / "store")
        for each in adapters:
            name, sign, path = each.partition("=")
            opened.add(path if sign else each, name if sign else None)
        yield opened
        opened.close()
