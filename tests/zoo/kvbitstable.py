"""Which architectures can be served with quantised caches, and why the others cannot; run, it prints a table.

    PYTHONPATH=tests python -m zoo.kvbitstable [NAME ...]

The zoo's heads are small, and mlx-lm quantises rows of whole groups of 64 elements: where the config names the size of
a head, heads of 64 are tried too.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from macmesh_daemon.engine.profile import profile_model
from macmesh_daemon.engine.profile_build import build
from macmesh_daemon.models.errors import LocalArchitectureError
from macmesh_daemon.models.folder import read_folder
from macmesh_placement import LocalProfileError, Scratch
from zoo import CONFIGS, config, write_config

KV_BITS = 8
HEAD_SIZE = 64


@dataclass(frozen=True, slots=True)
class Row:
    """One architecture."""

    name: str
    quantised: bool
    reason: str = ""

    @property
    def text(self) -> str:
        """The row as a line."""
        return f"{self.name:22} {'yes' if self.quantised else 'no':3} {self.reason}".rstrip()


def judge(name: str, folder: Path) -> Row:
    """Whether a profile with quantised caches can be had, with the zoo's heads or with larger ones."""
    row = Row(name, quantised=False)
    for index, overrides in enumerate(_attempts(name)):
        mx.random.seed(0)
        written = read_folder(write_config(folder / str(index), name, **overrides), require_weights=False)
        try:
            model: Any = build(written)
            profile = profile_model(model, written, (), [Scratch()] * len(model.layers))
            profile.with_kv_bits(KV_BITS)
        except (LocalArchitectureError, LocalProfileError) as problem:
            row = Row(name, quantised=False, reason=str(problem))
        except Exception as problem:  # noqa: BLE001  foreign code may not take other heads
            row = row if index else Row(name, quantised=False, reason=f"{type(problem).__name__}: {problem}")
        else:
            return Row(name, quantised=True, reason=f"with heads of {HEAD_SIZE}" if index else "")
    return row


def _attempts(name: str) -> Iterator[dict[str, Any]]:
    yield {}
    fields = config(name)
    if "kv_lora_rank" in fields:
        yield {"kv_lora_rank": HEAD_SIZE, "qk_rope_head_dim": HEAD_SIZE}
    elif "head_dim" in fields:
        yield {"head_dim": HEAD_SIZE}
    elif "head_dim" in (inner := fields.get("text_config", {})):
        yield {"text_config": {**inner, "head_dim": HEAD_SIZE}}
    elif "num_attention_heads" in fields and "hidden_size" in fields:
        yield {"hidden_size": HEAD_SIZE * fields["num_attention_heads"]}


def main(names: Sequence[str]) -> None:
    """Prints the table."""
    mx.set_default_device(mx.cpu)
    mx.disable_compile()
    with tempfile.TemporaryDirectory() as folder:
        rows = [judge(name, Path(folder) / name) for name in names or CONFIGS]
    for row in rows:
        sys.stdout.write(row.text + "\n")
    sys.stdout.write(f"{sum(row.quantised for row in rows)} of {len(rows)} can\n")


if __name__ == "__main__":
    main(sys.argv[1:])
