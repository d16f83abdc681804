from pathlib import Path

import pytest

from physio_data.corpora import CORPORA, corpus
from physio_data.corpora.guide import page
from physio_data.sources import PHYSIONET, SOURCES

PAGE = Path(__file__).resolve().parents[2] / "CORPORA.md"


def test_the_page_is_in_step_with_the_tables():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: physio-data corpora > packages/physio-data/CORPORA.md"


@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_has_its_licence_citation_and_way_on_the_page(name):
    section = page().split(f"\n## {name}\n")[1].split("\n## ")[0]
    for part in (corpus(name).licence, corpus(name).citation, f"prepare.py {name}"):
        assert part in section
    assert ("unverified layout" in section) == (corpus(name).layout == "unverified")


@pytest.mark.parametrize("name", [name for name in SOURCES if name in CORPORA])
def test_a_source_and_its_corpus_name_the_same_page(name):
    assert corpus(name).url.startswith(SOURCES[name].page)
    if SOURCES[name].tree:
        assert SOURCES[name].tree == SOURCES[name].page.replace("https://physionet.org/content/", PHYSIONET)


def test_the_credentialed_steps_name_what_they_are_for():
    head = page().split("\n## synthetic")[0]
    assert all(f"`{name}`" in head for name, source in SOURCES.items() if source.access == "credentialed") and "chmod 600" in head
