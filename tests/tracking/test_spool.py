"""What a run logs while its store is away: kept in order, sent once, in the end all there; with a store in memory."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from tracking import records, spool


class Store:
    """Takes records, unless it is away; dies in the middle of a request if told to."""

    def __init__(self):
        self.metrics, self.others, self.tries = [], [], 0
        self.away = False
        self.refuses = None

    def send(self, client, record):
        self.tries += 1
        if self.away:
            raise MlflowException("connection refused")
        if record["run"] == self.refuses:
            raise MlflowException("the run is deleted", error_code=1000)
        if record["kind"] == "metrics":
            self.metrics += [(key, value, step) for key, value, _, step in record["metrics"]]
        else:
            self.others.append(record)


@pytest.fixture
def store(monkeypatch, tmp_path):
    fake = Store()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(records, "send", fake.send)
    monkeypatch.setattr(spool, "reachable", lambda uri: not fake.away)
    monkeypatch.setattr(spool, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(spool, "RETRY_SHARE", 0.0)
    return fake


def log(delivery, steps):
    for step in steps:
        delivery.send(records.metrics("a", {"loss": step / 10}, step))


def expected(steps):
    return [("loss", step / 10, step) for step in steps]


def test_an_outage_is_said_once_and_made_up_for_in_order(store, capsys, tmp_path):
    delivery = spool.Delivery("a")
    log(delivery, range(3))
    store.away = True
    log(delivery, range(3, 2000))
    assert store.metrics == expected(range(3))
    store.away = False
    log(delivery, [2000])
    assert store.metrics == expected(range(2001))
    store.away = True
    log(delivery, [2001])
    store.away = False
    delivery.close()
    assert store.metrics == expected(range(2002))
    warnings = capsys.readouterr().err.strip().splitlines()
    assert len(warnings) == 1 and "does not answer (connection refused)" in warnings[0]
    assert not list((tmp_path / "mlruns" / "spool").iterdir()), "nothing is left behind"


def test_trying_again_costs_little_of_the_time(store, monkeypatch):
    monkeypatch.setattr(spool, "RETRY_SECONDS", 1000.0)
    delivery = spool.Delivery("a")
    store.away = True
    log(delivery, range(500))
    assert store.tries == 1
    store.away = False
    delivery.close()
    assert store.metrics == expected(range(500)) and store.tries == 2, "neighbours go in one request"


def test_images_files_and_the_end_are_kept_too(store, tmp_path, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    report = tmp_path / "report.json"
    report.write_text("first")
    delivery = spool.Delivery("a")
    store.away = True
    delivery.send(records.image("a", "grid", image, 7))
    delivery.send(records.artifact("a", report, "reports"))
    report.write_text("second")
    delivery.send(records.ending("a", "FINISHED"))
    delivery.close()
    store.away = False
    seen = []
    send = store.send

    def reading(client, record):
        if record["kind"] == "picture":
            seen.append(np.asarray(Image.open(record["file"])))
        if record["kind"] == "artifact":
            seen.append(Path(record["path"]).read_text())
        send(client, record)

    monkeypatch.setattr(records, "send", reading)
    assert spool.deliver_left_over() == (1, 0)
    assert (seen[0] == image).all() and seen[1] == "first", "as they were when they were logged"
    assert [record["kind"] for record in store.others] == ["picture", "artifact", "ending"]
    assert store.others[0]["step"] == 7 and store.others[1]["folder"] == "reports"


def test_a_run_of_a_living_process_is_left_to_it(store):
    delivery = spool.Delivery("a")
    store.away = True
    log(delivery, range(2))
    store.away = False
    assert spool.deliver_left_over() == (0, 0)
    delivery.close()
    assert store.metrics == expected(range(2))


def test_delivery_goes_on_where_it_was_cut_off(store, monkeypatch):
    monkeypatch.setattr(records, "MAX_METRICS", 10)
    delivery = spool.Delivery("a")
    store.away = True
    log(delivery, range(35))
    delivery.close()
    store.away = False
    send, left = store.send, [2]

    def dying(client, record):
        if not left[0]:
            raise MlflowException("gone again")
        left[0] -= 1
        send(client, record)

    monkeypatch.setattr(records, "send", dying)
    assert spool.deliver_left_over() == (0, 1)
    assert store.metrics == expected(range(20))
    monkeypatch.setattr(records, "send", send)
    assert spool.deliver_left_over() == (1, 0)
    assert store.metrics == expected(range(35))


def test_a_line_that_a_kill_cut_short_is_passed_over(store, tmp_path):
    delivery = spool.Delivery("a")
    store.away = True
    log(delivery, range(2))
    delivery.close()
    path = tmp_path / "mlruns" / "spool" / "a.jsonl"
    path.write_bytes(path.read_bytes() + json.dumps(records.metrics("a", {"loss": 9.0}, 9)).encode()[:20])
    again = spool.Delivery("a")
    log(again, [2])
    again.close()
    store.away = False
    assert spool.deliver_left_over() == (1, 0)
    assert store.metrics == expected(range(3))


def test_what_the_store_refuses_is_said_and_ends_nothing(store, capsys):
    store.refuses = "parent"
    delivery = spool.Delivery("a")
    for _ in range(2):
        delivery.send(records.following("parent"))
    log(delivery, range(2))
    assert store.metrics == expected(range(2))
    assert capsys.readouterr().err.count("refuses following of this run (the run is deleted)") == 1


def test_a_spool_that_another_store_owns_stays(store, capsys):
    delivery = spool.Delivery("a")
    store.away = True
    log(delivery, range(2))
    delivery.close()
    store.away, store.refuses = False, "a"
    assert spool.deliver_left_over() == (0, 1)
    assert "a.jsonl: not delivered" in capsys.readouterr().out
    store.refuses = None
    assert spool.deliver_left_over() == (1, 0)
    assert store.metrics == expected(range(2))


def test_the_command_says_in_one_sentence_that_nobody_answers(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    assert spool.main([]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "http://127.0.0.1:9 does not answer" in message and "secret" not in message
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
