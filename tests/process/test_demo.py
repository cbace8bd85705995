"""The demo as users run it, and a demo whose model was tampered with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from macmesh_daemon.demo.scenario import DemoOptions, Talk, run_demo
from macmesh_daemon.models.demo import demo_model_folder
from support import models

pytestmark = pytest.mark.process


def test_the_demo_prints_one_json_object_and_leaves_nothing_running() -> None:
    command = [str(Path(sys.executable).parent / "daemonctl"), "demo", "--json", "--tokens", "24"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)

    assert report["identical"] is True
    assert (report["nodes"], report["stages"]) == (3, 3)
    assert report["tokens"] == len(report["token_ids"]) == 24
    assert report["discovery"] == "mdns"
    assert report["coordinator"]
    assert report["epoch"]
    assert sum(report["layers"]) == 12
    assert report["token_ids"] == report["reference_token_ids"]


async def test_one_changed_layer_is_seen(tmp_path: Path) -> None:
    tampered = models.copy_model(tmp_path / "tampered")
    # The trained model shrugs off such a change in most later layers; the first one shows.
    models.change_one_layer(tampered, layer=0)
    quiet = Talk(say=lambda _: None, show=lambda _: None, text=lambda _: None)
    report = await run_demo(
        DemoOptions(
            nodes=1, tokens=16, mdns=False, model_folder=tampered, reference_folder=demo_model_folder()
        ),
        quiet,
    )

    assert report.stages == 1
    assert report.identical is False
