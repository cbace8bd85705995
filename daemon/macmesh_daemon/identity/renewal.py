"""When a certificate is to be renewed, and what to say while it is not. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from macmesh_daemon.identity.certificates import GRACE, NODE_VALIDITY

#: Left of the validity when renewal begins: 275 of 825 days, in which the CA's holder must once be reachable.
RENEW_WHEN_LEFT = NODE_VALIDITY / 3
#: Below this a person is told.
WARN_WHEN_LEFT = timedelta(days=60)


def renewal_is_due(expires_at: datetime, now: datetime, *, ca_ends_at: datetime) -> bool:
    """Whether a third of the validity or less is left, and a new certificate would last longer.

    No certificate outlives its CA, so a node does not ask for the same end again and again.
    """
    can_last_longer = ca_ends_at - GRACE - expires_at > timedelta(days=1)
    return can_last_longer and expires_at - now <= RENEW_WHEN_LEFT


def ca_warning_of(ca_ends_at: datetime, now: datetime) -> str | None:
    """What a person must know about a CA that ends within the validity of a certificate; None before."""
    if ca_ends_at - now > NODE_VALIDITY:
        return None
    return (
        f"the cluster's CA ends on {ca_ends_at:%Y-%m-%d}, and every certificate with it: found a new cluster with "
        "`daemonctl cluster init` before"
    )


def warning_of(expires_at: datetime, now: datetime) -> str | None:
    """What a person must know about a certificate that was not renewed in time; None while all is well.

    ``expires_at`` is the stated end; TLS itself refuses the certificate seven days later.
    """
    left = expires_at - now
    if left > WARN_WHEN_LEFT:
        return None
    what_to_do = (
        "no node that holds the CA key answered: start it, or put the CA key on a node that runs with "
        "`daemonctl cluster ca import`"
    )
    if left > timedelta(0):
        return f"this node's certificate ends in {left.days} days and could not be renewed: {what_to_do}"
    until_refused = expires_at + GRACE - now
    if until_refused > timedelta(0):
        return (
            f"THIS NODE'S CERTIFICATE EXPIRED on {expires_at:%Y-%m-%d}: it is tolerated for "
            f"{max(until_refused.days, 0)} more days, then the cluster refuses this node; {what_to_do}"
        )
    return (
        f"THIS NODE'S CERTIFICATE EXPIRED on {expires_at:%Y-%m-%d} and the cluster refuses this node: "
        "join again with `daemonctl cluster join TOKEN`"
    )
