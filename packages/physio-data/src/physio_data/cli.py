"""The package's own command: `physio-data doctor STORE` and `physio-data corpora`. Exit codes: 0 well, 1 damaged, 2 a user's mistake."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

_GB = 1e9


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="physio-data", description="Look after prepared stores.")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="verify a store's checksums and measure what limits reading it here")
    doctor.add_argument("store", help="folder of a store, or s3://bucket/folder (then its local copy is checked)")
    doctor.add_argument("--seconds", type=float, default=2.0, help="how long each rate is measured, in seconds (default 2)")
    doctor.add_argument("--no-speed", action="store_true", help="verify only")
    commands.add_parser("corpora", help="print the page that tells how to obtain each corpus (Markdown)")
    given = parser.parse_args(arguments)
    try:
        return _doctor(given) if given.command == "doctor" else _corpora()
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _doctor(given: argparse.Namespace) -> int:
    from physio_data import doctor
    from physio_data.remote import is_remote, local_store

    if not given.seconds > 0:
        raise ValueError(f"seconds must be positive, got {given.seconds}")
    path = local_store(given.store) if is_remote(given.store) else given.store
    health = doctor.check(path, lambda done, n: print(f"\rshard {done}/{n}", end="", file=sys.stderr, flush=True) if sys.stderr.isatty() else None)
    for sentence in health.damaged:
        print(f"DAMAGED  {sentence}")
    state = "whole" if not health.damaged else f"{len(health.damaged)} damaged; restore them or prepare the store again"
    print(f"{health.n_shards} shards, {health.n_bytes / _GB:.2f} GB: {state} (hashed at {health.hash_bytes_per_s / _GB:.2f} GB/s)")
    summary: dict[str, object] = {"store": str(path), **asdict(health)}
    if not health.damaged and not given.no_speed:
        speed = doctor.measure(path, seconds=given.seconds)
        for name, value in (
            ("random batches, cold", speed.cold_bytes_per_s),
            ("random batches, warm", speed.warm_bytes_per_s),
            ("disk, one after another", speed.disk_bytes_per_s),
            ("copy in memory", speed.copy_bytes_per_s),
        ):
            print(f"{name:24s} {value / _GB:7.2f} GB/s")
        print(f"{speed.windows_per_s:,.0f} windows a second cold; the limit here: {speed.limit}. {speed.advice}")
        summary |= asdict(speed)
    print(json.dumps(summary))
    return 1 if health.damaged else 0


def _corpora() -> int:
    from physio_data.corpora.guide import page

    print(page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
