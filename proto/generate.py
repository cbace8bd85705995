"""Generate the protobuf and gRPC code beside its sources, or check that it is up to date.

python proto/generate.py [--check]
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGE = Path("macmesh/v1")
PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(target: Path) -> list[Path]:
    """Write the generated files of every .proto below target and return them, sorted."""
    sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / PACKAGE).glob("*.proto"))
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{ROOT}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet:{target}",
        *sources,
    ]
    path = str(Path(sys.executable).parent)
    subprocess.run(command, check=True, cwd=ROOT, env={"PATH": f"{path}:/usr/bin:/bin"})  # noqa: S603  our own tool
    return sorted(p for pattern in PATTERNS for p in (target / PACKAGE).glob(pattern))


def main() -> int:
    """Generate, or with --check compare with what is committed and say what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where the code is stale")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        fresh = generate(Path(folder))
        names = {p.name for p in fresh}
        committed = {p.name: p for pattern in PATTERNS for p in (ROOT / PACKAGE).glob(pattern)}
        stale = [
            p for p in fresh if p.name not in committed or committed[p.name].read_bytes() != p.read_bytes()
        ]
        orphans = [p for name, p in sorted(committed.items()) if name not in names]
        if check:
            for path in (*stale, *orphans):
                sys.stderr.write(f"stale: {PACKAGE / path.name} (run `make proto`)\n")
            return 1 if stale or orphans else 0
        for path in stale:
            shutil.copyfile(path, ROOT / PACKAGE / path.name)
        for path in orphans:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
