"""CORPORA names every corpus once; `corpus(name)` imports its module on demand."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module

from physio_data.corpora.contract import Corpus, PrepareDefaults, TaskSpec

CORPORA = {
    "synthetic": "physio_data.corpora.synthetic:CORPUS",
    "mitbih": "physio_data.corpora.mitbih:CORPUS",
    "cinc2017": "physio_data.corpora.cinc2017:CORPUS",
    "cpsc2021": "physio_data.corpora.cpsc2021:CORPUS",
    "cpsc2018": "physio_data.corpora.cpsc2018:CORPUS",
    "cinc2021": "physio_data.corpora.cinc2021:CORPUS",
    "ptbxl": "physio_data.corpora.ptbxl:CORPUS",
    "ludb": "physio_data.corpora.ludb:CORPUS",
    "mimic_iv_ecg": "physio_data.corpora.mimic_iv_ecg:CORPUS",
    "code15": "physio_data.corpora.code15:CORPUS",
    "csn": "physio_data.corpora.csn:CORPUS",
    "georgia": "physio_data.corpora.georgia:CORPUS",
    "ucr": "physio_data.corpora.ucr:CORPUS",
    "himae_shards": "physio_data.corpora.himae_shards:CORPUS",
    "himae_pvc": "physio_data.corpora.himae_pvc:CORPUS",
    "pulsedb": "physio_data.corpora.pulsedb:CORPUS",
    "mimic3_wf": "physio_data.corpora.mimic3_wf:CORPUS",
    "mimic4_wf": "physio_data.corpora.mimic4_wf:CORPUS",
    "bidmc": "physio_data.corpora.bidmc:CORPUS",
    "ppgbp": "physio_data.corpora.ppgbp:CORPUS",
    "troika": "physio_data.corpora.troika:CORPUS",
    "wesad": "physio_data.corpora.wesad:CORPUS",
    "dalia": "physio_data.corpora.dalia:CORPUS",
    "sleep_edf": "physio_data.corpora.sleep_edf:CORPUS",
    "cwt_index": "physio_data.corpora.cwt_index:CORPUS",
    "ecg_preprocess": "physio_data.corpora.ecg_preprocess:CORPUS",
    "folder": "physio_data.corpora.folder:CORPUS",
}


def corpus(name: str) -> Corpus:
    """The corpus of that name: a row of CORPORA, or from one's own code any importable "module:ATTRIBUTE".

    Raises ValueError naming the nearest row for an unknown name.
    """
    target = CORPORA.get(name, name)
    module, _, attribute = target.partition(":")
    if not attribute:
        near = get_close_matches(name, CORPORA, n=1, cutoff=0.0)
        raise ValueError(f"no corpus {name!r}; did you mean {near[0]!r}? There are {', '.join(CORPORA)}")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, Corpus):
        raise ValueError(f"{target!r} is a {type(found).__name__}, not a Corpus")
    return found


__all__ = ["CORPORA", "Corpus", "PrepareDefaults", "TaskSpec", "corpus"]
