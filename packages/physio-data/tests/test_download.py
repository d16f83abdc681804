"""Against a server on this machine that stalls, truncates, corrupts, redirects, throttles and asks for credentials."""

import base64
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from physio_data.download import SUMS, chosen, download, parse_sums, parse_zenodo
from physio_data.fetch import DownloadError, Link, Manners, NotAllowed, fetch
from physio_data.sources import Published, Source, source_of

FAST = Manners(timeout_s=0.5, backoff_s=0.01, pause_s=0.0, attempts=4)
BODY = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
SHA = hashlib.sha256(BODY).hexdigest()
LOGIN = "Basic " + base64.b64encode(b"anna:se:cret").decode()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.tricks, self.asked = {}, {}, []
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    """`tricks[path]` is a list of behaviours, one used up by each request; then the file is served well."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = self.path.partition("?")[0].lstrip("/")
        self.server.asked.append((path, dict(self.headers)))
        tricks = self.server.tricks.get(path, [])
        trick = tricks.pop(0) if tricks else "well"
        if isinstance(trick, tuple):  # (status, headers)
            return self.answer(trick[0], b"", **trick[1])
        if trick == "locked" or (trick == "well" and path.startswith("locked") and self.headers.get("Authorization") != LOGIN):
            return self.answer(401, b"", WWW_Authenticate="Basic")
        body = self.server.files.get(path)
        if body is None:
            return self.answer(404, b"")
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        start, status, more = 0, 200, {"ETag": etag}
        asked = self.headers.get("Range")
        if asked and trick != "no ranges" and self.headers.get("If-Range", etag) == etag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                return self.answer(416, b"")
            status, more = 206, more | {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        if trick == "corrupt":
            body = body[:1000] + bytes([body[1000] ^ 1]) + body[1001:]
        rest = body[start:]
        if trick == "page":
            return self.answer(200, b"<html>log in</html>", Content_Type="text/html")
        self.send_response(status)
        for name, value in (more | {"Content-Length": str(len(rest))}).items():
            self.send_header(name, value)
        self.end_headers()
        if trick in ("cut", "stall"):
            self.wfile.write(rest[: len(rest) // 2])
            self.wfile.flush()
            if trick == "stall":
                time.sleep(1.5)
            self.close_connection = True
            return None
        self.wfile.write(rest)
        return None

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server():
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def get(server, tmp_path, path="file.bin", *, digest=SHA, manners=FAST, **more):
    return fetch(server.url + path, tmp_path / "file.bin", digest=digest, link=Link(manners, tmp_path / "netrc"), **more)


@pytest.mark.parametrize(
    "tricks",
    [
        ["cut"],
        ["cut", "cut", "cut", "cut", "cut", "cut"],
        ["stall"],
        ["corrupt"],
        ["cut", "no ranges"],
        [(503, {"Retry_After": "0"}), (429, {}), (500, {})],
        [(503, {}), "cut", (502, {}), "stall", "corrupt"],
        ["cut", (416, {})],
    ],
    ids=str,
)
def test_the_file_arrives_whole_whatever_the_server_does(server, tmp_path, tricks):
    server.files["file.bin"], server.tricks["file.bin"] = BODY, list(tricks)
    found = get(server, tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == BODY and found == {"bytes": len(BODY), "sha256": SHA}
    assert not [path for path in tmp_path.iterdir() if path.name != "file.bin"]


def test_only_what_is_missing_is_asked_for_again(server, tmp_path):
    server.files["file.bin"], server.tricks["file.bin"] = BODY, ["cut", "cut"]
    received = []
    get(server, tmp_path, on_bytes=received.append)
    ranges = [headers.get("Range") for _, headers in server.asked]
    assert ranges == [None, f"bytes={len(BODY) // 2}-", f"bytes={len(BODY) * 3 // 4}-"] and sum(received) == len(BODY)


def test_two_versions_of_a_file_are_never_glued(server, tmp_path):
    server.files["file.bin"], server.tricks["file.bin"] = BODY, ["cut", *[(503, {})] * 8]
    with pytest.raises(DownloadError, match="answered 503, 4 times in a row; what has come is kept"):
        get(server, tmp_path, digest="")
    server.files["file.bin"], server.tricks["file.bin"] = BODY[::-1], []
    get(server, tmp_path, digest="")
    assert (tmp_path / "file.bin").read_bytes() == BODY[::-1]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server, tmp_path, status):
    server.files["there.bin"], server.tricks["file.bin"] = BODY, [(status, {"Location": server.url + "there.bin"})]
    assert get(server, tmp_path)["sha256"] == SHA


def test_redirects_that_are_not_safe_or_never_end_are_refused(server, tmp_path):
    server.tricks["file.bin"] = [(302, {"Location": "file:///etc/hostname"})]
    with pytest.raises(DownloadError, match=r"not safe to follow|not allowed|answered 302"):
        get(server, tmp_path)
    server.tricks["file.bin"] = [(302, {"Location": server.url + "file.bin"})] * 50
    with pytest.raises(DownloadError, match="answered 302"):
        get(server, tmp_path)


def test_content_that_is_wrong_twice_is_refused_and_leaves_no_file(server, tmp_path):
    server.files["file.bin"], server.tricks["file.bin"] = BODY, ["corrupt", "corrupt"]
    with pytest.raises(DownloadError, match=rf"sha256 \w+, published is {SHA}; twice"):
        get(server, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_web_page_instead_of_a_file_is_refused(server, tmp_path):
    server.files["file.bin"], server.tricks["file.bin"] = BODY, ["page"]
    with pytest.raises(DownloadError, match="is a web page, not the file"):
        get(server, tmp_path, digest="")


def test_what_is_not_there_is_said_at_once(server, tmp_path):
    with pytest.raises(DownloadError, match="answered 404"):
        get(server, tmp_path)
    assert len(server.asked) == 1


def netrc(tmp_path, host, mode=0o600):
    path = tmp_path / "netrc"
    path.write_text(f"machine {host} login anna password se:cret\n")
    path.chmod(mode)
    return path


def test_credentials_go_to_the_host_that_asks_and_to_no_other(server, tmp_path, capsys, caplog):
    server.files["locked/file.bin"] = BODY
    with pytest.raises(NotAllowed, match=r"refused \(401\): sign the data use agreement.*machine 127.0.0.1 login NAME") as caught:
        get(server, tmp_path, "locked/file.bin")
    netrc(tmp_path, "127.0.0.1")
    server.asked.clear()
    get(server, tmp_path, "locked/file.bin")
    assert [headers.get("Authorization") for _, headers in server.asked] == [None, LOGIN], "an open host is never given a name"
    other = server.url.replace("127.0.0.1", "localhost")
    server.files["open.bin"], server.tricks["locked/away.bin"] = BODY, ["locked", (302, {"Location": other + "open.bin"})]
    server.asked.clear()
    get(server, tmp_path, "locked/away.bin")
    said = [(path, "Authorization" in headers) for path, headers in server.asked]
    assert said == [("locked/away.bin", False), ("locked/away.bin", True), ("open.bin", False)]
    assert "cret" not in str(caught.value) + caplog.text + "".join(capsys.readouterr())


def test_a_netrc_that_others_may_read_and_a_wrong_password_are_said(server, tmp_path):
    server.files["locked/file.bin"] = BODY
    netrc(tmp_path, "127.0.0.1", 0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        get(server, tmp_path, "locked/file.bin")
    netrc(tmp_path, "127.0.0.1").write_text("machine 127.0.0.1 login anna password wrong-one\n")
    with pytest.raises(NotAllowed, match=r"refused \(401\)") as caught:
        get(server, tmp_path, "locked/file.bin")
    assert "wrong-one" not in str(caught.value)


def tree(server, n=12):
    bodies = {f"p{i % 3}/r{i} a.dat": BODY[i * 1000 : i * 1000 + 5000] for i in range(n)}
    quoted = {f"x/{name}".replace(" ", "%20"): body for name, body in bodies.items()}
    server.files = quoted | {f"x/{SUMS}": "".join(f"{hashlib.sha256(body).hexdigest()} {name}\n" for name, body in bodies.items()).encode()}
    return bodies, Source(page="", tree=server.url + "x/")


def test_a_tree_comes_whole_and_a_second_run_fetches_nothing(server, tmp_path):
    bodies, source = tree(server)
    server.tricks = {name: [trick] for name, trick in zip(server.files, ["cut", "corrupt", (503, {}), "stall", "well"], strict=False)}
    seen = []
    found = download(source, tmp_path, manners=FAST, progress=seen.append)
    assert {name: (tmp_path / name).read_bytes() for name in bodies} == bodies
    assert found["files"] == found["fetched"] == seen[-1].n_done == 12 and found["unchecked"] == []
    server.asked.clear()
    assert download(source, tmp_path, manners=FAST)["fetched"] == 0 and [path for path, _ in server.asked] == [f"x/{SUMS}"]
    lines = [json.loads(line) for line in (tmp_path / "received.jsonl").read_text().splitlines()]
    assert {line["path"]: line["sha256"] for line in lines} == {name: hashlib.sha256(body).hexdigest() for name, body in bodies.items()}


def test_files_that_changed_here_or_at_the_host_are_fetched_again(server, tmp_path):
    bodies, source = tree(server)
    download(source, tmp_path, manners=FAST)
    (tmp_path / "p0/r0 a.dat").write_bytes(b"damaged")
    (tmp_path / "p1/r1 a.dat").unlink()
    assert download(source, tmp_path, manners=FAST)["fetched"] == 2
    (tmp_path / "received.jsonl").unlink()
    assert download(source, tmp_path, manners=FAST)["fetched"] == 0, "what no record knows is hashed"
    assert {name: (tmp_path / name).read_bytes() for name in bodies} == bodies


def test_a_part_of_a_tree(server, tmp_path):
    _, source = tree(server)
    assert download(source, tmp_path / "a", only=["p0/*"], manners=FAST)["files"] == 4
    under = Source(page="", tree=source.tree, under="p1/")
    assert download(under, tmp_path / "b", manners=FAST)["files"] == 4 and (tmp_path / "b" / "r1 a.dat").exists()
    with pytest.raises(ValueError, match=r"only q\* matches none of the 12 files"):
        download(source, tmp_path, only=["q*"], manners=FAST)


def test_a_missing_file_is_named_and_the_others_come(server, tmp_path):
    _, source = tree(server)
    del server.files["x/p2/r5%20a.dat"]
    with pytest.raises(DownloadError, match=r"1 of 12 files are missing.*r5%20a.dat: the server answered 404"):
        download(source, tmp_path, manners=FAST)
    assert len(list(tmp_path.rglob("*.dat"))) == 11


def test_a_dead_host_is_given_up_and_a_locked_one_at_once(server, tmp_path):
    _, source = tree(server)
    for name in list(server.files)[:-1]:
        del server.files[name]
    with pytest.raises(DownloadError, match="files are missing"):
        download(source, tmp_path, manners=Manners(timeout_s=0.5, pause_s=0, connections=1))
    assert len(server.asked) == 6
    server.asked.clear()
    server.tricks = {f"x/p{i % 3}/r{i}%20a.dat": [(403, {})] for i in range(12)}
    with pytest.raises(NotAllowed):
        download(source, tmp_path, manners=Manners(timeout_s=0.5, pause_s=0, connections=1), netrc_path=tmp_path / "none")
    assert len(server.asked) == 2


def test_the_rate_is_limited_over_all_connections(server, tmp_path):
    _, source = tree(server, n=6)  # 30 kB and the list
    began = time.monotonic()
    download(source, tmp_path, manners=Manners(timeout_s=5.0, pause_s=0.0, connections=3, max_bytes_per_s=60_000))
    assert time.monotonic() - began > 0.35


def test_single_files_with_and_without_a_sum(server, tmp_path):
    server.files = {"a.pt": BODY, "b.pt": BODY[:10]}
    md5 = hashlib.md5(BODY).hexdigest()
    files = (Published(name="a.pt", url=server.url + "a.pt", algorithm="md5", digest=md5), Published(name="b.pt"))
    source = Source(page="page", note="ask", files=files)
    with pytest.raises(ValueError, match=r"no direct address of b.pt is published: ask \(page\)"):
        download(source, tmp_path, manners=FAST)
    found = download(source, tmp_path, urls={"b.pt": server.url + "b.pt"}, manners=FAST)
    assert found["unchecked"] == ["b.pt"] and found["fetched"] == 2
    with pytest.raises(ValueError, match=r"url names 'c.pt'"):
        download(source, tmp_path, urls={"c.pt": server.url})


@pytest.mark.parametrize("path", ["../a", "/etc/a", "a/../../b", "C:\\a", "a\\..\\b"])
def test_paths_that_lead_out_are_refused(path):
    with pytest.raises(ValueError, match="leads out of the folder"):
        parse_sums(f"{'0' * 64}  {path}\n", "https://h/")
    with pytest.raises(ValueError, match="leads out of the folder"):
        parse_zenodo({"files": [{"key": path, "checksum": "md5:0", "links": {"self": "https://h/f"}}]})


def test_lists_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"line 1: not `SHA-256 path` but '<html>"):
        parse_sums("<html>", "https://h/")
    with pytest.raises(ValueError, match="is empty"):
        parse_sums("\n", "https://h/")
    with pytest.raises(ValueError, match="another form than expected"):
        parse_zenodo({"hits": 1})
    assert parse_sums(f"{'A' * 64} *./b c.txt\n", "") == {"b c.txt": "a" * 64}
    with pytest.raises(ValueError, match="matches none of the 0 files"):
        chosen([], ())


def test_sources_and_manners_are_checked():
    with pytest.raises(ValueError, match="no source 'ptbxI'; did you mean 'ptbxl'"):
        source_of("ptbxI")
    for more in ({"connections": 0}, {"timeout_s": 0.0}, {"max_bytes_per_s": -1.0}):
        with pytest.raises(ValueError, match=f"^{next(iter(more))} must"):
            Manners(**more)
