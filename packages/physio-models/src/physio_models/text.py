"""One vector a report from a frozen language model: the masked mean of its last hidden states, computed once per distinct text.

The language model never becomes part of a network, so it is in no state dict; batches carry its vectors as ``text_emb``. It comes
from the transformers library (extra ``physio-models[text]``), which is needed only for texts that no cache has yet.
Shape letters: B reports, L tokens, D features.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def masked_mean(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean over the tokens that are no padding, (B, D). ``ValueError`` for an item without any."""
    mask_BL1 = mask_BL.to(hidden_BLD.dtype)[..., None]
    count_B1 = mask_BL1.sum(1)
    if not bool((count_B1 > 0).all()):
        raise ValueError(f"mask_BL has no token in item {int((count_B1[:, 0] == 0).nonzero()[0])}; leave that report out")
    return (hidden_BLD * mask_BL1).sum(1) / count_B1


class ReportEmbedder:
    """Called with reports, gives their vectors (B, D) float32 on the host; texts that came before are not computed again.

    ``language_model`` is a local folder or a Hub id that transformers reads (``ncbi/MedCPT-Query-Encoder``); its weights must be
    safetensors. ``cache`` is a file that `save` writes and a later embedder starts from; it holds vectors and digests, no texts.
    """

    def __init__(
        self, language_model: str | Path, *, max_tokens: int = 128, cache: Path | str | None = None, batch_size: int = 32, device: torch.device | str = "cpu"
    ) -> None:
        if max_tokens < 1 or batch_size < 1:
            raise ValueError(f"max_tokens and batch_size must be at least 1, got {max_tokens} and {batch_size}")
        self.language_model, self.max_tokens, self.batch_size = str(language_model), max_tokens, batch_size
        self.cache, self.device = None if cache is None else Path(cache), torch.device(device)
        self._known: dict[str, Tensor] = {}
        self._loaded: tuple[Any, Any] | None = None
        if self.cache is not None and self.cache.exists():
            self._known = read_cache(self.cache, self._identity())

    def __len__(self) -> int:
        """Distinct reports known."""
        return len(self._known)

    def __call__(self, reports: Sequence[str]) -> Tensor:
        """(B, D). ``ValueError`` for no report, or something that is no text; ``ImportError`` names the extra where it is needed and missing."""
        if isinstance(reports, str) or not len(reports):
            raise ValueError(f"reports must be a sequence of at least one text, got {reports!r}")
        if strange := [report for report in reports if not isinstance(report, str)]:
            raise ValueError(f"reports must be texts, got {type(strange[0]).__name__}; give '' where there is no report")
        digests = [digest(report) for report in reports]
        unknown = {key: str(report) for key, report in zip(digests, reports, strict=True) if key not in self._known}
        names = sorted(unknown, key=lambda key: len(unknown[key]))  # texts of like length share a batch
        for start in range(0, len(names), self.batch_size):
            some = names[start : start + self.batch_size]
            self._known |= dict(zip(some, self._embed([unknown[key] for key in some]), strict=True))
        return torch.stack([self._known[key] for key in digests])

    def save(self) -> Path:
        """Write the cache; it appears whole or not at all. ``ValueError`` without a cache file or anything to write."""
        if self.cache is None:
            raise ValueError("cache is not set: name the file that keeps the vectors")
        if not self._known:
            raise ValueError("there is nothing to save yet: embed some reports first")
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{self.cache.name}.", dir=self.cache.parent)
        os.close(handle)
        metadata = self._identity() | {"digests": json.dumps(list(self._known))}
        try:
            save_file({"text_emb": torch.stack(list(self._known.values()))}, temporary, metadata=metadata)
            Path(temporary).replace(self.cache)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return self.cache

    def _identity(self) -> dict[str, str]:
        return {"language_model": self.language_model, "max_tokens": str(self.max_tokens)}

    @torch.no_grad()
    def _embed(self, texts: list[str]) -> list[Tensor]:
        tokenizer, model = self._language_model()
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt").to(self.device)
        hidden_BLD = model(**tokens).last_hidden_state.float()
        return list(masked_mean(hidden_BLD, tokens["attention_mask"]).cpu().unbind(0))

    def _language_model(self) -> tuple[Any, Any]:
        """Tokenizer and model in eval mode, loaded on first use."""
        if self._loaded is None:
            try:
                transformers = importlib.import_module("transformers")
            except ImportError as error:
                raise ImportError("embedding new reports needs the transformers library: pip install 'physio-models[text]'") from error
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.language_model)
            model = transformers.AutoModel.from_pretrained(self.language_model, use_safetensors=True)
            self._loaded = tokenizer, model.to(self.device).eval().requires_grad_(False)
        return self._loaded


def digest(report: str) -> str:
    """The name of a text in the cache; what surrounds it in white space does not count."""
    return hashlib.sha256(report.strip().encode()).hexdigest()


def read_cache(path: Path, identity: dict[str, str]) -> dict[str, Tensor]:
    """Vectors by digest. ``ValueError`` if the file is damaged, or was made by another language model or length."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata, vectors_ND = file.metadata() or {}, file.get_tensor("text_emb")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no cache of reports ({error}); delete it and embed anew") from error
    found = {key: metadata.get(key) for key in identity}
    if found != identity:
        raise ValueError(f"{path} was made with {found}, this embedder has {identity}; name another cache file")
    return dict(zip(json.loads(metadata["digests"]), vectors_ND.unbind(0), strict=True))
