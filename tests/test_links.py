"""Every relative link of the documents leads somewhere, its anchor too; the log is newest first, with verdicts."""

import re
from pathlib import Path

import pytest

from tests.support.imports import ROOT

DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "models" / "pretrained").rglob("*.md")]
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(path: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for name, anchor in LINK.findall(path.read_text()):
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{name} is not there"
        assert not anchor or anchor in anchors(target), f"{name} has no heading {anchor}"


def test_docs_are_listed_and_the_readme_is_short():
    listed = (ROOT / "docs" / "README.md").read_text()
    assert not [path.name for path in (ROOT / "docs").glob("[a-z]*.md") if f"({path.name})" not in listed]
    assert (ROOT / "README.md").read_text().count("\n") <= 180


def test_the_log_is_newest_first_with_a_verdict_in_each_title():
    text = (ROOT / "docs" / "log.md").read_text()
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    dates = [re.match(r"(\d{4}-\d\d-\d\d) \([-+0]\) \S", title) for title in titles]
    assert all(dates), [title for title, date in zip(titles, dates, strict=True) if not date]
    assert [date[1] for date in dates] == sorted((date[1] for date in dates), reverse=True)
    assert re.findall(r"^\*\*(?!\([-+0]\) ).*$", text, re.MULTILINE) == []
