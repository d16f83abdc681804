"""Networks that read tokens, from the command line: the tokenizer goes with the run, and the wrong one is refused."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import compose
import downstream
import embed
import evaluate
import finetune
import prepare
import pretrain
import probe
import tokens
from encoders import Origin
from physio_bpe import load, save, train
from physio_data.store import Store
from physio_models.contract import ContractError
from physio_models.pretrained import from_pretrained
from physio_train import readouts
from physio_train.features import open_features

SMALL = ["ecg_byte_decoder", "--size", "tiny", "--fit.n-steps", "6", "--fit.batch-size", "8", "--fit.checkpoint-every", "3", "--fit.validate-every", "3"]
SMALL += ["--model.width", "16", "--tokens.merges", "40", "--tokens.windows", "12", "--fit.precision", "fp32", "--no-table"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def store(folder):
    flags = ["--fs", "50", "--window-s", "4", "--band", "0.5,20", "--leads", "ECG", "--option", "signal", "ecg", "n_subjects", "16", "minutes", "0.4"]
    prepare.main(["synthetic", "--out", str(folder / "store"), *flags])
    return Store(folder / "store")


@pytest.fixture(scope="module")
def run(folder, store):
    out = folder / "run"
    pretrain.main([*SMALL, "--data", str(store.path), "--out", str(out)])
    return out


def state(step):
    return {name: {key: value.tobytes() for key, value in load_file(step / name).items()} for name in ("model.safetensors", "state.safetensors")}


def without(run, step):
    """A run as a kill after an earlier step left it."""
    shutil.rmtree(run / f"checkpoints/step_{step}")
    (run / "best.json").unlink()
    return run


def test_the_tokenizer_goes_with_the_run_and_its_hash_into_the_contract(run, store):
    tokenizer = load(run / "physio_bpe.json")
    config = json.loads((run / "config.json").read_text())
    assert json.loads((run / "contract.json").read_text())["vocabulary"] == tokenizer.vocabulary_hash == config["tokens"]["vocabulary"]
    assert config["model"]["config"]["n_ids"] == tokenizer.n_tokens == 256 + 40 + 3
    assert config["model"]["config"]["pad_id"] == tokenizer.special_id("pad")
    assert config["tokens"]["file"] == ""
    rows = compose.rows_of(store, ("train",))
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:12])
    assert tokenizer == train(store.batch(rows)["signal"], 40), "it is trained on windows of the training fold alone"


def test_a_resumed_run_ends_with_the_bytes_of_one_never_interrupted(run, folder, store):
    cut = shutil.copytree(run, folder / "cut")
    pretrain.main(["--resume", str(without(cut, 6)), "--no-table"])
    assert state(cut / "checkpoints/step_6") == state(run / "checkpoints/step_6")


@pytest.mark.slow
def test_a_config_repeats_a_run_with_its_tokenizer(run, folder, store):
    pretrain.main(["--config", str(run / "config.json"), "--no-table", "--out", str(folder / "again")])
    assert state(folder / "again/checkpoints/step_6") == state(run / "checkpoints/step_6")
    assert (folder / "again/physio_bpe.json").read_bytes() == (run / "physio_bpe.json").read_bytes()


def test_a_batch_has_the_windows_own_tokens_and_says_which_are_real(run, store):
    tokenizer = load(run / "physio_bpe.json")
    cfg = tokens.located(pretrain.saved_config(run / "config.json")[0], run)
    made = compose.parts(cfg, store, store.rows(), np.zeros(0, np.int64), tokenizer=tokenizer)
    batch = next(made.batches)
    assert batch["tokens"].dtype == torch.int64 and batch["tokens"].shape == batch["valid"].shape
    for i, x_CT in enumerate(batch["signal"].numpy()):  # normalisation is none, so these are the samples that were tokenised
        ids = [tokenizer.special_id("bos"), *tokenizer.encode(x_CT).ids.tolist(), tokenizer.special_id("eos")]
        assert batch["tokens"][i][batch["valid"][i]].tolist() == ids
        assert (batch["tokens"][i][~batch["valid"][i]] == tokenizer.special_id("pad")).all()


def test_an_encoder_read_back_tokenises_by_itself(run, store):
    encoder = Origin(path=str(run)).open(store)
    tokenizer, spec = load(run / "physio_bpe.json"), compose.spec_of(store)
    x_BCT = store.batch([0, 5])["signal"]
    pooled_BD = encoder(x_BCT, spec).pooled_BD
    for x_CT, pooled_D in zip(x_BCT, pooled_BD, strict=True):
        ids_1N = torch.tensor([[tokenizer.special_id("bos"), *tokenizer.encode(x_CT).ids.tolist(), tokenizer.special_id("eos")]])
        torch.testing.assert_close(encoder.model.encode(ids_1N).pooled_BD[0], pooled_D, rtol=1e-4, atol=1e-5)
    flipped = replace(spec, units=("uV",))
    torch.testing.assert_close(encoder(x_BCT * 1000, flipped).pooled_BD, pooled_BD, rtol=1e-3, atol=1e-3)


def test_embedding_and_probing_a_token_run(run, store, folder):
    embed.main(["--ckpt", str(run), "--data", str(store.path), "--out", str(folder / "features"), "--precision", "fp32", "--batch-size", "16"])
    found = open_features(folder / "features")
    direct = Origin(path=str(run)).open(store)(store.batch(store.rows())["signal"], compose.spec_of(store)).pooled_BD
    np.testing.assert_allclose(found.z, direct.numpy(), rtol=1e-3, atol=1e-4)
    assert found.meta["contract"]["vocabulary"] == load(run / "physio_bpe.json").vocabulary_hash
    with pytest.raises(ValueError, match="tokens have no common shape"):
        embed.main(["--ckpt", str(run), "--data", str(store.path), "--out", str(folder / "g"), "--pool", "tokens"])
    ask = ["--data", str(store.path), "--task", "pvc", "--use", "train=train+val,test=test", "--twins", "1", "--jobs", "1"]
    summary = probe.main(["--ckpt", str(run), *ask, "--out", str(folder / "probe")])
    assert {"pretrained", "twin"} <= summary["AUROC"].keys()
    assert load(folder / "probe/physio_bpe.json") == load(run / "physio_bpe.json")
    again = probe.main(["--ckpt", str(folder / "probe"), *ask])
    assert again["AUROC"]["pretrained"] == summary["AUROC"]["pretrained"]


def test_a_finetuned_token_run_takes_its_tokenizer_along(run, store, folder, monkeypatch):
    monkeypatch.setattr(readouts, "N_TREES", 5)
    monkeypatch.setattr(readouts, "N_ROUNDS", 3)
    quick = ["--n-epochs", "1", "--max-steps", "2", "--twins", "1", "--jobs", "1", "--no-scratch", "--no-frozen"]
    out = folder / "tuned"
    finetune.main(["--ckpt", str(run), "--data", str(store.path), "--task", "pvc", "--out", str(out), *quick])
    assert (out / tokens.FILE).read_bytes() == (run / tokens.FILE).read_bytes()
    saved, encoder = downstream.load(out), tokens.attached(from_pretrained(out))
    rows_N = np.arange(5)
    ids_BN, real_BN = encoder.tokenize(torch.from_numpy(store.batch(rows_N)["signal"]))
    net = encoder.model.eval()
    tokens_BND = net.encode(ids_BN, valid_BT=real_BN).levels
    head = load_file(out / "head.safetensors")
    z_BF = []
    for x_BND in tokens_BND.values():  # by hand: moments over real tokens, normalised, one linear layer, a softmax
        moments = []
        for x_ND, real_N in zip(x_BND.detach().double().numpy(), real_BN.numpy(), strict=True):
            x_ND = x_ND[real_N]
            moments.append(np.concatenate([x_ND.mean(0), x_ND.max(0), np.sqrt(x_ND.var(0) + 1e-8)]))
        z_BF.append(np.stack(moments))
    z_BF = np.concatenate(z_BF, axis=1)
    z_BF = (z_BF - z_BF.mean(1, keepdims=True)) / np.sqrt(z_BF.var(1, keepdims=True) + 1e-5) * head["norm.weight"] + head["norm.bias"]
    logit_B2 = z_BF @ head["classify.weight"].T + head["classify.bias"]
    expected = 1 / (1 + np.exp(logit_B2[:, 0] - logit_B2[:, 1]))
    assert downstream.predict(saved, store, rows_N)[:, 0] == pytest.approx(expected, abs=1e-5)
    summary = evaluate.main(["--ckpt", str(out), "--data", str(store.path), "--predictions", str(folder / "p.csv")])
    assert summary["windows"] == len(store)
    (out / tokens.FILE).unlink()
    with pytest.raises(ContractError, match=r"physio_bpe\.json"):
        downstream.load(out)


@pytest.mark.slow
def test_the_signal_head_trains_with_the_decoder_or_on_one_that_is_frozen(run, folder, store):
    flags = [*SMALL, "--data", str(store.path), "--model.head-depth", "1", "--normalization", "lead_zscore", "--tokenizer", str(run / "physio_bpe.json")]
    pretrain.main([*flags, "--out", str(folder / "joint")])
    lines = [json.loads(line) for line in (folder / "joint/metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["val_flow"]) and np.isfinite(line["val_ce"]) for line in lines if "val_flow" in line)
    pretrain.main([*flags, "--out", str(folder / "frozen"), "--weights", str(run), "--model.freeze-decoder"])
    before, after = from_pretrained(run).model.state_dict(), from_pretrained(folder / "frozen").model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    fresh = compose.build_model(pretrain.saved_config(folder / "frozen/config.json")[0], 0)
    assert any(not torch.equal(after[key], value) for key, value in fresh.state_dict().items() if key.startswith("head."))
    with pytest.raises(ValueError, match=r"does not fit the model; unexpected: head"):
        compose.started(from_pretrained(run).model, str(folder / "joint"))


def test_another_tokenizer_than_the_runs_is_refused(run, folder, store):
    save(train(store.batch(store.rows())["signal"], 40), folder / "other.json")
    cut = without(shutil.copytree(run, folder / "wrong"), 6)
    with pytest.raises(ValueError, match=r"other.json has the vocabulary [0-9a-f]{12}, the network was made for"):
        pretrain.main(["--resume", str(cut), "--no-table", "--tokenizer", str(folder / "other.json")])
    shutil.copy(folder / "other.json", cut / "physio_bpe.json")
    with pytest.raises(ValueError, match="the network was made for"):
        pretrain.main(["--resume", str(cut), "--no-table"])
    with pytest.raises(ContractError, match=r"physio_bpe.json has the vocabulary .* the network was trained with"):
        Origin(path=str(cut)).open(store)


def test_a_missing_tokenizer_is_named(run, folder, store):
    bare = shutil.copytree(run, folder / "bare")
    (bare / "physio_bpe.json").unlink()
    with pytest.raises(ValueError, match=r"bare lacks physio_bpe.json"):
        pretrain.main(["--resume", str(bare), "--no-table"])
    with pytest.raises(ContractError, match=r"has no physio_bpe.json"):
        Origin(path=str(bare)).open(store)
    with pytest.raises(ContractError, match="came without its tokenizer"):
        from_pretrained(bare)(store.batch([0])["signal"], compose.spec_of(store))
    with pytest.raises(ValueError, match="token_decoder reads tokens: name a tokenizer"):
        embed.main(["--model", "token_decoder", "--size", "tiny", "--data", str(store.path), "--out", str(folder / "h")])
    with pytest.raises(ValueError, match=r"nothing.json is no file"):
        pretrain.main([*SMALL, "--data", str(store.path), "--out", str(folder / "i"), "--tokenizer", "nothing.json"])


def test_an_order_of_leads_that_the_network_does_not_read_is_refused(run):
    needs_leads = SimpleNamespace(token_layout="per_lead")
    with pytest.raises(ValueError, match=r"layout per_lead, the tokenizer has layout lead_major: train one with train_tokenizer.py --layout per_lead"):
        tokens.check(needs_leads, load(run / "physio_bpe.json"))


def test_a_representation_that_the_network_does_not_read_is_refused():
    with pytest.raises(ValueError, match=r"'himae' reads signals; choose one of token_decoder with --model"):
        pretrain.parse(["himae_ppg", "--representation", "tokens"])
    with pytest.raises(ValueError, match="'token_decoder' reads tokens; choose one of himae"):
        pretrain.parse(["ecg_byte_decoder", "--representation", "signal"])
    assert pretrain.parse(["ecg_byte_decoder", "--representation", "tokens"]).cfg.tokens.merges == 1000


def test_short_tails_and_absent_leads_are_left_out_before_tokenising(store):
    tokenizer = train(store.batch(store.rows())["signal"], 20)
    x_BCT = torch.randn(3, 2, 60, generator=torch.Generator().manual_seed(0))
    valid_BT = torch.arange(60) < torch.tensor([60, 37, 60])[:, None]
    present_BC = torch.tensor([[True, True], [True, True], [False, True]])
    for present, expected in ((None, x_BCT[2]), (present_BC, x_BCT[2, 1:])):
        ids_BN, real_BN = tokens.Tokenize(tokenizer, 1000)(x_BCT, valid_BT, present)
        whole = [x_BCT[0], x_BCT[1, :, :37], expected]
        for i, x_CT in enumerate(whole):
            assert ids_BN[i][real_BN[i]].tolist()[1:-1] == tokenizer.encode(x_CT.numpy()).ids.tolist()
    assert tokens.Tokenize(tokenizer, 10)(x_BCT)[0].shape == (3, 10)


@pytest.mark.slow
def test_inside_an_outer_fold_the_tokenizer_is_trained_on_its_own_subjects(run, folder, store):
    ask = ["--data", str(store.path), "--task", "pvc", "--twins", "0", "--jobs", "1", "--folds", "2", "--cv-pretrain", "--out", str(folder / "cv")]
    probe.main(["--ckpt", str(run), *ask])
    hashes = {load(path).vocabulary_hash for path in (folder / "cv/encoders").glob("*/physio_bpe.json")}
    assert len(hashes) == 2 and load(run / "physio_bpe.json").vocabulary_hash not in hashes
