import numpy as np
from PIL import Image

from stages.check_data import main


def test_it_says_what_a_batch_holds_and_draws_a_sheet(bucketed_root, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert main(["--root-dir", str(bucketed_root), "--max-samples", "2", "--batch-size", "1", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "{'train': 8, 'val': 4} samples, 0 dropped" in said
    assert "components: 23 items, 23 batches of 1" in said and "stacks: 8 items, 8 batches of 1" in said
    assert "component: (1, 4, 64, " in said and "torch.float32, -1.00 to 1.00" in said
    with Image.open(out) as sheet:
        assert sheet.height > 2 * 128 and np.asarray(sheet).std() > 10


def test_a_sheet_below_a_file_is_refused_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--root-dir", str(tmp_path), "--out", str(tmp_path / "file" / "sheet.png")]) == 2
    assert "which is a file, expected a folder" in capsys.readouterr().err


def test_a_missing_dataset_is_one_line(tmp_path, capsys):
    assert main(["--root-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
