"""Against a server on this machine that speaks the S3 protocol."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from physio_data import remote
from physio_data.arrays import write_store
from physio_data.corpora import twins
from physio_data.prepare import PrepareConfig, prepare
from physio_data.store import Store, Stores

RNG = np.random.default_rng(3)
CONFIG = PrepareConfig(corpus="synthetic", corpus_options={"n_subjects": 40, "minutes": 0.5}, shard_windows=30)


@pytest.fixture(scope="module")
def endpoint():
    server_of = pytest.importorskip("moto.server", reason="the S3 test server is not installed")
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch, tmp_path):
    """An empty bucket; the cache of this test is its own."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "HOME": str(tmp_path / "home"),
    }.items():
        monkeypatch.setenv(name, value)
    url = f"s3://b{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
    with remote.reached(url) as (files, base):
        files.mkdir(base)
    return url


def objects(url: str) -> dict[str, bytes]:
    with remote.reached(url) as (files, base):
        return {name[len(base) + 1 :]: files.cat_file(name) for name in files.find(base)}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def own_store(path, value=0.0, **more):
    x_NCT = RNG.standard_normal((20, 1, 30)).astype(np.float32) + np.float32(value)
    return x_NCT, write_store(path, x_NCT, fs=10.0, channels=["I"], units=["mV"], subject=[f"s{i}" for i in range(20)], shard_windows=8, **more)


def test_a_store_prepared_to_an_address_is_the_one_prepared_here(bucket, tmp_path):
    here = prepare(CONFIG, tmp_path / "here")
    assert prepare(CONFIG, f"{bucket}/stores/s") == here
    assert objects(f"{bucket}/stores/s") == contents(tmp_path / "here")
    store = Store(f"{bucket}/stores/s", verify=True)
    rows = RNG.permutation(len(store))
    np.testing.assert_array_equal(store.batch(rows)["signal"], Store(tmp_path / "here").batch(rows)["signal"])
    assert prepare(CONFIG, f"{bucket}/stores/s", progress=lambda *counts: pytest.fail("worked again")) == here
    with pytest.raises(ValueError, match=r"s3://.*/s holds a store prepared with other parameters \(split_seed: 0 there, 1 now\)"):
        prepare(PrepareConfig(**{**vars(CONFIG), "split_seed": 1}), f"{bucket}/stores/s")


@pytest.mark.parametrize("n_done", [0, 1, 3])
def test_an_interrupted_upload_is_no_store_and_goes_on(bucket, tmp_path, monkeypatch, n_done):
    x_NCT, store = own_store(tmp_path / "s")  # three shards and a manifest
    sent = []
    with remote.reached(bucket) as (files, _):
        put_whole, pipe_whole = files.put_file, files.pipe_file

    def put_file(source, target):
        if len(sent) == n_done:
            raise KeyboardInterrupt
        sent.append(target)
        put_whole(source, target)

    def pipe_file(target, content):
        if target.endswith("manifest.json") and n_done == 3:
            raise KeyboardInterrupt
        pipe_whole(target, content)

    with monkeypatch.context() as patch:
        patch.setattr(files, "put_file", put_file)
        patch.setattr(files, "pipe_file", pipe_file)
        with pytest.raises(KeyboardInterrupt):
            remote.publish(store.path, f"{bucket}/s")
    with pytest.raises(ValueError, match=r"/s is not a store: no manifest.json"):
        Store(f"{bucket}/s")
    again = []
    monkeypatch.setattr(files, "put_file", lambda source, target: (again.append(target), put_whole(source, target)))
    remote.publish(store.path, f"{bucket}/s")
    assert len(again) == 3 - n_done
    assert objects(f"{bucket}/s") == contents(tmp_path / "s")
    np.testing.assert_array_equal(Store(f"{bucket}/s").batch([19, 0])["signal"], x_NCT[[19, 0]])


def test_damage_at_the_address_is_named_and_never_read(bucket, tmp_path):
    _, store = own_store(tmp_path / "s")
    remote.publish(store.path, f"{bucket}/s")
    with remote.reached(bucket) as (files, base):
        name = f"{base}/s/shard-00001.h5"
        content = bytearray(files.cat_file(name))
        content[-100] ^= 1
        files.pipe_file(name, bytes(content))
        with pytest.raises(ValueError, match=r"s/shard-00001.h5 is damaged: SHA-256"):
            Store(f"{bucket}/s")
        files.rm_file(name)
        with pytest.raises(ValueError, match=r"s lacks its shard shard-00001.h5"):
            Store(f"{bucket}/s")
        manifest = json.loads(files.cat_file(f"{base}/s/manifest.json"))
        manifest["shards"][0]["file"] = "../../out.h5"
        files.pipe_file(f"{base}/s/manifest.json", json.dumps(manifest).encode())
        with pytest.raises(ValueError, match=r"'../../out.h5' is no file name"):
            Store(f"{bucket}/s")


def test_a_copy_is_read_again_without_the_shards_and_a_replaced_store_is_not_mixed_up(bucket, tmp_path):
    x_NCT, first = own_store(tmp_path / "a")
    y_NCT, second = own_store(tmp_path / "b", value=5.0)
    remote.publish(first.path, f"{bucket}/s")
    old = Store(f"{bucket}/s", cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="holds another store"):
        remote.publish(second.path, f"{bucket}/s")
    with remote.reached(bucket) as (files, base):
        for number in range(3):
            files.rm_file(f"{base}/s/shard-{number:05d}.h5")
        np.testing.assert_array_equal(Store(f"{bucket}/s", cache=tmp_path / "cache").batch([3])["signal"], x_NCT[[3]])
        files.rm_file(f"{base}/s/manifest.json")
    remote.publish(second.path, f"{bucket}/s")
    new = Store(f"{bucket}/s", cache=tmp_path / "cache")
    assert new.path != old.path and new.hash == second.hash
    np.testing.assert_array_equal(new.batch([3])["signal"], y_NCT[[3]])
    np.testing.assert_array_equal(old.batch([3])["signal"], x_NCT[[3]])


def test_several_stores_may_lie_at_addresses_as_a_path_writes_them(bucket, tmp_path):
    x_NCT, store = own_store(tmp_path / "s")
    remote.publish(store.path, f"{bucket}/s")
    both = Stores([Path(f"{bucket}/s"), tmp_path / "s"])
    np.testing.assert_array_equal(both.batch([3, 23])["signal"], x_NCT[[3, 3]])


def test_a_corpus_is_mirrored_and_followed(bucket, tmp_path):
    twins.write_twin("mitbih", tmp_path / "mitdb")
    with remote.reached(bucket) as (files, base):
        files.put(str(tmp_path / "mitdb"), f"{base}/data/", recursive=True)
        cfg = PrepareConfig(corpus="mitbih", root=f"{bucket}/data/mitdb", split="hash")
        assert prepare(cfg, tmp_path / "a") == prepare(PrepareConfig(**{**vars(cfg), "root": str(tmp_path / "mitdb")}), tmp_path / "b")
        assert contents(tmp_path / "a") == contents(tmp_path / "b")
        mirror = Path(remote.local_root(f"{bucket}/data/mitdb"))
        files.pipe_file(f"{base}/data/mitdb/NOTE", b"new")
        files.rm_file(next(name for name in files.find(f"{base}/data/mitdb") if name.endswith(".hea")))
        assert remote.local_root(f"{bucket}/data/mitdb") == str(mirror) and (mirror / "NOTE").read_bytes() == b"new"
        assert len(list(mirror.rglob("*.hea"))) == len(list((tmp_path / "mitdb").rglob("*.hea"))) - 1
    with pytest.raises(ValueError, match="holds no file"):
        remote.local_root(f"{bucket}/nothing")


def test_addresses():
    assert remote.address(Path("s3://bucket/a/b/")) == "s3://bucket/a/b"
    assert not remote.is_remote("stores/a") and not remote.is_remote("/data/s3:/a") and not remote.is_remote(None)
    assert remote.local_root(None) is None and remote.local_root(Path("a")) == "a"


def test_a_missing_extra_names_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ImportError, match=r"pip install \"physio-data\[s3\]\""):
        Store("s3://bucket/store")


def test_an_endpoint_that_is_not_there_is_an_error_of_one_sentence(bucket, monkeypatch):
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(OSError, match=r"s3://b/s cannot be reached|Could not connect"):
        Store("s3://b/s")
    S3FileSystem.clear_instance_cache()
