"""The fake daemon is held to the contract of the real one."""

import client_contract
import macmesh
from macmesh.reasons import Reason
from macmesh.testing import FakeDaemon, scenes
from macmesh.wire_errors import wire_failure


async def test_the_fake_keeps_the_contract(fake: FakeDaemon) -> None:
    fake.script.status = scenes.idle()
    missing = wire_failure(Reason.MODEL_NOT_FOUND, f"no model {client_contract.UNKNOWN_MODEL}")
    nothing = wire_failure(Reason.NO_MODEL_LOADED, "nothing is served: `daemonctl load` serves a model")
    fake.script.failures = {
        "PlanModel": missing,
        "LoadModel": missing,
        "Generate": nothing,
        "GetStageStats": nothing,
    }
    async with macmesh.AsyncClient(fake.target) as client:
        await client_contract.check_idle_daemon(client)
