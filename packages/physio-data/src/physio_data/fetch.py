"""One file over HTTP, whole and checked, from servers that stall, cut off, send rubbish or ask for patience.

A transfer goes on where it stopped (`Range`, with `If-Range` so that two versions are never glued together); nothing is hashed before it is
whole; a file gets its name only after its checksum held. Names and passwords come from a netrc file, go to that host alone, over HTTPS, and
only after it has asked for them.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import netrc
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

AGENT = "physio-data/0.1 (+range resume)"
_PIECE = 1 << 16
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class DownloadError(OSError):
    """A file could not be had; the text says why and what to do."""


class NotAllowed(DownloadError):
    """The host wants an account, or a signed agreement."""


class _Again(Exception):
    """This request failed in a way that a later one may not; `after_s` is how long the server asks to wait."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


@dataclass(frozen=True, kw_only=True)
class Manners:
    """How hard a server may be pressed."""

    connections: int = 4  # at once
    pause_s: float = 0.05  # between the starts of two requests, over all connections
    max_bytes_per_s: float | None = None  # over all connections; None: as fast as it comes
    timeout_s: float = 30.0  # of silence, after which a transfer counts as stalled
    min_bytes_per_s: float = 100.0  # slower over `timeout_s` counts as stalled too
    attempts: int = 8  # in a row without a single new byte
    backoff_s: float = 1.0  # before the second attempt; doubled each time, at most a minute

    def __post_init__(self) -> None:
        for name in ("connections", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("timeout_s", "max_bytes_per_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")


@dataclass
class Link:
    """What all connections of one download share: manners, credentials, and the wish to stop."""

    manners: Manners = field(default_factory=Manners)
    netrc_path: Path | None = None  # None: .netrc in the user's folder
    stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _next_start: float = 0.0
    _next_byte: float = 0.0
    _asked: set[str] = field(default_factory=set, repr=False)  # hosts that wanted credentials

    def wait_turn(self) -> None:
        """Wait until the next request may start."""
        with self._lock:
            at = max(time.monotonic(), self._next_start)
            self._next_start = at + self.manners.pause_s
        self.sleep(at - time.monotonic())

    def hold(self, seconds: float) -> None:
        """No new request of any connection for some seconds."""
        with self._lock:
            self._next_start = max(self._next_start, time.monotonic() + seconds)

    def spend(self, n_bytes: int) -> None:
        """Account for received bytes; sleeps where the rate is limited."""
        if self.manners.max_bytes_per_s is None:
            return
        with self._lock:
            self._next_byte = max(time.monotonic(), self._next_byte) + n_bytes / self.manners.max_bytes_per_s
            wait = self._next_byte - time.monotonic()
        self.sleep(wait)

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.stop.wait(seconds)
        if self.stop.is_set():
            raise DownloadError("stopped")

    def authorization(self, url: str) -> str | None:
        """The header for a host that has asked for credentials, None for others."""
        host = urlsplit(url).hostname or ""
        return _basic(host, url, self.netrc_path) if host in self._asked else None

    def credentials_wanted(self, url: str) -> bool:
        """Note that a host asks; False where it has been given what there is already."""
        host = urlsplit(url).hostname or ""
        with self._lock:
            known = host in self._asked
            self._asked.add(host)
        return not known and _basic(host, url, self.netrc_path) is not None


def _basic(host: str, url: str, path: Path | None) -> str | None:
    """The Basic authorization of a host in the netrc file, None where it has none. ValueError for a file that others may read."""
    path = path or Path.home() / ".netrc"
    if not path.is_file():
        return None
    if path.stat().st_mode & 0o077:
        raise ValueError(f"{path} holds passwords and may be read by others; make it private: chmod 600 {path}")
    try:
        found = netrc.netrc(str(path)).authenticators(host)
    except netrc.NetrcParseError as error:
        raise ValueError(f"{path} cannot be read in line {error.lineno}; write `machine {host} login NAME password PASSWORD`") from None
    if found is None:
        return None
    if urlsplit(url).scheme != "https" and host not in _LOOPBACK:
        raise ValueError(f"{host} asks for a password over plain HTTP; use an https address")
    return "Basic " + base64.b64encode(f"{found[0]}:{found[2]}".encode()).decode()


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only, never from https down to http. What was said to one host is not repeated to another."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme not in ("http", "https") or (req.full_url.startswith("https:") and not newurl.startswith("https:")):
            raise DownloadError(f"{req.full_url} leads to {newurl}, which is not safe to follow; ask the host")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_SafeRedirects())


def fetch(
    url: str,
    target: Path,
    *,
    algorithm: str = "sha256",
    digest: str = "",
    link: Link | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> dict[str, object]:
    """Fetch `url` into `target` and return {"bytes", "sha256"}; `digest` is what `algorithm` (sha256 or md5) must give, "" where none is known.

    What is there of an earlier try is gone on with. Raises DownloadError after `attempts` vain tries in a row, for an answer that no further
    try would better (not found, not allowed, a page where a file should be), and for content that twice fails its checksum.
    """
    link = link or Link()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    vain, damaged = 0, 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(url, part, target.suffix, bool(digest), link, on_bytes or (lambda n: None))
        except _Again as again:
            vain = 0 if part.exists() and part.stat().st_size > before else vain + 1
            if vain >= link.manners.attempts:
                raise DownloadError(f"{url}: {again}, {vain} times in a row; what has come is kept, try again later") from None
            wait = max(again.after_s, min(60.0, link.manners.backoff_s * 2 ** max(0, vain - 1)))
            if again.after_s:
                link.hold(again.after_s)
            link.sleep(wait)
            continue
        found = digests(part, algorithm)
        if digest and found[algorithm] != digest.lower():
            _forget(part)
            damaged += 1
            if damaged >= 2:
                raise DownloadError(f"{url}: {algorithm} {found[algorithm]}, published is {digest}; twice, so the file at the host is another: tell the host")
            continue
        n_bytes = part.stat().st_size
        os.replace(part, target)
        _version_file(part).unlink(missing_ok=True)
        return {"bytes": n_bytes, "sha256": found["sha256"]}


def _transfer(url: str, part: Path, suffix: str, checked: bool, link: Link, on_bytes: Callable[[int], None]) -> None:
    """Bring `part` to its full length, or raise _Again with what came kept."""
    have, version = _resumable(part, checked)
    link.wait_turn()
    request = urllib.request.Request(url, headers={"User-Agent": AGENT, "Accept-Encoding": "identity"})
    if (secret := link.authorization(url)) is not None:
        request.add_unredirected_header("Authorization", secret)  # a redirect to another host does not carry it along
    if have:
        request.add_header("Range", f"bytes={have}-")
        if version:
            request.add_header("If-Range", version)
    try:
        with _opener().open(request, timeout=link.manners.timeout_s) as answer:
            _receive(answer, part, have, suffix, checked, link, on_bytes)
    except urllib.error.HTTPError as error:
        with error:
            _judge(error, url, part, link)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, socket.gaierror) as error:
        raise _Again(f"the transfer broke off ({getattr(error, 'reason', error) or type(error).__name__})") from error


def _receive(answer, part: Path, have: int, suffix: str, checked: bool, link: Link, on_bytes: Callable[[int], None]) -> None:
    if answer.status == 206:
        total = _total(answer.headers.get("Content-Range", ""), have)
        if total is None:
            _forget(part)
            raise _Again("the server sent another range than was asked for")
    else:
        have = 0
        length = answer.headers.get("Content-Length")
        total = int(length) if length is not None else None
        if not checked and "html" in answer.headers.get_content_type() and suffix not in (".html", ".htm"):
            raise DownloadError(f"{answer.url} is a web page, not the file; open it in a browser and see what it asks for")
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    _version_file(part).write_text("" if version.startswith("W/") else version, encoding="utf-8")
    with open(part, "ab" if have else "wb") as out:
        mark, since = time.monotonic(), 0
        while piece := answer.read1(_PIECE):
            out.write(piece)
            on_bytes(len(piece))
            link.spend(len(piece))
            if link.stop.is_set():
                raise DownloadError("stopped")
            since += len(piece)
            if time.monotonic() - mark > link.manners.timeout_s:
                if since < link.manners.min_bytes_per_s * link.manners.timeout_s:
                    raise _Again("the transfer stalled")
                mark, since = time.monotonic(), 0
        size = out.tell()
    if total is not None and size < total:
        raise _Again(f"the transfer broke off at {size} of {total} bytes")
    if total is not None and size > total:
        _forget(part)
        raise _Again(f"{size} bytes came where {total} were announced")


def _judge(error: urllib.error.HTTPError, url: str, part: Path, link: Link) -> None:
    """Raise what an error status means."""
    host = urlsplit(url).hostname
    if error.code in (401, 403):
        if link.credentials_wanted(url):
            raise _Again("the server asks for credentials") from None
        raise NotAllowed(
            f"{url} is refused ({error.code}): sign the data use agreement on its page, then write `machine {host} login NAME password PASSWORD` "
            "into .netrc in your home folder and make it private (chmod 600)"
        ) from None
    if error.code == 416:
        _forget(part)
        raise _Again("the file at the host became shorter") from None
    if error.code in _AGAIN:
        raise _Again(f"the server answered {error.code}", _retry_after(error.headers.get("Retry-After", ""))) from None
    raise DownloadError(f"{url}: the server answered {error.code} {error.reason}; check the address on the corpus's page") from None


def _resumable(part: Path, checked: bool) -> tuple[int, str]:
    """How many bytes can be kept, and the version they are of; without a checksum bytes of an unknown version are not trusted."""
    if not part.exists():
        return 0, ""
    version_file = _version_file(part)
    version = version_file.read_text(encoding="utf-8") if version_file.exists() else ""
    if not version and not checked:
        _forget(part)
        return 0, ""
    return part.stat().st_size, version


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)


def _total(content_range: str, have: int) -> int | None:
    """The full length of `bytes 100-199/200`, None where the range does not begin at `have` or states no length."""
    unit, _, rest = content_range.partition(" ")
    span, _, total = rest.partition("/")
    return int(total) if unit == "bytes" and span.partition("-")[0] == str(have) and total.isdigit() else None


def _retry_after(text: str) -> float:
    """Seconds, from a number or a date."""
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


def digests(path: Path, algorithm: str) -> dict[str, str]:
    """Hex digests of a file: SHA-256, and by `algorithm`."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in {algorithm, "sha256"}}
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            for one in hashes.values():
                one.update(block)
    return {name: one.hexdigest() for name, one in hashes.items()}
