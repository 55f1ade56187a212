import pytest

from training.captions import read_text_condition, save_text_condition
from training.params_decompose import TextCondition


@pytest.mark.parametrize(("encoder", "source"), [("none", None), ("minilm", None), ("qwen", "owner/name")])
def test_a_folder_says_what_text_its_network_reads(tmp_path, encoder, source):
    condition = TextCondition(encoder=encoder, source=source, max_tokens=77, dropout=0.25)
    save_text_condition(condition, tmp_path)
    assert read_text_condition(tmp_path) == condition


def test_without_a_word_the_layout_says_it(tmp_path):
    assert read_text_condition(tmp_path).encoder == "none"
    (tmp_path / "text_encoder").mkdir()
    released = read_text_condition(tmp_path)
    assert (released.encoder, released.source) == ("qwen", str(tmp_path))
