"""What each concept of a dictionary means: its table of morphology, its average beat, and what happens to it when a part of the beat is flattened.

uv run apps/ground.py runs/sae --data features/a --out ground/a                          the features kept their windows (embed.py --windows)
uv run apps/ground.py runs/sae --data features/a --store stores/a --ckpt runs/encoder    windows of the store, and occlusion by the encoder

Pairs of concept and feature are chosen on training patients and confirmed on test patients. N windows, S patients, K concepts, C channels, T samples.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

import console
from compose import Size
from console import say
from encoders import chosen
from evaluate_sae import Member, Study, headline_of, members, opened, study_codes
from features import encoded, read_as
from physio_data import beats
from physio_data.morphology import ecg_intervals, handcrafted, ppg_features
from physio_data.pulses import pulse_polarity
from physio_data.store import Store
from physio_sae import averages, causal, enrichment, leaderboard
from physio_sae.averages import MatchConfig
from physio_sae.codes import Codes
from physio_sae.enrichment import EnrichConfig
from physio_sae.grounding import GroundConfig, Grounded, Windows, ground

PER_PATIENT = 12  # windows of a patient that are read, evenly over time
RATE_NAMES = ("hr_bpm", "rate_bpm", "tpi_s", "rr_s", "rr_mean_s", "n_beats")  # the rate itself, its reciprocal, or its count


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Ground the concepts of a dictionary in the waveform."""

    saes: tyro.conf.Positional[Path]
    """A folder of train_sae.py, or of one dictionary."""
    data: Path
    """The features folder."""
    out: Path | None = None
    """Where ground.json goes. Default: SAES/ground."""
    store: Path | None = None
    """The store that was embedded, where the features folder keeps no windows."""
    ckpt: Path | None = None
    """The encoder, for occlusion: a run folder, a saved folder, or an original's file with --reference."""
    reference: str | None = None
    """The row of MODELS whose original wrote the file given by --ckpt."""
    model: str | None = None
    """An untrained encoder instead: a row of MODELS."""
    init_seed: int = 0
    """The untrained encoder's initialisation."""
    size: Size = "fast"
    """The untrained encoder's preset."""
    train: tuple[str, ...] = ("train", "val")
    """Folds that pairs are chosen on."""
    test: tuple[str, ...] = ("test",)
    """Folds that confirm them."""
    headline: str | None = None
    """The dictionary. Default: the largest K of ablation `full`, first seed."""
    n_cards: int = 24
    """Concepts that get an average beat and occlusion."""
    prefer: tuple[int, ...] = ()
    """Concepts that get a card first."""
    lead: int = 0
    """Channel whose morphology is measured."""
    resamples: int = 1000
    """Resamples and permutations."""
    seed: int = 0
    cfg: GroundConfig = field(default_factory=GroundConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    enrich: EnrichConfig = field(default_factory=EnrichConfig)


@dataclass(frozen=True)
class Shapes:
    """Waveforms of some rows and their morphology."""

    rows_N: np.ndarray  # of the features
    x_NT: np.ndarray  # one channel, pulses upward
    features_NF: np.ndarray
    names: tuple[str, ...]
    rate_bpm_N: np.ndarray
    subject_N: np.ndarray
    kind: str
    fs: float


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(Ground, args=list(arguments), description=console.paragraphs(__doc__))
    began = time.monotonic()
    study = opened(app.data, app.train, app.test)
    document = grounded(app, study, headline_of(members(app.saes), app.headline))
    path = leaderboard.write_json((app.out or app.saes / "ground") / "ground.json", document)
    verdicts = document["verdicts"]
    print("| verdict | concepts |\n|---|---|\n" + "\n".join(f"| {name} | {count} |" for name, count in verdicts.items()))
    return {"ground": str(path), "dictionary": document["dictionary"], "verdicts": verdicts, "seconds": round(time.monotonic() - began, 1)}


def grounded(app: Ground, study: Study, member: Member) -> dict[str, Any]:
    """The whole document. ValueError where no waveform is at hand."""
    store = None if app.store is None else Store(app.store)
    found = morphology(study, sampled(study, study.rows_N), store, app.lead)
    if found is None:
        raise ValueError(f"{app.data} keeps no windows: give --store, or embed with --windows; morphology is known of ECG from 100 Hz and PPG from 25 Hz")
    codes = study_codes(member, study.features.z(found.rows_N))
    age_N, male_N = (None if column is None else column[found.rows_N] for column in (study.age_N, study.male_N))
    shape = np.array([name not in RATE_NAMES for name in found.names])
    windows = Windows(codes=codes, features_NF=found.features_NF[:, shape], rate_bpm_N=found.rate_bpm_N, subject_N=found.subject_N, age_N=age_N, male_N=male_N)
    train_N, test_N = (np.flatnonzero(np.isin(found.rows_N, side)) for side in (study.train_N, study.test_N))
    say(f"{len(found.rows_N)} windows, {int(shape.sum())} features beside the rate, {codes.shape[1]} concepts of {member.name}")
    table = ground(windows.part(train_N), windows.part(test_N), [name for name, kept in zip(found.names, shape, strict=True) if kept], app.cfg)
    labels = {name: np.where(np.isfinite(v), v, -1)[found.rows_N] for name, (kind, v, _) in study.labels().items() if kind == "binary"}
    told = enrichment.enrich(codes, labels, found.subject_N, found.rate_bpm_N, train_N, test_N, app.enrich)
    cards = carded(app, study, member, found, codes, table, told, age_N, male_N, test_N, store)
    verdicts = {name: sum(g.verdict == name for g in table) for name in ("confirmed", "selected", "rate only", "unexplained", "dead")}
    return {
        "dictionary": member.name,
        "signal": found.kind,
        "features": [name for name, kept in zip(found.names, shape, strict=True) if kept],
        "gates": vars(app.cfg),
        "n_train_patients": len(np.unique(found.subject_N[train_N])),
        "n_test_patients": len(np.unique(found.subject_N[test_N])),
        "verdicts": verdicts,
        "concepts": table,
        "enrichment": {"found": told.found, "taxonomy": told.taxonomy, "notes": told.notes, "on": "selected on training patients, figures of test patients"},
        "cards": cards,
        "steering": steering_note(study),
    }


def sampled(study: Study, rows_N: np.ndarray, most: int = PER_PATIENT) -> np.ndarray:
    """At most `most` of each patient's rows, evenly over their order."""
    kept = []
    for mine in np.split(rows_N[np.argsort(study.subject_N[rows_N], kind="stable")], np.unique(np.sort(study.subject_N[rows_N]), return_index=True)[1][1:]):
        kept.append(mine[np.unique(np.linspace(0, len(mine) - 1, min(most, len(mine))).astype(int))])
    return np.sort(np.concatenate(kept))


def morphology(study: Study, rows_N: np.ndarray, store: Store | None = None, lead: int = 0) -> Shapes | None:
    """Waveforms and features of the rows; None without waveforms, or where the signal's kind or rate has no known morphology."""
    signal = study.features.meta.get("signal", {})
    kind, fs = (store.kind, store.fs) if store is not None else (signal.get("kind"), float(signal.get("fs") or 0))
    if (study.features.windows is None and store is None) or kind not in ("ecg", "ppg") or fs < {"ecg": 100.0, "ppg": 25.0}[kind]:
        return None
    if store is not None:
        at = study.features.index.get("store_row", np.arange(len(study.features)))[rows_N]
        x_NCT = np.concatenate([store.batch(at[n : n + 1024])["signal"] for n in range(0, len(at), 1024)])
    else:
        windows = study.features.windows
        x_NCT = np.asarray(windows[rows_N] if windows.ndim == 3 else windows[rows_N][:, None], np.float32)
    x_NT = np.asarray(x_NCT[:, min(lead, x_NCT.shape[1] - 1)], np.float64)
    if kind == "ppg":
        long = x_NT[:: max(1, len(x_NT) // 64)][:64].reshape(-1)
        x_NT = x_NT * pulse_polarity(long - long.mean(), fs)
        features_NF, names = ppg_features(x_NT, fs)
        rate_N = features_NF[:, names.index("hr_bpm")]
    else:
        intervals, first = ecg_intervals(x_NT, fs)
        more, second = handcrafted(x_NT[:, None].astype(np.float32), fs, "ecg")
        new = [n for n, name in enumerate(second) if name not in first]
        features_NF, names = np.concatenate([intervals, more[:, new]], axis=1), (*first, *(second[n] for n in new))
        rate_N = np.where(np.isfinite(intervals[:, first.index("hr_bpm")]), intervals[:, first.index("hr_bpm")], more[:, second.index("rate_bpm")])
    given = study.column("label/rate")
    rate_N = rate_N if given is None else np.where(np.isfinite(rate_N), rate_N, given[rows_N])
    return Shapes(rows_N, x_NT, np.where(np.isfinite(features_NF), features_NF, np.nan), tuple(names), rate_N, study.subject_N[rows_N], str(kind), fs)


def carded(app, study, member, found: Shapes, codes: Codes, table: Sequence[Grounded], told, age_N, male_N, test_N, store) -> list[dict[str, Any]]:
    """Average beats and occlusion of the concepts worth a card."""
    picked = worth(app, table, told, codes)
    onset = [beats.pulse_onsets(x, found.fs) if found.kind == "ppg" else beats.r_peaks(x, found.fs) for x in found.x_NT]
    if found.kind == "ppg":
        phase_NP, _ = averages.phase_beats(found.x_NT, onset)
        about_NP, _ = averages.aligned_beats(found.x_NT, [averages.steepest_rises(x, at) for x, at in zip(found.x_NT, onset, strict=True)], found.fs)
        curves = {"onset to onset": phase_NP, "about the steepest rise": about_NP}
    else:
        beat_NP, _ = averages.aligned_beats(found.x_NT, onset, found.fs, before_s=0.3, after_s=0.5)
        curves = {"about the R peak": beat_NP}
    dense = np.asarray(codes[:, picked].todense(), np.float64)
    axis = {"onset to onset": (0.0, 1.0, "share of the beat"), "about the steepest rise": (-0.2, 0.8, "s"), "about the R peak": (-0.3, 0.5, "s")}
    by_concept = {g.concept: g for g in table}
    cards = []
    with console.progress("cards", len(picked)) as show:
        for n, k in enumerate(picked):
            card: dict[str, Any] = {"concept": int(k), "verdict": by_concept[int(k)].verdict, "pairs": by_concept[int(k)].pairs, "beats": []}
            for name, beat_NP in curves.items():
                compared = averaged(app, dense[:, n], beat_NP, found, age_N, male_N, test_N)
                card["beats"].append({"axis": axis[name], "name": name, **compared})
            cards.append(card)
            show(n + 1, f"concept {k}")
    occluded(app, study, member, found, onset, picked, dense, cards, test_N, store)
    return cards


def worth(app: Ground, table: Sequence[Grounded], told: enrichment.Enrichment, codes: Codes) -> np.ndarray:
    """Concepts asked for, then those that a finding goes with, then confirmed and selected ones by their effect in training patients, rate-only ones, and the
    most active of the rest."""
    rate_K = np.diff(codes.tocsc().indptr)
    effect = {g.concept: max((abs(p.partial) for p in g.pairs), default=0.0) for g in table}
    rank = {"confirmed": 0, "selected": 2, "rate only": 1, "unexplained": 3}
    rest = sorted((g for g in table if g.verdict in rank), key=lambda g: (rank[g.verdict], -effect[g.concept], -rate_K[g.concept]))
    half = [g.concept for g in rest if g.verdict == "confirmed"][: max(app.n_cards // 2, 1)]
    rate_only = [g.concept for g in rest if g.verdict == "rate only"][: max(app.n_cards // 6, 1)]
    order = [*app.prefer, *(e.concept for e in told.found[: app.n_cards // 4]), *half, *rate_only, *(g.concept for g in rest)]
    return np.array([k for k in dict.fromkeys(order) if 0 <= k < len(rate_K) and rate_K[k] > 0][: app.n_cards], np.int64)


def averaged(app: Ground, code_N: np.ndarray, beat_NP: np.ndarray, found: Shapes, age_N, male_N, test_N) -> dict[str, Any]:
    """High against matched low among test patients; among all of them, and marked so, where the test side has too few."""
    for rows_N, of in ((test_N, "test patients"), (np.arange(len(code_N)), "patients of both sides")):
        usable_N = np.isfinite(beat_NP[rows_N]).all(1)
        who = {"age_N": None if age_N is None else age_N[rows_N], "male_N": None if male_N is None else male_N[rows_N]}
        pairs = averages.matched_windows(code_N[rows_N], found.subject_N[rows_N], found.rate_bpm_N[rows_N], app.match, usable_N=usable_N, **who)
        compared = averages.compare(beat_NP[rows_N], pairs, found.subject_N[rows_N], app.match, n_resamples=app.resamples, seed=app.seed)
        if compared.high_P is not None:
            return {**vars(compared), "of": of}
    return {**vars(compared), "of": "patients of both sides"}


def occluded(app, study, member, found: Shapes, onset, picked, dense, cards, test_N, store) -> None:
    """Flatten each tenth of the beat in the most active test windows, encode again; needs the encoder."""
    encode = encoder_of(app, study, member, picked)
    if encode is None:
        for card in cards:
            card["occlusion"] = {"note": "no encoder was named (--ckpt, or --model): occlusion encodes the windows again"}
        return
    waves = study.features.windows if store is None else None
    with console.progress("occlusion", len(cards)) as show:
        for n, card in enumerate(cards):
            high = test_N[np.argsort(-dense[test_N, n], kind="stable")]
            high = high[dense[high, n] > 0]
            high = high[averages.occurrence(found.subject_N[high]) < 2][:40]
            if not len(high):
                card["occlusion"] = {"note": "the concept fires in no test window"}
                continue
            rows = found.rows_N[high]
            x_NCT = (
                np.asarray(waves[rows], np.float32)
                if waves is not None
                else store.batch(study.features.index.get("store_row", np.arange(len(study.features)))[rows])["signal"]
            )
            x_NCT = x_NCT if x_NCT.ndim == 3 else x_NCT[:, None]
            own = causal.occlude(lambda x, n=n: encode(x)[:, [n]], x_NCT, [onset[row] for row in high], found.subject_N[high], n_resamples=app.resamples)
            card["occlusion"] = vars(own)
            show(n + 1, f"concept {card['concept']}")


def encoder_of(app: Ground, study: Study, member: Member, picked: np.ndarray) -> Callable[[np.ndarray], np.ndarray] | None:
    """(N, C, T) waveforms, as the features were made from them, to the activations (N, cards) of the picked concepts."""
    if app.ckpt is None and app.model is None:
        return None
    if app.store is None:
        raise ValueError("--store is needed with an encoder: it says what the windows are")
    store = Store(app.store)
    encoder = chosen(store, ckpt=app.ckpt, reference=app.reference, model=app.model, init_seed=app.init_seed, size=app.size).open(store)
    meta, spec = study.features.meta, read_as(store)
    if encoder.untrained:
        encoder.contract = replace(encoder.contract, band=spec.band)

    def encode(x_NCT: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            parts = [encoded(encoder, x_NCT[n : n + 256], spec, level=meta["level"], pool=meta["pool"]) for n in range(0, len(x_NCT), 256)]
        return np.asarray(study_codes(member, np.concatenate(parts))[:, picked].todense())

    return encode


def steering_note(study: Study) -> str:
    """What can be said of steering, which needs a decoder of what the dictionary reads."""
    pool = study.features.meta.get("pool", "pooled")
    if pool != "tokens":
        return f"Steering is not offered: the dictionary reads vectors pooled over time ({pool}), and no encoder here decodes those into a waveform."
    return "Steering: physio_sae.causal.steer edits tokens and decodes them by a function of the encoder's decoder; this app shows occlusion only."


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    console.run(main)
