"""The house stays in order: benchmarks/structure.py measures it, `make lint` holds which room imports which."""

from benchmarks.structure import ROOT, code_files, files_by_folder, functions, main, repeating_names, rooms
from tests.support.imports import ROOMS

FILES = code_files(ROOT)


def test_rooms_are_few_and_folders_small():
    assert rooms(FILES) == sorted(ROOMS) and len(ROOMS) <= 11
    crowded = {folder: count for folder, count in files_by_folder(FILES).items() if count > 20}
    assert not crowded


def test_no_name_repeats_a_room():
    assert not repeating_names(FILES)


def test_functions_are_short():
    assert not [found for found in functions(ROOT, FILES) if found.lines > 60]


def test_tests_mirror_the_rooms():
    """A test's folder is a room's, so that one finds the test of a file where one looks for it."""
    tests = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("*.py")]
    folders = {path.parent for path in tests if path.name.startswith("test_")}
    known = {path.parent for path in FILES}
    assert not {folder for folder in folders if folder.parts and folder not in known}
    crowded = {folder: count for folder, count in files_by_folder(tests).items() if count > 20}
    assert not crowded


def test_the_figures_are_printed(capsys):
    assert main([]) == 0 and "| rooms | 11 |" in capsys.readouterr().out
