"""Forecasts, gaps and generated windows from the command line, and that nothing hidden is looked at."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import compose
import continuation
import encoders
import forecast
import generate
import imputation
import prepare
import reconstruction
from continuation import Network, Sampling
from physio_bpe import train
from physio_bpe.quantize import RecordMinMax
from physio_data.store import Store
from physio_models.contract import ContractError, InputContract, normalize
from physio_models.decoder import TokenDecoderConfig
from physio_models.diffusion import kept_signal, sample_ddim, sample_ddpm, sample_flow
from physio_models.dit import DitConfig
from physio_models.himae import HiMaeConfig
from physio_models.objectives.autoregressive import Autoregressive
from physio_models.objectives.ddpm import Ddpm
from physio_models.objectives.dual_domain import DualDomain
from physio_models.objectives.masked import MaskedReconstruction
from physio_models.objectives.rectified_flow import RectifiedFlow
from physio_models.pretrained import build_untrained, save_pretrained
from tokens import Tokenize

T, FS = 400, 100.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("forecast")


@pytest.fixture(scope="module")
def store(folder):
    flags = [
        "--fs",
        "100",
        "--window-s",
        "4",
        "--hop-s",
        "4",
        "--band",
        "0.5,40",
        "--leads",
        "ECG",
        "--option",
        "signal",
        "ecg",
        "n_subjects",
        "24",
        "minutes",
        "0.5",
    ]
    prepare.main(["synthetic", "--out", str(folder / "store"), *flags])
    return Store(folder / "store")


def contract(n_channels=1, normalization="instance_zscore"):
    names = ("ECG", "B", "C")[:n_channels]
    return InputContract(channels=names, units=("mV",) * n_channels, fs=FS, window_s=T / FS, band=(0.5, 40.0), normalization=normalization, kind="ecg")


def saved(folder, name, config, **more):
    path = folder / name
    if not path.exists():
        save_pretrained(path, build_untrained(name, config), config, contract(), seen={"stores": [], "subjects": []})
        document = json.loads((path / "config.json").read_text()) | more
        (path / "config.json").write_text(json.dumps(document))
    return path


def dit(folder, objective="rectified_flow"):
    return saved(folder, "dit", DitConfig.preset("tiny", n_channels=1, n_samples=T, patch=20))


def network(model, objective, kind, n_channels=1, tokenizer=None):
    cut = None if tokenizer is None else Tokenize(tokenizer, model.cfg.n_positions)
    encoder = SimpleNamespace(model=model.eval(), contract=contract(n_channels), config=model.cfg, tokenize=cut, name="net")
    return Network(encoder=encoder, objective=objective, kind=kind)


def waves(n=4, c=1, seed=0):
    return np.random.default_rng(seed).normal(size=(n, c, T)).cumsum(axis=2) / 10


def tail(n, hidden=100):
    return np.repeat((np.arange(T) >= T - hidden)[None], n, axis=0)


def lively(model):
    """The network with weights that are nowhere zero, as trained ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model.eval()


def cwt():
    from physio_models.cwt_mae import CwtMaeConfig

    return CwtMaeConfig.preset("tiny", n_channels=1, n_samples=T).build()


NETWORKS = {
    "himae": lambda: network(lively(HiMaeConfig.preset("tiny", n_samples=T).build()), MaskedReconstruction(patch=20), "masked"),
    "cwt_mae": lambda: network(lively(cwt()), DualDomain(), "masked"),
    "flow": lambda: network(lively(DitConfig.preset("tiny", n_channels=1, n_samples=T, patch=20).build()), RectifiedFlow(), "denoiser"),
    "ddpm": lambda: network(lively(DitConfig.preset("tiny", n_channels=1, n_samples=T, patch=20).build()), Ddpm(n_steps=20), "denoiser"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_hidden_changes_nothing_that_is_said_of_it(name):
    net, x, index = NETWORKS[name](), waves(), np.arange(4)
    unit = continuation.unit_of_mask(net)
    hidden = tail(4, unit * max(1, 100 // unit))
    other = np.where(hidden[:, None], 50 * waves(seed=9), x)
    sampling = Sampling(steps=4)
    said = continuation.filled(net, x, hidden, index, sampling)
    np.testing.assert_array_equal(np.where(hidden[:, None], said, 0), np.where(hidden[:, None], continuation.filled(net, other, hidden, index, sampling), 0))
    np.testing.assert_array_equal(np.where(hidden[:, None], 0, said), np.where(hidden[:, None], 0, x))
    assert np.isfinite(said).all() and np.ptp(said[:, :, -20:]) > 0


def test_a_masked_answer_comes_back_in_the_signals_unit():
    """A network that answers with the visible mean in its own units: z-scored, that is 0, so in mV it is the mean of the visible samples."""

    class Zero(torch.nn.Module):
        cfg = SimpleNamespace(n_samples=T)

        def forward(self, x_BCT, mask_BT, valid_BT=None):
            from physio_models.interface import Masked

            return Masked(torch.zeros_like(x_BCT), x_BCT, mask_BT[:, None])

    x, hidden = waves() + 3, tail(4)
    said = continuation.filled(network(Zero(), MaskedReconstruction(patch=20), "masked"), x, hidden, np.arange(4), Sampling())
    np.testing.assert_allclose(said[:, :, -100:], x[:, :, :-100].mean(axis=2, keepdims=True).repeat(100, 2), atol=1e-5)


def test_painting_in_ends_at_the_known_samples_and_passes_them_noised_to_the_level():
    value, known = torch.randn(3, 1, 40), torch.arange(40).expand(3, 1, 40) < 25
    noise, abar = torch.randn(3, 1, 40), kept_signal("linear", 30)
    seen = []

    def predict(x, level):
        seen.append((float(level[0]), x[known.expand_as(x)]))
        return 0.3 * x

    runs = {
        "ddpm": lambda: sample_ddpm(continuation.known_noise(predict, abar, value, known), noise, abar, generator=torch.Generator().manual_seed(0)),
        "ddim": lambda: sample_ddim(continuation.known_noise(predict, abar, value, known), noise, abar, n_steps=7),
        "euler": lambda: sample_flow(continuation.known_velocity(predict, noise, value, known), noise, n_steps=6, solver="euler"),
        "midpoint": lambda: sample_flow(continuation.known_velocity(predict, noise, value, known), noise, n_steps=6, solver="midpoint"),
        "heun": lambda: sample_flow(continuation.known_velocity(predict, noise, value, known), noise, n_steps=6, solver="heun"),
    }
    for name, run in runs.items():
        seen.clear()
        out = run()
        torch.testing.assert_close(out[known], value[known], atol=2e-4, rtol=1e-4)
        if name in ("euler", "midpoint", "heun"):
            for level, x in seen:
                torch.testing.assert_close(x, (level * noise + (1 - level) * value)[known], atol=1e-5, rtol=1e-4)


# Token decoders


def tokenizer(layout="per_lead", n_leads=1):
    return train(list(waves(6, n_leads)), 30, quantizer=RecordMinMax(), layout=layout, mode="bpe")


class Oracle(torch.nn.Module):
    """A decoder that knows the one line of ids which follows bos, whatever it is asked."""

    def __init__(self, line, n_ids):
        super().__init__()
        self.line, self.cfg = torch.as_tensor(line), SimpleNamespace(n_positions=4096, n_ids=n_ids)

    def _logits(self, place):
        return torch.nn.functional.one_hot(self.line[min(place, len(self.line) - 1)], self.cfg.n_ids).float()[None]

    def prefill(self, ids_BN, n_positions, valid_BN=None):
        self.place = ids_BN.shape[1] - 1
        return self._logits(self.place), None

    def extend(self, ids_B, memory):
        self.place += 1
        return self._logits(self.place)


@pytest.mark.parametrize(("layout", "n_leads"), [("per_lead", 1), ("interleaved", 2), ("per_lead", 2), ("lead_major", 1)])
def test_a_decoder_that_knows_the_future_forecasts_it_to_half_a_level(layout, n_leads):
    tok, x = tokenizer(layout, n_leads), waves(1, n_leads)
    x[:, :, 320:] = x[:, :, 100:180]  # inside the context's range
    context = tok.encode(x[0, :, :320])
    if n_leads == 2 and layout == "per_lead":
        parts = [[tok.encode(x[0, :, a:b], scale=context.scale).ids] for a, b in ((0, 320), (320, 400))]
        split = lambda ids, n: np.split(ids, [int(np.searchsorted(tok.lengths(ids).cumsum(), n)) + 1])  # noqa: E731
        (before, after) = (split(parts[0][0], 320), split(parts[1][0], 80))
        line = np.concatenate([before[0], after[0], before[1], after[1]])
    else:
        line = np.concatenate([context.ids, tok.encode(x[0, :, 320:], scale=context.scale).ids])
    net = network(Oracle(line.astype(np.int64), tok.n_tokens), Autoregressive(), "tokens", n_leads, tok)
    said = continuation.forecast_by_tokens(net, x, 320, Sampling())
    assert np.abs(said.forecast_BCH - x[:, :, 320:]).max() <= float(context.scale.span.max()) / 26 / 2 * 1.001
    assert said.n_held_B.tolist() == [0]
    if layout == "interleaved" or n_leads == 1:
        assert said.ids[0].tolist() == said.true_ids[0].tolist()


def test_the_future_changes_neither_prompt_nor_range():
    tok, x = tokenizer(), waves(2)
    cfg = TokenDecoderConfig.preset("tiny", n_ids=tok.n_tokens, n_positions=600, n_channels=1, n_samples=T, pad_id=tok.special_id("pad"))
    net = network(lively(cfg.build()), Autoregressive(), "tokens", 1, tok)
    other = x.copy()
    other[:, :, 360:] *= 40
    a, b = (continuation.forecast_by_tokens(net, v, 360, Sampling()).forecast_BCH for v in (x, other))
    np.testing.assert_array_equal(a, b)
    assert a.shape == (2, 1, 40) and np.isfinite(a).all()
    short = network(
        lively(TokenDecoderConfig.preset("tiny", n_ids=tok.n_tokens, n_positions=48, n_channels=1, n_samples=T).build()), Autoregressive(), "tokens", 1, tok
    )
    x[:, :, :30] = np.linspace(-1, 1, 30)
    held = continuation.forecast_by_tokens(short, x[:, :, :130], 30, Sampling())
    assert (held.n_held_B > 0).any() and np.isfinite(held.forecast_BCH).all()


def test_lead_major_tokens_of_several_leads_are_refused_with_the_reason():
    tok = tokenizer("lead_major", 2)
    with pytest.raises(ValueError, match="another lead and no later time"):
        continuation.unit_of_mask(network(Oracle([0], tok.n_tokens), Autoregressive(), "tokens", 2, tok))


# The apps


def test_forecast_scores_every_window_beside_the_baselines_and_writes_what_it_says(folder, store):
    path = saved(folder, "himae", HiMaeConfig.preset("tiny", n_samples=T))
    done = forecast.main(["--ckpt", str(path), "--data", str(store.path), "--ratio", "0.25", "--out", str(folder / "f")])
    rows = store.rows("test")
    assert done["windows"] == len(rows) and done["horizon_s"] == 1.0
    table = json.loads((folder / "f/table.json").read_text())
    assert set(table["rows"]) == {"himae", "persistence", "mean", "seasonal naive", "linear trend", "AR"}
    x = store.batch(rows)["signal"].astype(np.float64)
    want = np.abs(x[:, :, 300:] - x[:, :, 299:300]).mean()
    assert table["rows"]["persistence"]["MAE"]["value"] == pytest.approx(want, rel=1e-6)
    with (folder / "f/predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * len(rows) and float(lines[0]["x_300"]) == pytest.approx(x[0, 0, 300], abs=1e-4)
    assert (folder / "f/figures/forecast.png").stat().st_size > 10_000
    few = forecast.main(["--ckpt", str(path), "--data", str(store.path), "--ratio", "0.25", "--max-windows", "2", "--out", str(folder / "few")])
    assert few["windows"] == 2 and f"{len(rows) - 2} of {len(rows)} windows are left out" in (folder / "few/table.md").read_text()


@pytest.fixture(scope="module")
def nameless(folder):
    """A series archive's store, which names nobody, and an untrained network that says it saw the train file's recordings."""
    rng = np.random.default_rng(0)
    (folder / "Bumps").mkdir()
    for fold, n in (("TRAIN", 30), ("TEST", 24)):
        lines = np.column_stack([np.arange(n) % 3 + 1, rng.normal(size=(n, 60))])
        np.savetxt(folder / "Bumps" / f"Bumps_{fold}.tsv", lines, delimiter="\t", fmt=["%d"] + ["%.6f"] * 60)
    prepare.main(["ucr", "--root", str(folder / "Bumps"), "--split", "official", "--out", str(folder / "nameless")])
    store = Store(folder / "nameless")
    cfg = HiMaeConfig(n_channels=1, n_samples=60, widths=(4, 8))
    own = compose.contract_of(encoders.untrained_config(cfg, "none"), store)
    save_pretrained(folder / "series_net", cfg.build().eval(), cfg, own, seen=compose.seen_of(store, store.rows("train")))
    return store, folder / "series_net"


@pytest.mark.parametrize(("fold", "n", "heading"), [("test", 24, "inductive by recording, subjects unknown"), ("train", 30, "transductive")])
def test_windows_of_nobody_named_are_headed_and_counted_by_recording(folder, nameless, fold, n, heading, capsys):
    store, ckpt = nameless
    base = ["--ckpt", str(ckpt), "--data", str(store.path), "--use", fold, "--objective", "masked_reconstruction"]
    out = folder / f"nameless-{fold}"
    runs = {
        out / "forecast": lambda to: forecast.main([*base, "--ratio", "0.25", "--out", str(to)]),
        out / "gaps" / "trailing": lambda to: imputation.main([*base, "--kinds", "trailing", "--out", str(to.parent)]),
        out / "back" / "level_0.5": lambda to: reconstruction.main([*base, "--levels", "0.5", "--out", str(to.parent)]),
    }
    for to, run in runs.items():
        assert run(to)["windows"] == n
        said = json.loads((to / "table.json").read_text())
        assert said["title"].endswith(f", {heading}") and (said["n_subjects"], said["n_clusters"], said["clusters"]) == (None, n, "records")
        assert f"{n} windows, {n} records" in (to / "table.md").read_text()
        with (to / "windows.csv").open(newline="") as file:
            assert {line["subject"] for line in csv.DictReader(file)} == {""}


def test_imputation_and_reconstruction_score_every_kind_and_level(folder, store):
    flags = ["--ckpt", str(dit(folder)), "--objective", "rectified_flow", "--data", str(store.path), "--max-windows", "4", "--sampling.steps", "2"]
    done = imputation.main([*flags, "--out", str(folder / "i")])
    assert set(done["MAE"]) == {"random", "contiguous", "trailing"} and set(done["MAE"]["random"]) == {"dit", "linear", "spline", "AR"}
    assert (folder / "i/contiguous/figures/gaps.png").exists() and (folder / "i/distances.csv").read_text().count("trailing,dit") == 6
    done = reconstruction.main([*flags, "--levels", "0.2", "0.8", "--out", str(folder / "r")])
    noised = [done["levels"][v]["noised, scaled"]["PSNR dB"] for v in ("0.2", "0.8")]
    assert noised[0] > noised[1] and (folder / "r/figures/ssim.png").exists()


def test_where_a_network_errs_less_than_plain_methods_is_said():
    bins = lambda *mae: [{"from": k, "to": k + 5, "n": 0 if m is None else 9, "mae": np.nan if m is None else m} for k, m in zip((1, 5, 10), mae, strict=True)]  # noqa: E731
    plain = {"linear": bins(0.1, 0.3, None), "AR": bins(0.2, 0.2, None)}
    say = lambda *mae: imputation.verdict({"net": bins(*mae)} | plain, "net", ("linear", "AR"), 100.0)  # noqa: E731
    assert "nowhere below" in say(0.1, 0.25, None) and "every plain method at every distance" in say(0.05, 0.1, None)
    assert "at distances from 0.05 s, and not at the other 1" in say(0.15, 0.1, None)


def test_one_step_of_an_untrained_denoiser_is_the_formula(folder):
    net = continuation.opened(dit(folder), "rectified_flow")
    x = waves(2)
    clean, _ = reconstruction.denoised(net, x, 0.4, seed=5)
    z = (x - x.mean(axis=2, keepdims=True)) / (x.std(axis=2, keepdims=True) + 1e-6)
    noised = 0.6 * z + 0.4 * torch.randn(2, 1, T, generator=torch.Generator().manual_seed(5)).numpy()  # its velocity is 0 before training
    np.testing.assert_allclose(clean, noised * (x.std(axis=2, keepdims=True) + 1e-6) + x.mean(axis=2, keepdims=True), atol=1e-5)


def test_generate_compares_with_real_windows_beside_floors(folder, store, capsys):
    flags = ["--ckpt", str(dit(folder)), "--objective", "rectified_flow", "--data", str(store.path), "--sampling.steps", "2", "--use", "test+val"]
    done = generate.main([*flags, "-n", "6", "--out", str(folder / "g")])
    assert set(done["distances"]) == {"generated", "real, other half", "noise of the same spectrum", "white noise"}
    assert done["distances"]["real, other half"]["FID"] < done["distances"]["white noise"]["FID"]
    file = np.load(folder / "g/generated.npz")
    assert file["signal"].shape == (6, 1, T) and str(file["unit"]) == "mV"
    assert "KS rate_bpm" in capsys.readouterr().out and (folder / "g/figures/generated.png").exists()
    judge = saved(folder, "himae", HiMaeConfig.preset("tiny", n_samples=T))
    assert generate.main([*flags, "-n", "4", "--features", str(judge)])["features"] == str(judge)
    with pytest.raises(ValueError, match="the model under test itself"):
        generate.main([*flags, "-n", "4", "--features", str(dit(folder))])


CONDITIONS = {  # what the network is told of four windows, and of the same four again something else
    "class": (torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 0, 2])),
    "text": (torch.randn(4, 12, generator=torch.Generator().manual_seed(1)), torch.randn(4, 12, generator=torch.Generator().manual_seed(2))),
    "lead": (waves(4, 2, seed=1), waves(4, 2, seed=2)),
}


@pytest.mark.parametrize("kind", CONDITIONS)
def test_a_condition_changes_the_sample_and_one_that_is_withheld_does_not(kind, monkeypatch):
    model = lively(DitConfig.preset("tiny", n_channels=2, n_samples=T, patch=20, condition=kind, n_classes=3).build())
    net = network(model, RectifiedFlow(), "denoiser", 2)
    told, rows = {}, np.arange(4)
    monkeypatch.setattr(continuation, "physical", lambda encoder, store, rows: told.get("lead", waves(4, 2)))
    column = {"class": "label", "text": "text_emb"}.get(kind)
    monkeypatch.setattr(generate.extras, "columns", lambda needs, store, **more: {} if column is None else {column: lambda rows: told[kind].numpy()})

    def sample(value, guidance=1.0):
        told[kind] = value
        app = generate.Generate(ckpt=Path("-"), n=4, sampling=Sampling(steps=3), guidance=guidance)
        return generate.by_denoiser(app, net, None, rows, 4, seed=3)[0]

    one, other = (sample(value) for value in CONDITIONS[kind])
    c = 0 if kind == "lead" else slice(None)  # the lead itself is given, so it differs anyway
    assert np.isfinite(one).all() and np.abs(one[:, c] - other[:, c]).max() > 1e-3
    np.testing.assert_array_equal(one, sample(CONDITIONS[kind][0]))
    if kind == "lead":
        np.testing.assert_allclose(one[:, 1], CONDITIONS[kind][0][:, 1], atol=1e-5)
    # guidance 0 is the network without the condition, whatever it was told; guidance 1 twice as costly and the same
    scale = normalize(torch.as_tensor(told.get("lead", waves(4, 2)), dtype=torch.float32), "instance_zscore", None, None)[1]
    noise = torch.randn(4, len(model.cfg.generated), T, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        free = continuation.sampled(RectifiedFlow(), lambda x, level: model(x, level), noise, Sampling(steps=3), torch.Generator())
    whole = torch.zeros(4, 2, T)
    whole[:, list(model.cfg.generated)] = free
    np.testing.assert_allclose(sample(CONDITIONS[kind][0], 0.0)[:, c], scale.restore(whole).numpy()[:, c], atol=1e-4)
    with torch.no_grad():
        np.testing.assert_allclose(sample(CONDITIONS[kind][0], 1 + 1e-7), one, atol=1e-4)


def test_labels_are_asked_by_number_and_unknown_ones_refused(folder, store):
    (folder / "classes").mkdir()
    path = saved(folder / "classes", "dit", DitConfig.preset("tiny", n_channels=1, n_samples=T, patch=20, condition="class", n_classes=2))
    flags = ["--ckpt", str(path), "--objective", "rectified_flow", "-n", "3", "--sampling.steps", "2"]
    assert generate.main([*flags, "--label", "1"])["n"] == 3
    assert generate.main([*flags, "--data", str(store.path), "--task", "pvc", "--dry-run"])["unit"] == "mV"
    for wrong, text in ((["--label", "2"], "has condition 'class' and 2 classes"), ([], "name a store with --data")):
        with pytest.raises(ValueError, match=text):
            generate.main([*flags, *wrong])
    plain = ["--ckpt", str(dit(folder)), "--objective", "rectified_flow", "-n", "2"]
    for wrong, text in ((["--label", "0"], "has condition 'none'"), (["--guidance", "3"], "this network has none")):
        with pytest.raises(ValueError, match=text):
            generate.main([*plain, *wrong])


@pytest.mark.parametrize(
    ("app", "flags", "text"),
    [
        (forecast, ["--ratio", "1.5"], "--ratio must lie"),
        (forecast, ["--ratio", "0.5", "--use", "nowhere"], "nowhere"),
        (imputation, ["--ratio", "0"], "ratio must lie"),
        (reconstruction, ["--levels", "0", "1"], "--levels must lie"),
        (generate, ["-n", "4"], "generates nothing"),
    ],
)
def test_what_cannot_be_asked_is_named(folder, store, app, flags, text):
    path = saved(folder, "himae", HiMaeConfig.preset("tiny", n_samples=T))
    with pytest.raises(ValueError, match=text):
        app.main(["--ckpt", str(path), "--data", str(store.path), *flags])


def test_networks_that_give_no_signal_and_stores_that_do_not_fit_are_refused(folder, store):
    with pytest.raises(ValueError, match="name it with --objective: ddpm, rectified_flow"):
        continuation.opened(dit(folder))
    with pytest.raises(ValueError, match="norm_pix off"):
        continuation.unit_of_mask(network(HiMaeConfig.preset("tiny", n_samples=T).build(), MaskedReconstruction(patch=20, norm_pix=True), "masked"))
    lead = network(DitConfig.preset("tiny", n_channels=2, n_samples=T, patch=20, condition="lead").build(), Ddpm(), "denoiser", 2)
    with pytest.raises(ValueError, match="what is to be said included"):
        continuation.unit_of_mask(lead)
    path = folder / "two"
    config = HiMaeConfig.preset("tiny", n_samples=T, n_channels=2)
    save_pretrained(path, build_untrained("himae", config), config, contract(2), seen=None)
    with pytest.raises(ContractError, match="misses B"):
        forecast.main(["--ckpt", str(path), "--data", str(store.path), "--ratio", "0.25"])
