"""`physio-bpe train|encode|decode|info`: tokenizers on .npy, .npz and .csv files.

Exit codes: 0 done, 2 a mistake in what was asked or in a file (one line says which), 130 stopped.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, get_args

import numpy as np
from numpy.typing import NDArray

from physio_bpe.arrays import read_npz, read_signals
from physio_bpe.errors import FileFormatError
from physio_bpe.layout import LAYOUTS
from physio_bpe.published import load_published
from physio_bpe.quantize import QUANTIZERS, Quantizer, Scale, from_plain, to_plain
from physio_bpe.serialize import load, save, write_atomic
from physio_bpe.tokenizer import MAX_MISSING, Mode, Tokenizer
from physio_bpe.training import train


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except (ValueError, OSError) as error:
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"error: {' '.join(what.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="physio-bpe", description="Tokenize physiological signals. Arrays are (leads, samples) or (records, leads, samples).")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    command = commands.add_parser("train", help="learn a tokenizer from signals")
    command.add_argument("out", type=Path, metavar="OUT.json")
    command.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help=".npy, .npz or .csv (a column a lead)")
    command.add_argument("--merges", type=int, required=True, help="how many tokens to add to the 256 symbols")
    command.add_argument("--quantizer", choices=QUANTIZERS, default="record_minmax")
    command.add_argument("--levels", type=int, default=26, help="levels of a sample, 2 to 256")
    command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the quantizer, such as low_mv=-2 or missing=hold")
    command.add_argument("--layout", choices=LAYOUTS, default="lead_major")
    command.add_argument("--mode", choices=get_args(Mode), default="bpe", help="the rule that encode follows by default")
    command.add_argument("--threads", type=int, default=1)
    command.set_defaults(run=_train)

    command = commands.add_parser("encode", help="signals to ids")
    command.add_argument("tokenizer", type=Path, metavar="TOKENIZER", help="a tokenizer's .json, or a published .pkl")
    command.add_argument("input", type=Path, metavar="INPUT")
    command.add_argument("out", type=Path, metavar="OUT.npz")
    command.add_argument("--mode", choices=get_args(Mode), default=None)
    command.add_argument("--bos", action="store_true", help="put the token bos before each record")
    command.add_argument("--eos", action="store_true", help="put the token eos after each record")
    command.add_argument("--max-length", type=int, default=None, help="most tokens of a record; what is cut is reported")
    command.add_argument("--threads", type=int, default=1)
    command.set_defaults(run=_encode)

    command = commands.add_parser("decode", help="ids to signals")
    command.add_argument("tokenizer", type=Path, metavar="TOKENIZER")
    command.add_argument("input", type=Path, metavar="IDS.npz", help="what encode wrote")
    command.add_argument("out", type=Path, metavar="OUT", help=".npy (records of one length) or .npz")
    command.set_defaults(run=_decode)

    command = commands.add_parser("info", help="what a tokenizer is")
    command.add_argument("tokenizer", type=Path, metavar="TOKENIZER")
    command.set_defaults(run=_info)
    return parser


def _train(parsed: argparse.Namespace) -> None:
    arrays = chain.from_iterable(map(read_signals, parsed.inputs))
    show = _show if sys.stderr.isatty() else None
    tokenizer = train(
        arrays,
        parsed.merges,
        quantizer=_quantizer(parsed.quantizer, parsed.levels, parsed.set),
        layout=parsed.layout,
        mode=parsed.mode,
        n_threads=parsed.threads,
        progress=show,
    )
    save(tokenizer, parsed.out)
    _print({"tokenizer": str(parsed.out), "n_merges": tokenizer.n_merges, "vocabulary_hash": tokenizer.vocabulary_hash})


def _encode(parsed: argparse.Namespace) -> None:
    tokenizer = _tokenizer(parsed.tokenizer)
    records = list(_records(parsed.input))
    options: dict[str, Any] = {name: getattr(parsed, name) for name in ("mode", "bos", "eos", "max_length")}
    batch = tokenizer.encode_batch(records, n_threads=parsed.threads, **options)
    values = {"ids": batch.ids, "offsets": batch.offsets, "low": batch.scale.low, "span": batch.scale.span, "n_samples": batch.n_samples}
    _write(parsed.out, values | {"vocabulary_hash": np.array(tokenizer.vocabulary_hash)})
    counts = {name: int(getattr(batch, name).sum()) for name in ("n_clipped", "n_filled", "n_cut_tokens", "n_cut_symbols")}
    n_symbols = int(batch.n_samples.sum()) * batch.scale.low.shape[1]
    _print({"ids": str(parsed.out), "n_records": len(batch), "n_symbols": n_symbols, "n_tokens": len(batch.ids), **counts})


def _decode(parsed: argparse.Namespace) -> None:
    tokenizer = _tokenizer(parsed.tokenizer)
    values = _ids_file(parsed.input, tokenizer)
    ids, offsets, low_NC, span_NC, n_samples_N = (values[name] for name in ("ids", "offsets", "low", "span", "n_samples"))
    signals = [
        tokenizer.decode_ids(ids[offsets[i] : offsets[i + 1]], scale=Scale(low_NC[i], span_NC[i]), n_leads=low_NC.shape[1], n_samples=int(n_samples_N[i]))
        for i in range(len(n_samples_N))
    ]
    if parsed.out.suffix == ".npz":
        _write(parsed.out, {f"record_{i:06d}": x_CT for i, x_CT in enumerate(signals)})
    elif parsed.out.suffix == ".npy":
        if len(set(n_samples_N.tolist())) > 1:
            raise ValueError(f"{parsed.out}: the records differ in length, a .npz holds them")
        buffer = io.BytesIO()
        np.save(buffer, np.stack(signals), allow_pickle=False)
        write_atomic(parsed.out, buffer.getvalue())
    else:
        raise ValueError(f"{parsed.out} must end in .npy or .npz")
    _print({"signals": str(parsed.out), "n_records": len(signals), "n_missing": int(sum(np.isnan(x_CT).sum() for x_CT in signals))})


def _info(parsed: argparse.Namespace) -> None:
    tokenizer = _tokenizer(parsed.tokenizer)
    lengths = tokenizer.lengths(np.arange(256, 256 + tokenizer.n_merges))
    values = {
        "tokens": tokenizer.n_tokens,
        "merges": tokenizer.n_merges,
        "alphabet": f"{tokenizer.quantizer.n_levels} levels on bytes {tokenizer.alphabet[0]}-{tokenizer.alphabet[-1]}",
        "quantizer": json.dumps(to_plain(tokenizer.quantizer)),
        "layout": tokenizer.layout,
        "mode": tokenizer.mode,
        "special tokens": ", ".join(f"{name} {id}" for name, id in tokenizer.special_ids.items()) or "none",
        "symbols per merged token": f"mean {lengths.mean():.1f}, median {np.median(lengths):g}, longest {lengths.max()}" if lengths.size else "none",
        "corpus": tokenizer.corpus_sha256 or "unknown",
        "vocabulary hash": tokenizer.vocabulary_hash,
    }
    print("\n".join(f"{key}: {value}" for key, value in values.items()))


def _quantizer(name: str, n_levels: int, settings: Sequence[str]) -> Quantizer:
    fields: dict[str, object] = {}
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes FIELD=VALUE, got {setting!r}")
        try:
            fields[field] = json.loads(text)
        except json.JSONDecodeError:
            fields[field] = text
    return from_plain({"name": name, "n_levels": n_levels, **fields})


def _tokenizer(path: Path) -> Tokenizer:
    return load_published(path) if path.suffix == ".pkl" else load(path)


def _records(path: Path) -> Iterator[NDArray[np.generic]]:
    for array in read_signals(path):
        yield from ([array] if array.ndim == 2 else array)


def _ids_file(path: Path, tokenizer: Tokenizer) -> dict[str, NDArray[Any]]:
    values = read_npz(path)
    kinds = {"ids": ("u", 1), "offsets": ("i", 1), "low": ("f", 2), "span": ("f", 2), "n_samples": ("i", 1), "vocabulary_hash": ("U", 0)}
    for name, (kind, ndim) in kinds.items():
        if name not in values or values[name].dtype.kind != kind or values[name].ndim != ndim:
            raise FileFormatError(f"{path} lacks a proper array {name!r}: it is not what encode writes")
    if str(values["vocabulary_hash"]) != tokenizer.vocabulary_hash:
        raise FileFormatError(f"{path} was encoded with another tokenizer ({str(values['vocabulary_hash'])[:12]}, this is {tokenizer.vocabulary_hash[:12]})")
    offsets, n_records = values["offsets"], len(values["n_samples"])
    ordered = len(offsets) == n_records + 1 and offsets[0] == 0 and offsets[-1] == len(values["ids"]) and (np.diff(offsets) >= 0).all()
    if not ordered or values["low"].shape != values["span"].shape or len(values["low"]) != n_records:
        raise FileFormatError(f"{path}: offsets, scale and ids do not fit one another: the file is altered")
    n_declared = sum(values["n_samples"].tolist()) * values["low"].shape[1]
    n_there = int(tokenizer.lengths(values["ids"]).sum())
    if values["n_samples"].min(initial=1) < 1 or not n_there <= n_declared <= n_there + MAX_MISSING:
        raise FileFormatError(f"{path} declares {n_declared} samples in all, its ids stand for {n_there}: the file is altered")
    return values


def _write(path: Path, values: dict[str, Any]) -> None:
    if path.suffix != ".npz":
        raise ValueError(f"{path} must end in .npz")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **values)
    write_atomic(path, buffer.getvalue())


def _show(done: int, total: int) -> None:
    print(f"\r{done}/{total} merges", end="" if done < total else "\n", file=sys.stderr, flush=True)


def _print(summary: dict[str, object]) -> None:
    print(json.dumps(summary))


if __name__ == "__main__":
    sys.exit(main())
