import json
from pathlib import Path

import pytest

from daemon.tiny_models import write_config
from macmesh_daemon.engine.profile_main import EXIT_FAILED, EXIT_OK, EXIT_UNSUPPORTED, main
from macmesh_placement import ModelProfile


def test_stdout_is_the_profile_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_config(tmp_path / "m", "qwen3")
    assert main([str(folder), "--model-id", "tiny", "--lengths", "3,300,1"]) == EXIT_OK
    profile = ModelProfile.from_json_text(capsys.readouterr().out)
    assert (profile.model_id, profile.layer_count) == ("tiny", 4)


@pytest.mark.parametrize(
    ("changes", "code", "reason", "named"),
    [
        ({"model_type": "alchemy"}, EXIT_UNSUPPORTED, "UNSUPPORTED_ARCHITECTURE", "alchemy"),
        ({"vocab_size": "many"}, EXIT_FAILED, "MODEL_BROKEN", "llama"),
        ({"model_type": None}, EXIT_FAILED, "MODEL_BROKEN", "model_type"),
    ],
)
def test_errors_are_one_json_object_on_stderr(
    changes: dict[str, object],
    code: int,
    reason: str,
    named: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([str(write_config(tmp_path / "m", "llama", **changes))]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    error = json.loads(captured.err.splitlines()[-1])["error"]
    assert error["reason"] == reason
    assert named in error["message"]


@pytest.mark.parametrize("lengths", ["0", "a", "3,,1"])
def test_bad_lengths_are_a_usage_error(lengths: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), "--lengths", lengths])
    assert ended.value.code == 2
