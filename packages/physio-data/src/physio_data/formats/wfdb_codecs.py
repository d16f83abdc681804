"""WFDB signal files: bytes to digital samples, by range and in bounded memory (https://wfdb.io/spec/signal-files.html).

Shape letters: F frames, S samples of one frame over all signals of a file. A frame holds one or more samples of every signal.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np

# samples and bytes of the smallest piece that can be decoded by itself
PIECE = {8: (1, 1), 16: (1, 2), 24: (1, 3), 32: (1, 4), 61: (1, 2), 80: (1, 1), 160: (1, 2), 212: (2, 3), 310: (3, 4), 311: (3, 4)}
FLAC_SHIFT = {508: 24, 516: 16, 524: 8}  # libsndfile hands out 32 bits, the sample in the highest
# the value that marks a missing sample; format 8 has none
MISSING = {16: -(2**15), 24: -(2**23), 32: -(2**31), 61: -(2**15), 80: -(2**7), 160: -(2**15), 212: -(2**11), 310: -(2**9), 311: -(2**9)}
MISSING |= {508: -(2**7), 516: -(2**15), 524: -(2**23)}
_BLOCK_FRAMES = 1 << 20


def n_frames_in(path: Path, fmt: int, per_frame: int, offset: int) -> int:
    """Whole frames of ``per_frame`` samples in a signal file; FLAC files state it themselves."""
    if fmt in FLAC_SHIFT:
        with _flac(path) as file:
            return file.frames * file.channels // per_frame
    samples, size = PIECE[fmt]
    found = max(path.stat().st_size - offset, 0)
    n_samples = found // size * samples + found % size * samples // size
    return n_samples // per_frame


def n_bytes_of(fmt: int, n_samples: int) -> int:
    """Bytes that ``n_samples`` samples take in an uncompressed format; a last piece may be cut at the byte that holds its last sample."""
    samples, size = PIECE[fmt]
    return -(-n_samples * size // samples)


def read_frames(path: Path, fmt: int, per_frame: int, offset: int, start: int, stop: int, initial: tuple[int, ...] = ()) -> np.ndarray:
    """Digital samples of frames [start, stop): (F, S) int64. Only these frames are read, except in format 8.

    Format 8 stores differences: they are summed from the first frame on, block by block, beginning at ``initial`` (S,). ``ValueError``
    where the file ends before.
    """
    if fmt in FLAC_SHIFT:
        return _flac_frames(path, fmt, per_frame, start, stop)
    if fmt == 8:
        return _difference_frames(path, per_frame, offset, start, stop, initial)
    return _plain_frames(path, fmt, per_frame, offset, start, stop)


def _plain_frames(path: Path, fmt: int, per_frame: int, offset: int, start: int, stop: int) -> np.ndarray:
    samples, size = PIECE[fmt]
    first, last = start * per_frame, stop * per_frame
    piece = first // samples
    wanted = n_bytes_of(fmt, last) - piece * size
    with path.open("rb") as file:
        file.seek(offset + piece * size)
        raw = file.read(-(-last // samples) * size - piece * size)  # to the end of the last piece, where the file has it
    if len(raw) < wanted:
        raise ValueError(f"{path}: truncated, frames [{start}, {stop}) need {wanted} bytes from byte {offset + piece * size} and {len(raw)} are there")
    digital = decode(fmt, np.frombuffer(raw + bytes(-len(raw) % size), np.uint8))
    return digital[first - piece * samples : last - piece * samples].reshape(stop - start, per_frame)


def decode(fmt: int, raw: np.ndarray) -> np.ndarray:
    """Whole pieces of bytes (uint8) as signed digital samples (int64), in the order of the file."""
    if fmt in (8, 16, 32, 61):
        return raw.view({8: "i1", 16: "<i2", 32: "<i4", 61: ">i2"}[fmt]).astype(np.int64)
    if fmt == 80:
        return raw.astype(np.int64) - 128
    if fmt == 160:
        return raw.view("<u2").astype(np.int64) - 32768
    b = raw.reshape(-1, PIECE[fmt][1]).astype(np.int64)
    if fmt == 24:
        return _signed(b[:, 0] | b[:, 1] << 8 | b[:, 2] << 16, 24)
    if fmt == 212:  # 12 bits: the middle byte holds the high nibbles, of the first sample in its low half
        return _signed(np.stack([b[:, 0] | (b[:, 1] & 15) << 8, b[:, 2] | (b[:, 1] >> 4) << 8], 1).ravel(), 12)
    low, high = b[:, 0] | b[:, 1] << 8, b[:, 2] | b[:, 3] << 8
    if fmt == 310:  # two of 11 bits without their lowest, and the upper 5 bits of both words
        return _signed(np.stack([low >> 1 & 1023, high >> 1 & 1023, low >> 11 | (high >> 11) << 5], 1).ravel(), 10)
    word = low | high << 16  # 311: three of 10 bits, the first in the lowest
    return _signed(np.stack([word & 1023, word >> 10 & 1023, word >> 20 & 1023], 1).ravel(), 10)


def _signed(x: np.ndarray, bits: int) -> np.ndarray:
    return np.where(x >> (bits - 1), x - (1 << bits), x)


def _difference_frames(path: Path, per_frame: int, offset: int, start: int, stop: int, initial: tuple[int, ...]) -> np.ndarray:
    level = np.asarray(initial or (0,) * per_frame, np.int64)
    for block in range(0, start, _BLOCK_FRAMES):
        level = level + _plain_frames(path, 8, per_frame, offset, block, min(block + _BLOCK_FRAMES, start)).sum(0)
    return level + np.cumsum(_plain_frames(path, 8, per_frame, offset, start, stop), axis=0)


def _flac_frames(path: Path, fmt: int, per_frame: int, start: int, stop: int) -> np.ndarray:
    """A FLAC file has one channel a signal; all its signals have the same number of samples a frame."""
    sf = _soundfile(path)
    with _flac(path) as file:
        factor = per_frame // file.channels
        if factor * file.channels != per_frame:
            raise ValueError(f"{path}: {file.channels} FLAC channels cannot hold the {per_frame} samples a frame of the header; fetch the record again")
        if stop * factor > file.frames:
            raise ValueError(f"{path}: truncated, frames up to {stop} are asked for and it has {file.frames // factor}; fetch it again")
        try:
            file.seek(start * factor)
            x = file.read((stop - start) * factor, dtype="int32", always_2d=True) >> FLAC_SHIFT[fmt]
        except sf.LibsndfileError as error:
            raise ValueError(f"{path}: damaged near frame {start} ({error}); fetch it again") from error
    if len(x) != (stop - start) * factor:
        raise ValueError(f"{path}: truncated or damaged, {len(x) // factor} of the frames [{start}, {stop}) can be decoded; fetch it again")
    return x.reshape(stop - start, factor, -1).transpose(0, 2, 1).reshape(stop - start, per_frame).astype(np.int64)


def _flac(path: Path):
    sf = _soundfile(path)
    try:
        return sf.SoundFile(path)
    except sf.LibsndfileError as error:
        raise ValueError(f"{path}: not a readable FLAC file ({error}); fetch it again") from error


def _soundfile(path: Path) -> ModuleType:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(f"{path} is FLAC-compressed, which needs libsndfile: pip install 'physio-data[wfdb]'") from error
    return soundfile
