"""SOURCES: where `download` gets a corpus or a published file. One row a name; what has no row has to be fetched by hand from its page."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

PHYSIONET = "https://physionet.org/files/"
UCI = "https://archive.ics.uci.edu/static/public/"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One file with the checksum that is known of it; without one `download` only records what came."""

    name: str
    url: str = ""  # "": no direct address is published, --url gives one
    algorithm: Literal["sha256", "md5"] = "sha256"
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where files are: a PhysioNet-like tree with SHA256SUMS.txt, a Zenodo record, or single files."""

    page: str
    access: Literal["open", "credentialed"] = "open"
    tree: str = ""  # address of the folder that holds SHA256SUMS.txt
    under: str = ""  # only this folder of the tree, which becomes the root of the copy
    only: tuple[str, ...] = ()  # patterns of paths below it, where not all is wanted
    zenodo: str = ""  # number of a record
    files: tuple[Published, ...] = ()
    note: str = ""


def _physionet(project: str, version: str, under: str = "", **more: object) -> Source:
    return Source(page=f"https://physionet.org/content/{project}/{version}/", tree=f"{PHYSIONET}{project}/{version}/", under=under, **more)


SOURCES: dict[str, Source] = {
    "mitbih": _physionet("mitdb", "1.0.0"),
    "cinc2017": _physionet("challenge-2017", "1.0.0"),
    "cpsc2021": _physionet("cpsc2021", "1.0.0"),
    "cinc2021": _physionet("challenge-2021", "1.0.3"),
    "georgia": _physionet("challenge-2021", "1.0.3", "training/georgia/"),
    "csn": _physionet("ecg-arrhythmia", "1.0.0"),
    "ptbxl": _physionet("ptb-xl", "1.0.3"),
    "ludb": _physionet("ludb", "1.0.1"),
    "mimic_iv_ecg": _physionet("mimic-iv-ecg", "1.0"),
    "mimic3_wf": _physionet("mimic3wdb-matched", "1.0", note="2.4 TB; --only 'p00/*' takes a part"),
    "mimic4_wf": _physionet("mimic4wdb", "0.1.0"),
    "bidmc": _physionet("bidmc", "1.0.0"),
    "sleep_edf": _physionet("sleep-edfx", "1.0.0"),
    "mimic_iv_patients": _physionet(
        "mimiciv", "3.1", "hosp/", only=("patients.csv.gz",), access="credentialed", note="age and sex for mimic_iv_ecg and mimic4_wf"
    ),
    "mimic3_patients": _physionet("mimiciii", "1.4", only=("PATIENTS.csv.gz",), access="credentialed", note="age and sex for mimic3_wf"),
    "code15": Source(page="https://zenodo.org/records/4916206", zenodo="4916206", note="unpack the zip files where they are"),
    "wesad": Source(
        page="https://archive.ics.uci.edu/dataset/465/wesad+wearable+stress+and+affect+detection",
        files=(Published(name="wesad.zip", url=f"{UCI}465/wesad+wearable+stress+and+affect+detection.zip"),),
        note="no checksum is published",
    ),
    "dalia": Source(
        page="https://archive.ics.uci.edu/dataset/495/ppg+dalia",
        files=(Published(name="ppg_dalia.zip", url=f"{UCI}495/ppg+dalia.zip"),),
        note="no checksum is published",
    ),
    "pulsedb": Source(
        page="https://github.com/pulselabteam/PulseDB",
        files=(Published(name="PulseDB_MIMIC.zip"), Published(name="PulseDB_Vital.zip")),
        note="the authors share the archives through folders of file services whose direct addresses change, and publish no checksum: "
        "open the page's Segment_Files guide, copy the links, and give them as --url PulseDB_MIMIC.zip=LINK PulseDB_Vital.zip=LINK",
    ),
    "papagei": Source(
        page="https://zenodo.org/records/13983110",
        files=tuple(
            Published(name=name, url=f"https://zenodo.org/records/13983110/files/{name}?download=1", algorithm="md5", digest=md5)
            for name, md5 in (
                ("papagei_s.pt", "a4cdb32392e2a7b25999128af92813b5"),
                ("papagei_p.pt", "052b50807465fae61e08e2b7acbb5c53"),
                ("papagei_s_svri.pt", ""),
            )
        ),
        note="weights, no corpus; the MD5 sums are those a third party's script states, of papagei_s_svri.pt none is known",
    ),
    "ecg_byte": Source(
        page="https://github.com/ELM-Research/ecg_encoder",
        files=tuple(
            Published(
                name=f"ecg_byte_tokenizer_{n}.pkl",
                url=f"https://raw.githubusercontent.com/ELM-Research/ecg_encoder/main/src/dataloaders/data_representation/bpe/ecg_byte_tokenizer_{n}.pkl",
                digest=sha256,
            )
            for n, sha256 in (
                (10000, "fecd818790484ae8c9cb0835d2ac785a25d6db5b6b4b934a86a6399282047781"),
                (5000, "fe63ee95385bd615adfee5afd646a23174d07ff2e2c47cabc3fb20d0675deec9"),
            )
        ),
        note="tokenizers, no corpus; the repository has moved its folders before: where the address fails, --url gives the file's present one, "
        "and the checksum still decides",
    ),
}


def source_of(name: str) -> Source:
    """The row of that name. ValueError with the nearest one."""
    if name not in SOURCES:
        near = get_close_matches(name, SOURCES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no source {name!r}; {hint}there are {', '.join(SOURCES)}. Other corpora are fetched by hand: `prepare NAME --info` says from where")
    return SOURCES[name]
