"""What this package refuses, by kind. Every message names the place and what to do about it; all are ValueErrors."""

from __future__ import annotations


class TokenizerError(ValueError):
    """The base of the three below."""


class SignalError(TokenizerError):
    """Samples or symbols that cannot be converted: not finite, outside the alphabet, of a wrong shape."""


class VocabularyError(TokenizerError):
    """Merges that make no vocabulary, or ids that a vocabulary does not have."""


class FileFormatError(TokenizerError):
    """A file that is truncated, altered, foreign or newer than this version reads."""
