"""HiMAE's pretraining layout: an index CSV (`local_path,global_idx`) and HDF5 shards with one `normalized_waveform` per id."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from physio_data.corpora.contract import Corpus, PrepareDefaults
from physio_data.formats.hdf5 import HimaeShards
from physio_data.recording import Recording


def list_records(root: str | Path, *, source_fs: float | None = None, channel: str = "PPG") -> list[str]:
    """`0`, `1`, ...: the lines of the index CSV; `root` is the CSV or a folder that holds one."""
    return [str(row) for row in range(len(_index(root)))]


def open_record(root: str | Path, record_id: str, *, source_fs: float | None = None, channel: str = "PPG") -> Recording:
    """One segment. The layout states neither rate nor subject: `source_fs` (Hz) is required, every segment is its own subject."""
    if source_fs is None:
        raise ValueError("source_fs is missing: HiMAE's shards state no rate; give it in Hz with --source-fs")
    shards, row = _index(root), int(record_id)
    return Recording.from_array(
        shards.read(row)[None, :],
        fs=source_fs,
        channels=(channel,),
        units=("normalised",),
        subject=f"himae:{shards.path.stem}:{record_id}",
        record=shards.rows[row].key,
    )


def _index(root: str | Path) -> HimaeShards:
    path = Path(root)
    if path.is_dir():
        found = sorted(path.glob("*.csv"))
        if len(found) != 1:
            raise ValueError(f"root {path} holds {len(found)} CSV files, one index was expected; name the index file itself")
        path = found[0]
    if not path.is_file():
        raise ValueError(f"root {path} does not exist; name the index CSV (columns local_path, global_idx) or its folder")
    return _opened(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(path: Path, changed_ns: int) -> HimaeShards:
    return HimaeShards.open(path)


CORPUS = Corpus(
    name="himae_shards",
    title="Segments in HiMAE's pretraining layout (index CSV and HDF5 shards)",
    licence="that of the data",
    access="own",
    size="any",
    citation="HiMAE: hierarchical masked autoencoders for wearable signals",
    url="a folder of one's own",
    signal_kind="ppg",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(),
    subjects="unknown",
    records_per_task=256,
    options={"source_fs": "rate of the segments in Hz; required", "channel": "the channel's name (default PPG)"},
)
