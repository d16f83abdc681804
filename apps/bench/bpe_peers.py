"""Other trainers and encoders of byte pairs under one face, for `bpe.py`: lines of letters in, merges or ids out.

Peers of the package index come with `uv sync --group bench`. Three slow ones are our own plain statements of a rule, compiled from
`rust/physio-bpe/examples/reference.rs` (Cargo is needed): what ECG-Byte's trainer and encoder do, without Python around them.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import rustbpe
import sentencepiece
import tiktoken
import tokenizers
import youtokentome

RUST = Path(__file__).parents[2] / "rust"
PATTERN = "[a-z]+"  # a line is one word
Strings = list[bytes]


def spelled(merges: np.ndarray) -> Strings:
    """What ids 0, 1, ... spell, for merges (M, 2)."""
    strings = [bytes([symbol]) for symbol in range(256)]
    for left, right in merges.tolist():
        strings.append(strings[left] + strings[right])
    return strings


def train_hf(lines: Sequence[str], n_merges: int) -> Strings:
    """What the merges of Hugging Face tokenizers spell, in order."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    alphabet = len(set().union(*map(set, lines)))
    model.train_from_iterator(lines, tokenizers.trainers.BpeTrainer(vocab_size=alphabet + n_merges, show_progress=False))
    return ["".join(pair).encode() for pair in json.loads(model.to_str())["model"]["merges"]]


def train_rustbpe(lines: Sequence[str], n_merges: int) -> Strings:
    model = rustbpe.Tokenizer()
    model.train_from_iterator(iter(lines), 256 + n_merges, pattern=PATTERN)
    return [bytes(token) for token, _ in model.get_mergeable_ranks()[256:]]


def train_sentencepiece(lines: Sequence[str], n_merges: int) -> Strings:
    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=f"{folder}/model",
            model_type="bpe",
            vocab_size=n_merges + 29,  # 26 letters, three special tokens
            max_sentence_length=1 << 20,
            max_sentencepiece_length=512,
            split_by_whitespace=False,
            split_by_unicode_script=False,
            add_dummy_prefix=False,
            normalization_rule_name="identity",
            character_coverage=1.0,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
        )
        model = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/model.model")
        return [model.id_to_piece(id).encode() for id in range(3, model.get_piece_size()) if len(model.id_to_piece(id)) > 1]


def train_youtokentome(lines: Sequence[str], n_merges: int, n_threads: int, model: Path) -> Strings:
    """Reads a file and writes one, as it has no other way; both lie in the folder of `model`."""
    text = model.with_suffix(".txt")
    text.write_text("\n".join(lines), encoding="ascii")
    learned = youtokentome.BPE.train(str(text), str(model), vocab_size=n_merges + 31, n_threads=n_threads)  # 26 letters, a space mark, four special tokens
    return [token.encode() for token in learned.vocab() if len(token) > 1 and not token.startswith("<")]


def encoder_tiktoken(merges: np.ndarray) -> Callable[[Sequence[str]], list[list[int]]]:
    encoding = tiktoken.Encoding("bench", pat_str=PATTERN, mergeable_ranks={string: id for id, string in enumerate(spelled(merges))}, special_tokens={})
    return lambda lines: [encoding.encode_ordinary(line) for line in lines]


def encoder_hf(model: tokenizers.Tokenizer) -> Callable[[Sequence[str]], list[list[int]]]:
    return lambda lines: [one.ids for one in model.encode_batch_fast(lines, add_special_tokens=False)]


def encoder_youtokentome(model: Path) -> Callable[[Sequence[str]], list[list[int]]]:
    encoding = youtokentome.BPE(str(model), n_threads=1)
    return lambda lines: encoding.encode(list(lines), output_type=youtokentome.OutputType.ID)


class Reference:
    """The compiled plain statements; each call is a process of its own, which reads its input from a file in `folder`."""

    def __init__(self, folder: Path) -> None:
        command = ["cargo", "build", "--quiet", "--release", "--example", "reference", "--package", "physio-bpe"]
        subprocess.run(command, cwd=RUST, check=True)
        self.program, self.folder = RUST / "target/release/examples/reference", folder

    def _run(self, *words: str | Path | int) -> bytes:
        return subprocess.run([str(word) for word in (self.program, *words)], check=True, capture_output=True).stdout

    def _file(self, name: str, values: np.ndarray) -> Path:
        path = self.folder / name
        path.write_bytes(values.tobytes())
        return path

    def recount(self, line: np.ndarray, n_merges: int, n_threads: int) -> np.ndarray:
        """Merges (M, 2) of one string, all pairs counted again for each."""
        return np.frombuffer(self._run("recount", self._file("line", line), n_merges, n_threads), "<u4").reshape(-1, 2)

    def longest(self, lines_NL: np.ndarray, merges: np.ndarray, *, kept: bool) -> np.ndarray:
        """Ids of all lines by a tree of hash maps, built once, or anew for every line."""
        how = "kept" if kept else "rebuilt"
        return np.frombuffer(self._run(how, self._file("lines", lines_NL), lines_NL.shape[1], self._file("pairs", merges)), "<u4")

    def limits(self, line: np.ndarray) -> dict[str, float]:
        """Nanoseconds: of a byte copied, of counting one pair, of a load from L1 and from L2 whose address is the load before it."""
        return json.loads(self._run("limits", self._file("line", line)))
