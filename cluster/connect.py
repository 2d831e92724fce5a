"""Find a running Ray or start one, with our hook in every worker; shut down only what was started here."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import filelock

from . import every_node, versions
from .handshake import ANSWER_S, CLIENT, ClusterError, greet, nodes_here, resolved, use_token
from .resources import Found, of_cluster
from .wheel import make_wheel

__all__ = ["ANSWER_S", "ClusterError", "connect"]

OBJECT_STORE_BYTES = 200_000_000  # jobs and events are small; Ray's default is 30 % of the memory


@contextlib.contextmanager
def connect(
    address: str | None, hook: str, packages: Mapping[str, Path], version: str, env: Mapping[str, str], cpus: float
) -> Iterator[Found]:
    """Connected to Ray while inside. `hook`: dotted path of a function that runs first in each worker; `env`: of the workers.

    Without an address a Ray of `cpus` CPUs is started on this machine, and ended with the context. With one the `packages` travel as one
    wheel. Raises ClusterError if there is nothing at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # what a rank prints is kept by us: once
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # else 15: training would wait for whatever else runs on the machine
    environment = {"worker_process_setup_hook": hook, "env_vars": dict(env)}
    with _own_folder(Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())) as folder:
        with _own_signals():
            if address is None:
                _start(folder, environment, cpus)
            else:
                _join(address, folder, environment, packages, version)
        import ray

        try:
            yield of_cluster(ray.nodes())
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _own_folder(base: Path) -> Iterator[Path]:
    """Ray's temporary folder: a short path, since unix sockets lie in it. Those of processes that were killed are removed.

    Whose process lives is told by a lock, since another container's processes aren't seen here, and may share the base.
    """
    for lock in base.glob("orc-*/lock"):
        with contextlib.suppress(filelock.Timeout, OSError), filelock.FileLock(lock, timeout=0):  # another user's stays
            shutil.rmtree(lock.parent)
    folder = Path(tempfile.mkdtemp(prefix=f"orc-{os.getpid()}-", dir=base))
    try:
        with filelock.FileLock(folder / "lock"):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that is started here listens on 127.0.0.1 only, as it does on macOS and Windows: elsewhere it listens on every interface."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """ray.init puts a SIGTERM handler of its own in place of the program's; the program's comes back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _start(folder: Path, environment: Mapping[str, object], cpus: float) -> None:
    import ray

    os.environ.pop("RAY_ADDRESS", None)
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # workers of an empty environment, of which none would be used
    # Ray starts its workers through a shell and doesn't quote the interpreter's path (ray/_private/runtime_env/context.py)
    interpreter = {"py_executable": shlex.quote(sys.executable)} if " " in sys.executable else {}
    try:
        with _on_loopback():
            ray.init(
                address="local",
                num_cpus=int(cpus),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=40,
                _temp_dir=str(folder),
                runtime_env={**environment, **interpreter},
            )
    except Exception as error:  # a raylet that isn't up after 30 s is a plain Exception of Ray's
        raise ClusterError(f"Ray can't be started here: {' '.join(str(error).split())[:300]}") from None
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():  # ray.init writes it readable for all
        with contextlib.suppress(OSError):
            token.chmod(0o600)


def _join(address: str, folder: Path, environment: Mapping[str, object], packages: Mapping[str, Path], version: str) -> None:
    where = resolved(address)
    greet(where)
    if not where.startswith(CLIENT) and not nodes_here():
        raise ClusterError(_no_node(address))
    import ray

    use_token()
    wheel = make_wheel("orchestrator", version, packages, folder)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    try:
        ray.init(address=where, log_to_driver=False, logging_level=40, runtime_env={**environment, "py_modules": [str(wheel)]})
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        if said.startswith("No node info found"):  # those here are of other clusters
            raise ClusterError(_no_node(address)) from None
        raise ClusterError(f"the Ray cluster at '{address}' can't be used: {said}") from None
    try:
        refused = versions.refusal(versions.of_this_process(), every_node.ask(versions.of_this_process))
        if refused is not None:
            raise ClusterError(f"the cluster at '{address}' can't be used: {refused}")
    except BaseException:  # Ctrl-C too: the next one may connect again
        ray.shutdown()
        raise


def _no_node(address: str) -> str:
    return (
        f"no node of the cluster at '{address}' runs on this machine, which a driver needs: start one, `ray start --address={address} "
        "--num-cpus=0`, or send a job (`orchestrator cluster submit`), or connect as a client (ray://HOST:10001)"
    )
