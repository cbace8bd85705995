"""A certificate through the years of a cluster."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from macmesh_daemon.clock import ManualClock
from macmesh_daemon.identity import init_cluster, load_credentials
from macmesh_daemon.identity.certificates import end_of_ca
from macmesh_daemon.node.issuer import Issuer
from macmesh_daemon.node.live_credentials import LiveCredentials
from macmesh_daemon.node.peers import PeerPool
from macmesh_daemon.node.renewer import Renewer


class Years:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def seconds(self) -> float:
        return self.now.timestamp()


def make(folder: Path, years: Years, clock: ManualClock) -> tuple[Renewer, LiveCredentials]:
    init_cluster(folder)
    live = LiveCredentials(load_credentials(folder))
    issuer = Issuer(
        folder, node_id=live.current.node_id, wall_seconds=years.seconds, is_denied=lambda _: False
    )
    renewer = Renewer(
        data_dir=folder,
        credentials=live,
        issuer=issuer,
        peers=PeerPool(live),
        members=list,
        clock=clock,
        wall_seconds=years.seconds,
    )
    return renewer, live


async def test_through_ten_years_the_certificate_never_ends_before_its_ca(tmp_path: Path) -> None:
    years = Years()
    renewer, live = make(tmp_path, years, ManualClock())
    ca_end = end_of_ca(live.current.ca_pem)
    node_id = live.current.node_id
    while years.now < ca_end - timedelta(days=40):
        await renewer.renew_if_due()
        assert years.now < live.current.expires_at
        assert live.current.node_id == node_id
        years.now += timedelta(days=30)
    # 3652 days, a new one every 550: no more than needed, and none again and again at the end.
    assert renewer.renewals == 5


async def test_a_failed_renewal_changes_nothing_and_the_next_one_succeeds(tmp_path: Path) -> None:
    years, clock = Years(), ManualClock()
    renewer, live = make(tmp_path, years, clock)
    key = (tmp_path / "ca.key").rename(tmp_path / "lost")
    years.now += timedelta(days=600)
    assert not await renewer.renew_if_due()
    assert live.current == load_credentials(tmp_path)
    key.rename(tmp_path / "ca.key")
    assert await renewer.renew_if_due()
    assert load_credentials(tmp_path, now=years.now) == live.current
    assert live.current.remaining_days(years.now) > 820
