"""The page's command before and behind the page: its flags, what they reach, and the bar that counts network calls."""

import argparse
import socket

import numpy as np
import pytest
import torch

from app.page import make_page, steps_shown
from app.session import Session
from inference.decomposer import Decomposer
from inference.images import Effort, layers_of
from stages.app import main
from stages.decompose import add_effort_arguments, add_model_arguments, open_model
from tests.support.networks import save_tiny
from tests.support.workspace import make_workspace


@pytest.mark.parametrize("passes", [1, 2])
def test_the_bar_grows_with_every_step_and_is_full_after_the_last_pass(tmp_path, passes):
    model, effort = Decomposer.from_pretrained(str(save_tiny(tmp_path)), "cpu"), Effort(steps=2, tries=3)
    seen = []
    with steps_shown(model, effort, lambda part, desc: seen.append(part), passes):
        for _ in range(passes):
            model.decompose(torch.zeros(1, 4, 32, 32), 2, ["a"], None, seed=0, **effort._asdict())
    calls = 6 * passes
    assert seen == pytest.approx([number / (calls + 1) for number in range(calls + 1)])


@pytest.mark.parametrize(("caption", "calls"), [("a poster", 24), ("", 12)])
def test_what_is_said_guides_and_its_calls_are_counted(tmp_path, caption, calls):
    model, effort = Decomposer.from_pretrained(str(save_tiny(tmp_path, text=True)), "cpu"), Effort(steps=2, tries=3)
    _, page = make_page(model, effort, 4.0, 5)
    image, seen = np.full((40, 60, 4), 255, np.uint8), []
    image[10:30, 20:50, :3] = 40, 90, 160
    answer = page.on_decompose(Session(image), "auto", caption, lambda part, desc: seen.append(part))
    (layers,) = layers_of(model, [image], None, captions=[caption], seed=5, guidance=4.0, **effort._asdict())
    found = [entry.pixels for entry in answer[0].stack.entries]
    assert all(np.array_equal(*pair) for pair in zip(found, layers, strict=True))
    assert seen[1] == pytest.approx(1 / (calls + 1)), "auto asks twice"


def test_flags_reach_the_networks(tmp_path):
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    add_effort_arguments(parser)
    model = str(save_tiny(tmp_path, text=True))
    usual = open_model(parser.parse_args(["--model", model]))
    flags = ["--precision", "bf16", "--offload", "models", "--guidance", "4"]
    chosen = open_model(parser.parse_args(["--model", model, *flags]))
    assert (usual.dtype, chosen.dtype) == (torch.float32, torch.bfloat16), "auto on a CPU is fp32"
    assert [hasattr(found.network.transformer, "_hf_hook") for found in (usual, chosen)] == [False, True]


def test_bad_arguments_are_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(make_workspace(tmp_path / "project"))
    mute = str(save_tiny(tmp_path / "mute"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for arguments, sentence in (
            (["--port", "70000"], "--port: got 70000, expected 1 to 65535"),
            (["--port", str(taken.getsockname()[1])], "address already in use"),
            (["--port", "0", "--steps", "0"], "--steps: got 0"),
            (["--port", "0", "--tries", "-1"], "--tries: got -1"),
            (["--port", "0", "--guidance", "-1"], "--guidance: got -1.0, expected a scale from 0 on, 1 for none"),
            (
                ["--port", "0", "--guidance", "4", "--model", mute],
                "guidance: got 4, expected 1: this network was trained without captions",
            ),
            (["--port", "0", "--model", "nowhere/at/all"], "no folder at nowhere/at/all"),
        ):
            assert main(arguments) == 2
            error = capsys.readouterr().err.strip()
            assert error.startswith("error: ") and sentence in error and "\n" not in error
