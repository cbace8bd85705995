"""Times and limits of the cluster core."""

from dataclasses import dataclass
from typing import Literal

from .errors import LocalClusterSettingsInvalid

RebalancePolicy = Literal["never", "when_it_pays", "always"]


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Times and limits; the defaults leave fivefold slack for Wi-Fi jitter and fail over within two seconds.

    Attributes:
        heartbeat_seconds: Between the coordinator's heartbeats to a member.
        election_timeout_min_seconds: Shortest silence after which a voter campaigns. Also the stickiness: for
            this long after a heartbeat no vote is given.
        election_timeout_max_seconds: Longest such silence; each is drawn between the two.
        campaign_retry_min_seconds: Shortest wait of a candidate with too few votes before it asks again ...
        campaign_retry_max_seconds: ... and the longest; drawn anew each time, so that two that split the
            votes do not do so again. Far shorter than the first wait: nobody leads, and asking costs nothing.
        portable_bias_seconds: Portable machines draw at least this much above the minimum, so that a machine
            that stays at its place wins first. Must leave room below the maximum.
        lease_seconds: A coordinator that no quorum answered for this long, counted from when it sent the
            heartbeat, steps down. Below the shortest election timeout.
        rpc_deadline_seconds: For votes and heartbeats.
        suspect_after_heartbeats: Missed heartbeats after which a member is suspect.
        dead_after_seconds: Silence after which a member is dead; times (1 + the observer's health score).
            Silence is that of the member towards everybody: where others reach it, it is only cut off.
        refused_dead_seconds: A member that had answered is dead where its machine refuses connections for this
            long: the last attempt was begun so long after the first refusal, no answer came and nobody else
            reached it; times (1 + the observer's health score). Two heartbeats: one stray reset is not enough.
        probe_helpers: Members that are asked to look for a suspect one: three, as in SWIM, so that one bad
            link or one more dead node does not decide.
        probe_seconds: Between two such rounds.
        lateness_seconds: A step that comes this much after its deadline says that the machine slept or the
            process starved: what was heard last is then old news, and nobody campaigns because of it. Above
            any pause of a garbage collector or a scheduler under load.
        wake_grace_seconds: A machine that woke waits this much longer before it campaigns: links take
            seconds to come up, and the cluster has long gone on.
        join_quiet_seconds: While a plan runs, joins are batched until no more came for this long ...
        join_max_seconds: ... but not longer than this.
        max_voters: All nodes vote up to this many.
        voter_hold_down_seconds: A voter is replaced when it has been gone for this long; a restart of its
            machine takes less, and every change of voters is a risk taken for nothing if it comes back.
        leave_timeout_seconds: A node that goes down in order waits this long for somebody to hear it.
        evict_replan_seconds: An evicted node keeps its stage at most this long while a plan without it is
            made; then everything stops.
        farewell_seconds: For this long an evicted node is told that it is.
        flap_half_life_seconds: A node that was gone and came back is charged one point, and so is one that
            was started anew; points halve in this time. Five minutes, as long as a repair by hand takes.
        flap_suppress_points: From so many points on it is in no new plan ...
        flap_reuse_points: ... until they have fallen below this; the gap keeps it from flapping in and out.
        flap_max_points: More are not kept, which bounds the time: log2(max / reuse) half-lives, 18 minutes.
        hold_down_min_seconds: After a new plan, gained capacity waits this long before it leads to another;
            doubled when ...
        hold_down_window_seconds: ... two plans come within this time ...
        hold_down_max_seconds: ... up to this. Lost capacity never waits.
        rebalance: Whether a plan that serves is moved to nodes that are free: every move interrupts all streams.
        rebalance_min_gain: With "when_it_pays", the share of the predicted time that a move must save. A tenth:
            the cost model is wrong by a few percent, and a move costs seconds.
        read_ahead_seconds: Before a plan that serves gives way to another, its members may read new weights ahead
            for so long. Below `plan_rpc_deadline_seconds` and `prepare_timeout_seconds`, which bound the answer.
        standalone: Whether a node without a quorum plans for itself only.
        standalone_after_seconds: It does after so long without a coordinator: several times what an election
            or a restart of the daemon takes.
        prepare_timeout_seconds: From the first PREPARE of a plan to the last promise.
        plan_rpc_deadline_seconds: For PREPARE, COMMIT and SET_PEERS.
        compute_timeout_seconds: For the planner, including the profile of a model seen for the first time.
        worker_stop_seconds: Given to a worker to end in order.
        connect_timeout_seconds: From SET_PEERS to READY of every worker, else the plan is made anew.
        load_stall_seconds: A worker that loads and makes no progress for this long has failed.
        restart_backoff_max_seconds: Bound of the wait (1, 2, 4, ...) before a replan after failures.
        failure_window_seconds: Failures older than this are forgotten.
        quarantine_after_failures: Failures in the window after which a node is not planned for that model ...
        quarantine_seconds: ... for this long.
        nack_exclude_seconds: A node that refused a PREPARE is left out for this long.
        refusal_retry_seconds: Shortest time between two asks of the planner that refused.
        status_seconds: Between the coordinator's tellings of every member's status.
    """

    heartbeat_seconds: float = 0.25
    election_timeout_min_seconds: float = 1.0
    election_timeout_max_seconds: float = 2.0
    campaign_retry_min_seconds: float = 0.25
    campaign_retry_max_seconds: float = 1.0
    portable_bias_seconds: float = 0.5
    lease_seconds: float = 0.8
    rpc_deadline_seconds: float = 0.5
    suspect_after_heartbeats: int = 3
    dead_after_seconds: float = 3.0
    refused_dead_seconds: float = 0.5
    probe_helpers: int = 3
    probe_seconds: float = 1.0
    lateness_seconds: float = 1.0
    wake_grace_seconds: float = 3.0
    join_quiet_seconds: float = 3.0
    join_max_seconds: float = 15.0
    max_voters: int = 7
    voter_hold_down_seconds: float = 120.0
    leave_timeout_seconds: float = 3.0
    evict_replan_seconds: float = 10.0
    farewell_seconds: float = 5.0
    flap_half_life_seconds: float = 300.0
    flap_suppress_points: float = 3.0
    flap_reuse_points: float = 1.0
    flap_max_points: float = 12.0
    hold_down_min_seconds: float = 3.0
    hold_down_window_seconds: float = 60.0
    hold_down_max_seconds: float = 60.0
    rebalance: RebalancePolicy = "when_it_pays"
    rebalance_min_gain: float = 0.1
    read_ahead_seconds: float = 3.0
    standalone: bool = True
    standalone_after_seconds: float = 15.0
    prepare_timeout_seconds: float = 5.0
    plan_rpc_deadline_seconds: float = 5.0
    compute_timeout_seconds: float = 300.0
    worker_stop_seconds: float = 2.0
    connect_timeout_seconds: float = 20.0
    load_stall_seconds: float = 120.0
    restart_backoff_max_seconds: float = 30.0
    failure_window_seconds: float = 300.0
    quarantine_after_failures: int = 5
    quarantine_seconds: float = 900.0
    nack_exclude_seconds: float = 30.0
    refusal_retry_seconds: float = 5.0
    status_seconds: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that contradict each other.

        Raises:
            LocalClusterSettingsInvalid: Names the fields.
        """
        if not 0 < self.heartbeat_seconds < self.lease_seconds < self.election_timeout_min_seconds:
            raise LocalClusterSettingsInvalid(
                "heartbeat_seconds < lease_seconds < election_timeout_min_seconds must hold: "
                f"got {self.heartbeat_seconds}, {self.lease_seconds}, {self.election_timeout_min_seconds}"
            )
        if not (
            self.election_timeout_min_seconds + self.portable_bias_seconds < self.election_timeout_max_seconds
        ):
            raise LocalClusterSettingsInvalid(
                "election_timeout_min_seconds + portable_bias_seconds must lie below "
                f"election_timeout_max_seconds: got {self.election_timeout_min_seconds} + "
                f"{self.portable_bias_seconds} and {self.election_timeout_max_seconds}"
            )
        if not 0 < self.campaign_retry_min_seconds < self.campaign_retry_max_seconds:
            raise LocalClusterSettingsInvalid(
                "0 < campaign_retry_min_seconds < campaign_retry_max_seconds must hold: "
                f"got {self.campaign_retry_min_seconds} and {self.campaign_retry_max_seconds}"
            )
        if self.suspect_after_heartbeats * self.heartbeat_seconds > self.dead_after_seconds:
            raise LocalClusterSettingsInvalid(
                "a member must be suspect before it is dead: suspect_after_heartbeats x heartbeat_seconds = "
                f"{self.suspect_after_heartbeats * self.heartbeat_seconds} is above dead_after_seconds = "
                f"{self.dead_after_seconds}"
            )
        if not 0 < self.flap_reuse_points < self.flap_suppress_points <= self.flap_max_points:
            raise LocalClusterSettingsInvalid(
                "0 < flap_reuse_points < flap_suppress_points <= flap_max_points must hold: got "
                f"{self.flap_reuse_points}, {self.flap_suppress_points}, {self.flap_max_points}"
            )
        if self.standalone_after_seconds <= self.election_timeout_max_seconds:
            raise LocalClusterSettingsInvalid(
                "standalone_after_seconds must leave time for an election, above "
                f"election_timeout_max_seconds: got {self.standalone_after_seconds} and "
                f"{self.election_timeout_max_seconds}"
            )
        if not 0 <= self.rebalance_min_gain < 1:
            raise LocalClusterSettingsInvalid(
                f"rebalance_min_gain must lie from 0 to below 1, got {self.rebalance_min_gain}"
            )
        if (
            not 0
            <= self.read_ahead_seconds
            < min(self.plan_rpc_deadline_seconds, self.prepare_timeout_seconds)
        ):
            raise LocalClusterSettingsInvalid(
                "read_ahead_seconds must lie below plan_rpc_deadline_seconds and prepare_timeout_seconds: got "
                f"{self.read_ahead_seconds}, {self.plan_rpc_deadline_seconds}, {self.prepare_timeout_seconds}"
            )
        if self.max_voters < 1:
            raise LocalClusterSettingsInvalid(f"max_voters must be at least 1, got {self.max_voters}")
