"""What a worker's environment has beside the daemon's."""

from pathlib import Path

from macmesh_daemon.supervisor.environment import cuda_cards, this_machines, worker_environment

KEPT = Path("/data/kernels")
H100 = "NVIDIA H100 80GB HBM3"


def made(
    environment: dict[str, str], *, version: str = "0.32.4", cards: tuple[str, ...] = (H100,)
) -> dict[str, str]:
    return worker_environment(environment, kernels_folder=KEPT, mlx_version=version, cards=cards)


def test_compiled_kernels_are_kept_for_each_version_and_card() -> None:
    folders = {
        made({})["MLX_PTX_CACHE_DIR"],
        made({}, version="0.33.0")["MLX_PTX_CACHE_DIR"],
        made({}, cards=("NVIDIA H200",))["MLX_PTX_CACHE_DIR"],
    }
    assert len(folders) == 3
    assert all(Path(folder).parent == KEPT for folder in folders)
    assert made({}) == made({})


def test_what_the_user_set_stays() -> None:
    own = {"MLX_PTX_CACHE_DIR": "/mine", "PATH": "/bin"}
    assert made(own) == own


def test_without_such_a_card_nothing_is_set() -> None:
    assert made({"PATH": "/bin"}, cards=()) == {"PATH": "/bin"}


def test_cards_as_the_driver_lists_them(tmp_path: Path) -> None:
    for bus, text in (("0000:1a:00.0", f"Model: \t\t {H100}\nIRQ: 5\n"), ("0000:1b:00.0", "IRQ: 6\n")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text(text)
    assert cuda_cards(tmp_path, system="linux") == (H100, "unknown")
    assert cuda_cards(tmp_path, system="darwin") == ()
    assert cuda_cards(tmp_path / "none", system="linux") == ()


def test_this_machine_keeps_the_daemons_environment() -> None:
    assert this_machines({"A": "b"}, kernels_folder=KEPT)["A"] == "b"
