# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The PVC probe, from a file to predictions
#
# A premature ventricular contraction (PVC) shows in the finger's pulse as an early, weak beat and a pause. This notebook follows the whole line on a small
# generated cohort: a file becomes a recording, windows, a store; a masked autoencoder learns from the training subjects without labels; a linear probe asks
# its frozen features for PVCs on subjects that nobody has seen. The apps do the same at full size: `uv run apps/pretrain.py`.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from physio_data import open_recording
from physio_data.corpora import corpus
from physio_data.morphology import handcrafted
from physio_data.prepare import PrepareConfig, prepare
from physio_data.store import Store
from physio_models.contract import Encoder, InputContract, SignalSpec, normalize
from physio_models.himae import HiMaeConfig
from physio_models.objectives.masked import MaskedReconstruction
from physio_models.pretrained import build_untrained, from_pretrained, save_pretrained
from physio_train import Batches, FitConfig, fit, floors, predictions, protocol, table
from physio_train.embed import embed
from physio_train.probe import ProbeConfig

work = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A file becomes a recording
# One generated subject is written as a text file, as a device might export it, and opened again. A recording is lazy: the header is read now, samples when
# asked for. The generator knows the truth, so its annotations say which beats are PVCs.

# %%
subject = next(r for r in corpus("synthetic").records(n_subjects=20, minutes=1.0) if (r.annotations.symbol == "V").sum() > 3)
file = work / "finger.csv"
np.savetxt(file, subject.signal_CT.T, header="PPG", comments="", fmt="%.6f")

recording = open_recording(file, source_fs=25.0)
print(recording.channels, recording.fs, "Hz", recording.duration_s, "s")

# %%
fig, ax = plt.subplots(figsize=(10, 2.2), layout="constrained")
shown_CT = recording.read(0, 500)
ax.plot(np.arange(500) / recording.fs, shown_CT[0], lw=1, color="0.3")
for beat_s in subject.annotations.time_s[(subject.annotations.symbol == "V") & (subject.annotations.time_s < 20)]:
    ax.axvline(beat_s, color="C3", lw=1)
ax.set(xlabel="s", title="20 s of pulse; lines mark PVCs")
plt.show()

# %% [markdown]
# ## Recordings become a store of windows
# `prepare` filters, cuts 10-s windows at 25 Hz, labels them and deals *subjects* to train, val and test. Signals are stored in physical units.

# %%
cfg = PrepareConfig(corpus="synthetic", window_s=10.0, corpus_options={"n_subjects": 120, "minutes": 2.0})
prepare(cfg, work / "store")
store = Store(work / "store", task="pvc")
pvc_N, fold_N, subject_N = store.label(), store.index["fold"], store.index["subject"]
for fold in ("train", "val", "test"):
    rows = store.rows(fold)
    print(f"{fold}: {len(rows)} windows, {len(np.unique(subject_N[rows]))} subjects, {int(pvc_N[rows].sum())} with a PVC")

# %% [markdown]
# ## The network learns without labels
# HiMAE sees each window with 80 % of its patches set to zero and fills them in. `fit` is a generator: the caller looks, saves and stops.


# %%
def transform(batch, streams):
    return batch | {"signal": normalize(batch["signal"], "instance_minmax")[0]}


config = HiMaeConfig(n_samples=store.n_samples, widths=(16, 32, 64, 128))
model = build_untrained("himae", config, seed=0)
fit_cfg = FitConfig(n_steps=300, batch_size=64, lr=2e-3, betas=(0.9, 0.99))
batches = Batches(store, store.rows("train"), batch_size=64, seed=0, transform=transform)
loss = [float(step.loss.total) for step in fit(model, MaskedReconstruction(patch=5, mask_ratio=0.8), batches, fit_cfg, device="cpu")]

fig, ax = plt.subplots(figsize=(5, 2.2), layout="constrained")
ax.plot(loss)
ax.set(xlabel="step", ylabel="loss on hidden samples", yscale="log")
plt.show()

# %% [markdown]
# ## What is saved says what it needs
# A contract travels with the weights: channels, unit, rate, window, band, normalisation. An input that does not fit is refused with the flags that mend it.

# %%
band = tuple(store.manifest["band"])
spec = SignalSpec(channels=store.channels, units=tuple(store.units), fs=store.fs, n_samples=store.n_samples, band=band, kind=store.kind)
contract = InputContract(channels=spec.channels, units=spec.units, fs=spec.fs, window_s=store.window_s, band=band, length_free=True, kind=spec.kind)
seen = {"stores": [store.hash], "subjects": sorted(set(subject_N[store.rows("train")].tolist()))}
encoder = from_pretrained(save_pretrained(work / "encoder", model, config, contract, seen))
try:
    encoder.contract.check(SignalSpec(channels=("PPG",), units=("a.u.",), fs=100.0, n_samples=1000))
except ValueError as error:
    print(error)

# %% [markdown]
# ## The probe and its floors
# Fitted on train and val, scored on test. The same questions go to an untrained twin of the network and to features that a person would write down.

# %%
task = protocol.Task(name="pvc")
fitted_on, scored_on = store.rows(("train", "val")), store.rows("test")


def windows(rows):
    return protocol.Windows(y=pvc_N[rows], subject=subject_N[rows], record=store.index["record"][rows], start_s=store.index["start_s"][rows])


def judge(name, features, seed=0, **options):
    """Fit on the training windows, score the test windows."""
    config = ProbeConfig(**options)
    return protocol.train_test(name, features(fitted_on), windows(fitted_on), features(scored_on), windows(scored_on), task, config, seed=seed)[0]


def features_of(encoder):
    return lambda rows: embed(lambda batch: encoder.features(batch["signal"], spec, level="all", pool="mean+max+std"), store, rows)


twins = [Encoder(build_untrained("himae", config, seed=1000 + seed), contract) for seed in range(3)]
parts = [judge("pretrained", features_of(encoder))]
parts += [judge("twin", features_of(twin), seed=seed) for seed, twin in enumerate(twins)]
parts += [judge("handcrafted", lambda rows: handcrafted(store.batch(rows)["signal"], store.fs, "ppg")[0], missing="median")]
scores = predictions.concatenate(parts)
print(table.score(scores, heading=floors.heading(subject_N[scored_on], seen["subjects"]), disjoint=True).plain())

# %% [markdown]
# A few seconds of training on a hundred people prove little; the apps train longer, take the twin at its strongest normalisation, and say how far to trust the
# difference. What counts is that every figure above can be computed again from one file:

# %%
predictions.write(work / "predictions.csv", scores)
print(*(work / "predictions.csv").read_text().splitlines()[:4], sep="\n")

# %%
lines = predictions.read(work / "predictions.csv")
own = lines.take(lines.row == "pretrained")
at = np.argsort(-own.scores["pvc"])[:3]
fig, axes = plt.subplots(3, 1, figsize=(10, 4), layout="constrained", sharex=True)
for ax, i in zip(axes, at, strict=True):
    row = np.flatnonzero((store.index["record"] == own.record[i]) & (store.index["start_s"] == own.start_s[i]))[0]
    ax.plot(np.arange(store.n_samples) / store.fs, store.batch([row])["signal"][0, 0], lw=1, color="0.3")
    ax.set_title(f"{own.record[i]} at {own.start_s[i]:g} s: score {own.scores['pvc'][i]:.2f}, label {int(own.labels['pvc'][i])}", fontsize=8)
axes[-1].set_xlabel("s")
plt.show()
