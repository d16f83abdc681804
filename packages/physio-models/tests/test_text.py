import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from physio_models.text import ReportEmbedder, masked_mean

REPORTS = ["sinus rhythm", "atrial fibrillation , rapid rhythm", "sinus rhythm", "sinus"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "sinus", "rhythm", "atrial", "fibrillation", "rapid", ","]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small BERT of random weights and its tokenizer."""
    transformers = pytest.importorskip("transformers", reason="the extra physio-models[text] is not installed")
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_a_masked_mean_leaves_padding_out():
    hidden, mask = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    expected = np.stack([hidden[0, :3].double().numpy().mean(0), hidden[1].double().numpy().mean(0)])
    np.testing.assert_allclose(masked_mean(hidden, mask).numpy(), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="no token in item 1"):
        masked_mean(hidden, torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]))


def test_a_vector_is_the_mean_over_the_reports_own_tokens_whatever_its_company(bert: Path):
    import transformers

    embed = ReportEmbedder(bert)
    together = embed(REPORTS)
    assert together.shape == (4, 16) and together.dtype == torch.float32 and not together.requires_grad
    assert torch.equal(together[0], together[2]) and len(embed) == 3
    ids = torch.tensor([[2, 4, 5, 3]])  # [CLS] sinus rhythm [SEP], with nothing padded
    with torch.no_grad():
        alone = transformers.AutoModel.from_pretrained(bert).eval()(input_ids=ids).last_hidden_state[0].double().numpy().mean(0)
    np.testing.assert_allclose(together[0].numpy(), alone, rtol=1e-4, atol=1e-5)


def test_the_model_and_the_length_are_the_ones_named(bert: Path):
    """The original always took the same language model, whatever it was told."""
    one, short = ReportEmbedder(bert)(REPORTS), ReportEmbedder(bert, max_tokens=3)(REPORTS)
    assert not torch.allclose(one[1], short[1])
    with pytest.raises(OSError):
        ReportEmbedder(bert / "absent")(REPORTS)


def test_a_cache_gives_the_same_vectors_without_the_language_model(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = ReportEmbedder(bert, cache=tmp_path / "deep" / "reports.safetensors")
    expected = first(REPORTS)
    first.save()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["reports.safetensors"]
    assert b"fibrillation" not in (tmp_path / "deep" / "reports.safetensors").read_bytes()
    monkeypatch.setitem(sys.modules, "transformers", None)
    again = ReportEmbedder(bert, cache=tmp_path / "deep" / "reports.safetensors")
    assert torch.equal(again(REPORTS[::-1]), expected.flip(0))
    with pytest.raises(ImportError, match=r"physio-models\[text\]"):
        again(["a report that is new"])


def test_a_cache_of_something_else_is_refused(bert: Path, tmp_path: Path):
    embed = ReportEmbedder(bert, cache=tmp_path / "reports.safetensors")
    with pytest.raises(ValueError, match="nothing to save"):
        embed.save()
    embed(REPORTS)
    embed.save()
    with pytest.raises(ValueError, match="name another cache file"):
        ReportEmbedder(bert, cache=tmp_path / "reports.safetensors", max_tokens=5)
    (tmp_path / "reports.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        ReportEmbedder(bert, cache=tmp_path / "reports.safetensors")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"physio-models\[text\]"):
        ReportEmbedder("any")(REPORTS)


@pytest.mark.parametrize(("reports", "message"), [([], "at least one"), ("sinus rhythm", "at least one"), (["sinus", None], "must be texts, got NoneType")])
def test_what_is_no_report_is_refused(reports, message: str):
    with pytest.raises(ValueError, match=message):
        ReportEmbedder("any")(reports)


def test_an_embedder_checks_itself():
    with pytest.raises(ValueError, match="max_tokens"):
        ReportEmbedder("any", max_tokens=0)
    with pytest.raises(ValueError, match="cache is not set"):
        ReportEmbedder("any").save()
