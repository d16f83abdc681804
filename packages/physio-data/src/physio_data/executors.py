"""Where long work runs: processes of this machine, or the workers of a running Dask cluster. Both give a concurrent.futures.Executor."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor
from contextlib import contextmanager

PER_WORKER = 4  # calls in flight a worker: it never waits for the next one, and memory stays bounded


@contextmanager
def processes(n_workers: int) -> Iterator[tuple[Executor, int]]:
    """(executor, calls in flight) of `n_workers` fresh processes. BrokenExecutor where one of them dies."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    if n_workers < 1:
        raise ValueError(f"n_workers must be at least 1, got {n_workers}")
    with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as executor:
        try:
            yield executor, PER_WORKER * n_workers
        except BrokenExecutor as error:
            raise BrokenExecutor("a worker process died, most often because memory ran out: use fewer workers") from error


@contextmanager
def dask_cluster(address: str, *, timeout_s: float = 30.0) -> Iterator[tuple[Executor, int]]:
    """(executor, calls in flight) of the Dask scheduler at `address`, as `tcp://host:8786`.

    Workers must see the files under the same paths and have this package installed. Dask runs the calls of a lost worker again elsewhere; a
    call that takes several workers down is given up with BrokenExecutor. ImportError names the extra where `distributed` is not installed;
    ValueError where nothing answers at the address within `timeout_s` seconds, or the cluster has no worker.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise ImportError('a Dask scheduler needs the package distributed: pip install "physio-data[dask]"') from error
    try:
        client = Client(address, timeout=timeout_s)
    except (OSError, TimeoutError, ValueError) as error:
        raise ValueError(f"scheduler {address!r} does not answer within {timeout_s:g} s ({error}); start one with `dask scheduler`") from error
    with client:
        n_threads = sum(client.nthreads().values())
        if not n_threads:
            raise ValueError(f"the scheduler {address!r} has no worker; start some with `dask worker {address}`")
        with client.get_executor() as executor:
            try:
                yield executor, PER_WORKER * n_threads
            except KilledWorker as error:
                raise BrokenExecutor(f"several workers died over the same records, most often because memory ran out: {error}") from error
