import hashlib
import os
import signal
import sys
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest

from physio_data.executors import dask_cluster, processes
from physio_data.prepare import PrepareConfig, prepare

CONFIG = PrepareConfig(corpus="synthetic", corpus_options={"n_subjects": 240, "minutes": 0.5}, shard_windows=100)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_midway_gives_the_bytes_of_a_serial_run(tmp_path):
    distributed = pytest.importorskip("distributed", reason="the extra dask is not installed")
    serial = prepare(CONFIG, tmp_path / "serial")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        killed = []

        def progress(done, total, n_windows):
            if done >= total // 4 and not killed:
                with distributed.Client(cluster.scheduler_address, set_as_default=False) as client:
                    killed.append(next(iter(client.run(os.getpid).values())))
                os.kill(killed[0], signal.SIGKILL)

        with dask_cluster(cluster.scheduler_address) as (executor, in_flight):
            assert in_flight == 8
            found = prepare(CONFIG, tmp_path / "cluster", executor=executor, in_flight=in_flight, progress=progress)
    assert killed and found == serial and len(serial["shards"]) > 2
    assert digests(tmp_path / "cluster") == digests(tmp_path / "serial")


def test_a_missing_extra_names_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"pip install \"physio-data\[dask\]\""), dask_cluster("tcp://127.0.0.1:1"):
        pass


def test_a_dead_process_is_said():
    with pytest.raises(BrokenExecutor, match="use fewer workers"), processes(1) as (executor, in_flight):
        assert in_flight == 4
        executor.submit(os._exit, 9).result()


@pytest.mark.parametrize("value", [0, -2])
def test_counts_below_one_are_refused(value, tmp_path):
    with pytest.raises(ValueError, match=f"n_workers must be at least 1, got {value}"), processes(value):
        pass
    with pytest.raises(ValueError, match=f"in_flight must be at least 1, got {value}"):
        prepare(CONFIG, tmp_path / "s", in_flight=value)
