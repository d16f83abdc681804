"""What batches carry beside the signal."""

import numpy as np
import pytest
import torch

import compose
import encoders
import extras
from physio_models.objectives.papagei import PapageiMorphology
from physio_train import Streams


class Rows:
    """A store of six windows in memory."""

    fs = 125.0

    def __init__(self, **columns) -> None:
        self.tasks = {"pvc": {}}
        self.index = {"subject": np.array(["a", "a", "b", "b", "c", "c"]), "label/pvc": np.arange(6) % 2, **columns}
        t_T = np.arange(1250) / 125 + 0.3
        self.signal_NCT = np.stack([np.exp(6 * (np.cos(2 * np.pi * (1.1 + 0.05 * i) * t_T) - 1)) for i in range(6)])[:, None].astype(np.float32)

    def __len__(self) -> int:
        return 6

    def batch(self, rows):
        return {"signal": self.signal_NCT[rows], "index": np.asarray(rows)}

    def label(self, task):
        return self.index[f"label/{task}"]


def made(needs, store=None, **options):
    store = store or Rows()
    return extras.Carrying(store, extras.columns(needs, store, **{"task": None, "language_model": "", **options}))


def test_batches_carry_what_is_asked_for_by_row():
    batch = made(("subject", "label")).batch(np.array([5, 0, 3]))
    assert batch["subject"].tolist() == ["c", "a", "b"] and batch["label"].tolist() == [1, 0, 1] and batch["index"].tolist() == [5, 0, 3]
    assert set(made(()).batch(np.array([1]))) == {"signal", "index"}
    assert len(made(())) == 6


def test_reports_become_vectors_once_a_distinct_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    class Embedder:
        def __init__(self, name, *, cache):
            self.saved, self.cache = 0, cache

        def __len__(self):
            return self.saved

        def __call__(self, reports):
            asked.extend(reports)
            self.saved = len(reports)
            return torch.tensor([[float(len(report))] for report in reports])

        def save(self):
            self.cache.parent.mkdir()
            self.cache.touch()

    monkeypatch.setattr("physio_models.text.ReportEmbedder", Embedder)
    store = Rows(text=np.array(["sinus", "sinus", "af", "sinus", "", "af"]))
    batch = made(("text_emb",), store, language_model="owner/name").batch(np.array([2, 0, 4, 1]))
    assert batch["text_emb"][:, 0].tolist() == [2.0, 5.0, 0.0, 5.0] and sorted(asked) == ["", "af", "sinus"]
    assert [path.name for path in (tmp_path / "stores").iterdir()] == ["reports-owner-name.safetensors"]


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="--language-model is not set"):
        made(("text_emb",))
    with pytest.raises(ValueError, match="has no reports"):
        made(("text_emb",), language_model="a/b")
    many = Rows()
    many.tasks = {"pvc": {}, "af": {}}
    with pytest.raises(ValueError, match=r"--probe\.task\): the store has pvc, af"):
        made(("label",), many)


def test_morphology_is_taken_of_the_signal_before_it_is_normalised():
    papagei = pytest.importorskip("physio_data.papagei", reason="physio_data has no labels of the pulse's morphology")
    store = Rows()
    transform = compose.ShiftAndNormalize("lead_zscore", store.fs)
    batch = transform({key: torch.from_numpy(value) for key, value in store.batch(np.arange(6)).items()}, Streams(0, 0))
    np.testing.assert_allclose(batch["aux"].numpy(), papagei.window_labels(store.signal_NCT[:, 0], 125.0), rtol=1e-5)
    assert PapageiMorphology().usable(batch["aux"]).any()


@pytest.mark.parametrize(("recipe", "settings"), [("himae_ppg", 3), ("papagei", 2), ("merl", 2)])
def test_a_twin_meets_masked_input_only_where_the_objective_masks(recipe, settings):
    assert len(encoders.twin_settings(compose.recipe(recipe, "tiny"))) == settings


@pytest.mark.parametrize("size", ["tiny", "fast", "reference"])
@pytest.mark.parametrize("name", ["papagei", "merl"])
def test_recipes_survive_json(name, size):
    cfg = compose.recipe(name, size)
    assert compose.from_json(compose.to_json(cfg)) == cfg


def test_a_network_and_an_objective_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="objective 'papagei_morphology' trains papagei and not 'himae', which fits masked_reconstruction"):
        compose.swap(compose.recipe("papagei", "tiny"), model="himae", objective=None, size="tiny")
    swapped = compose.swap(compose.recipe("papagei", "tiny"), model="resnet1d", objective="cmsc", size="tiny")
    assert (type(swapped.model).__name__, type(swapped.objective).__name__) == ("ResNet1dConfig", "Cmsc")
