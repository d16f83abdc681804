import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from physio_models.card import Data, ModelCard, Score, markdown
from physio_models.contract import InputContract
from physio_models.himae import HiMaeConfig
from physio_models.hub import FILES, download, parse, upload
from physio_models.pretrained import build_untrained, from_pretrained, model_document, save_pretrained

CONFIG = HiMaeConfig(n_samples=50, widths=(4, 8))
CONTRACT = InputContract(channels=("PPG",), units=("a.u.",), fs=25.0, window_s=2.0, band=(0.5, 8.0), kind="ppg", length_free=True)
SCORES = (
    Score(row="pretrained", task="pvc", metric="AUROC", value=0.91, low=0.88, high=0.93),
    Score(row="twin", task="pvc", metric="AUROC", value=0.84, low=0.8, high=0.87),
    Score(row="handcrafted", task="pvc", metric="AUROC", value=0.86),
)
CARD = ModelCard(
    licence="Apache-2.0",
    summary="HiMAE on generated PPG.",
    data=(Data(name="synthetic", licence="generated", n_subjects=400),),
    scores=SCORES,
    heading="inductive",
)


class Server:
    """What the Hub's library does, on a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, []

    def snapshot_download(self, repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.calls.append((repo_id, revision, tuple(allow_patterns)))
        return str(self.folder / repo_id)

    def HfApi(self) -> SimpleNamespace:
        return SimpleNamespace(create_repo=self.create_repo, upload_folder=self.upload_folder)

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append((repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: str, allow_patterns: list[str], revision: str | None, commit_message: str) -> str:
        for name in allow_patterns:
            if (Path(folder_path) / name).exists():
                (self.folder / repo_id).mkdir(parents=True, exist_ok=True)
                shutil.copy(Path(folder_path) / name, self.folder / repo_id / name)
        return f"https://hub/{repo_id}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", server)
    return server


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_pretrained(tmp_path / "saved", build_untrained("himae", CONFIG), CONFIG, CONTRACT, {"stores": ["ab"], "subjects": ["s1", "s2"]}, card=CARD)


def test_a_model_goes_up_and_comes_down_whole(server: Server, saved: Path):
    (saved / "training.pkl").write_bytes(b"not ours")
    assert upload(saved, "hf:someone/himae") == "https://hub/someone/himae"
    assert server.calls == [("someone/himae", True, True)], "private unless told otherwise"
    assert sorted(path.name for path in (server.folder / "someone/himae").iterdir()) == sorted(FILES)
    encoder = from_pretrained("hf:someone/himae@v1.0")
    assert server.calls[-1] == ("someone/himae", "v1.0", FILES)
    assert encoder.source == "hf:someone/himae@v1.0" and encoder.seen == {"stores": ["ab"], "subjects": ["s1", "s2"]}
    own, given = encoder.model.state_dict(), from_pretrained(saved).model.state_dict()
    assert all(torch.equal(own[key], given[key]) for key in given)


def test_weights_exchanged_on_the_way_do_not_give_the_fingerprint(server: Server, saved: Path):
    upload(saved, "hf:someone/himae")
    file = server.folder / "someone/himae/model.safetensors"
    weights = load_file(file)
    weights["encoder_layers.1.main_path.0.weight"] *= 1.1
    save_file(weights, file)
    with pytest.raises(ValueError, match="fingerprint"):
        from_pretrained("hf:someone/himae")
    shutil.copy(file, saved / "model.safetensors")
    with pytest.raises(ValueError, match="fingerprint"):
        upload(saved, "hf:someone/himae")


def test_weights_do_not_travel_without_a_card(server: Server, tmp_path: Path):
    bare = save_pretrained(tmp_path / "bare", build_untrained("himae", CONFIG), CONFIG, CONTRACT)
    assert not (bare / "README.md").exists()
    with pytest.raises(ValueError, match="has no model card"):
        upload(bare, "hf:someone/himae")
    assert server.calls == []


def test_a_missing_extra_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: from_pretrained("hf:someone/himae"), lambda: upload(saved, "hf:someone/himae"), lambda: download("hf:a/b")):
        with pytest.raises(ImportError, match=r"physio-models\[hub\]"):
            call()


@pytest.mark.parametrize("name", ["hf:himae", "hf:", "hf:a/b/c", "hf:a/b@", "a/b"])
def test_what_is_no_id_is_refused(name: str):
    with pytest.raises(ValueError, match="write hf:owner/name"):
        parse(name)


def test_a_path_is_never_taken_for_an_id(server: Server):
    with pytest.raises(ValueError, match="is no folder"):
        from_pretrained("someone/himae")
    assert server.calls == []


# The card


def test_a_card_says_what_goes_in_what_was_read_and_how_well_it_does(saved: Path):
    text = (saved / "README.md").read_text()
    front = text.split("---")[1]
    assert 'license: "Apache-2.0"' in front and '"ppg"' in front
    for line in (
        "| channels | PPG (a.u.) |",
        "| rate | 25 Hz |",
        "| window | 2 s, or any other |",
        "| band | 0.5-8 Hz |",
        "| synthetic | generated | 400 |",
        "`seen.json` lists the 2 subjects and 1 stores",
        "## Scores (inductive: pretraining saw no window of a test subject)",
        "| pvc | AUROC | pretrained | 0.910 | 0.880 to 0.930 |",
        "| pvc | AUROC | twin | 0.840 | 0.800 to 0.870 |",
        "commercial use not established",
        '"name": "himae"',
    ):
        assert line in text, line


def test_a_score_needs_a_floor():
    with pytest.raises(ValueError, match=r"scores of pvc \(AUROC\) have no floor"):
        replace(CARD, scores=SCORES[:1])
    with pytest.raises(ValueError, match=r"scores of pvc \(F1\) have no floor"):
        replace(CARD, scores=(*SCORES, replace(SCORES[0], metric="F1")))
    assert "## Scores" not in markdown(replace(CARD, scores=()), model_document(CONFIG), CONTRACT)


@pytest.mark.parametrize("bad", [{"licence": " "}, {"summary": ""}, {"data": ()}, {"heading": ""}])
def test_a_card_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        replace(CARD, **bad)


@pytest.mark.parametrize("bad", [{"value": float("nan")}, {"low": None}, {"value": 0.95}])
def test_a_score_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        replace(SCORES[0], **bad)
