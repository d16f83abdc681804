"""Download a corpus or published weights: resumable, in parallel, every file checked against its published sum.

uv run apps/download.py ptbxl --out data/ptbxl --only 'records100/*' '*.csv'
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

import console
from console import say
from physio_data.download import Wanted, chosen, fetch_all, listing
from physio_data.fetch import DownloadError, Link, Manners
from physio_data.sources import SOURCES, source_of

_MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Download:
    """Fetch the files of a source into a folder. The same command again goes on where it stopped and fetches only what is missing.

    Hosts that want an account are given the one that .netrc in your home folder states for them (`machine HOST login NAME password PASSWORD`,
    the file private: chmod 600), and only those. There is no flag for a password.
    """

    name: tyro.conf.Positional[str]
    """A row of the table of sources."""
    out: Path | None = None
    """Folder for the files. Default: data/NAME."""
    only: tuple[str, ...] = ()
    """Patterns of paths to take, as 'records100/*'. Default: everything."""
    connections: int = 4
    """Transfers at once."""
    max_mb_s: float | None = None
    """Upper limit over all transfers, in megabytes a second."""
    timeout_s: float = 30.0
    """Seconds of silence after which a transfer is begun anew where it stopped."""
    url: tuple[str, ...] = ()
    """FILE=ADDRESS for files whose address is not published."""
    dry_run: bool = False
    """List the files that would be fetched; fetch only the list."""


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    table = "\n".join(f"{name}: {source.page}{'  (credentials)' if source.access == 'credentialed' else ''}" for name, source in SOURCES.items())
    app = tyro.cli(Download, args=arguments, description=f"{Download.__doc__}\n\nSources:\n{table}")
    source, out = source_of(app.name), app.out or Path("data") / app.name
    manners = Manners(connections=app.connections, max_bytes_per_s=None if app.max_mb_s is None else app.max_mb_s * _MB, timeout_s=app.timeout_s)
    if source.note:
        say(f"{app.name}: {source.note}")
    link = Link(manners)
    try:
        wanted = chosen(listing(source, out, link, addresses(app.url)), app.only or source.only)
        if app.dry_run:
            return dry_run(wanted, out)
        with console.progress(f"download {app.name}", len(wanted)) as show:
            found = fetch_all(wanted, out, link=link, progress=lambda at: show(at.n_done, f"files, {at.n_bytes / _MB:.1f} MB"))
    except DownloadError as error:
        raise console.Failed(str(error)) from None
    except KeyboardInterrupt:
        raise console.Stopped(f"what has come stays in {out}; the same command goes on from there") from None
    if found["unchecked"]:
        say(f"no sum is published of {', '.join(found['unchecked'][:5])}: what came is recorded in {out / 'received.jsonl'}")
    return {"out": str(out), **found}


def addresses(texts: Sequence[str]) -> dict[str, str]:
    """`("a.zip=https://...",)` -> {"a.zip": "https://..."}."""
    pairs = [text.partition("=") for text in texts]
    if bad := [text for text, (name, equals, url) in zip(texts, pairs, strict=True) if not (name and equals and url.startswith(("https://", "http://")))]:
        raise ValueError(f"url must be FILE=https://..., got {bad[0]!r}")
    return {name: url for name, _, url in pairs}


def dry_run(wanted: Sequence[Wanted], out: Path) -> Mapping[str, object]:
    """Show what would be taken."""
    for item in wanted[:20]:
        say(f"{item.path}  {item.algorithm if item.digest else 'no sum'}")
    if len(wanted) > 20:
        say(f"... and {len(wanted) - 20} more")
    return {"out": str(out), "files": len(wanted), "dry_run": True}


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    console.run(main)
