"""The policy that this gateway process decides by: the one that the runtime host says is in force, or none.

The host tells the digest whenever it changes; the version of that digest is loaded from `policy-history/` in a thread
and takes the place of the one before in one step, tenants and certificate mappings included. While it is being loaded
requests wait for a moment; if it cannot be loaded they are refused until it can. At a start, what `current` names is
loaded, or the working copy of a deployment that has never been started.

Trusts: the host for which policy is in force, the digest for what it says. Never: decides by a policy that is known not
to be in force, or hands out parts of two.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from gateway.errors import Problem
from gateway.limits import POLICY_RETRY_S, POLICY_WAIT_S
from gateway.telemetry import Telemetry, quoted
from policy.decide import PolicySet, load_policy
from policy.errors import PolicyFileError
from policy.history import PolicyHistory
from policy.tenants import Tenants
from sealgate.deployment import Deployment


class PolicyInForce:
    """One per process, owned by its event loop. `load` reads the version with a digest, in a thread."""

    def __init__(self, first: PolicySet, *, load: Callable[[str], PolicySet], telemetry: Telemetry) -> None:
        self._loaded = first
        self._wanted = first.digest
        self._load = load
        self._telemetry = telemetry
        self._loading: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()  # not set: the first attempt at the wanted version is under way
        self._told = asyncio.Event()  # the host named another version

    @property
    def loaded(self) -> PolicySet:
        """The newest policy that was loaded. Decide by `now` instead."""
        return self._loaded

    @property
    def tenants(self) -> Tenants:
        """The tenants of the newest policy that was loaded."""
        return self._loaded.tenants

    @property
    def ready(self) -> bool:
        """Whether what is loaded is what is in force."""
        return self._loaded.digest == self._wanted

    def still(self, policy: PolicySet) -> bool:
        """Whether that is the policy in force, as far as is known here."""
        return self._loaded is policy and self.ready

    async def now(self) -> PolicySet:
        """The policy in force. Waits for its first load, but not for ever; raises Problem if it cannot be had."""
        if self.ready:
            return self._loaded
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLICY_WAIT_S):
                while not self.ready and not self._tried.is_set():
                    await self._tried.wait()
        if not self.ready:
            raise Problem("unavailable")
        return self._loaded

    def follow(self, digest: str) -> None:
        """The host says that the version `digest` is in force."""
        if digest == self._wanted:
            return
        self._wanted = digest
        self._tried.clear()
        self._told.set()
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._catch_up())

    async def close(self) -> None:
        """Give up what is being loaded."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)

    async def _catch_up(self) -> None:
        """Load until what is loaded is what is wanted; whoever waits is let go after each attempt at the newest."""
        try:
            while not self.ready:
                wanted = self._wanted
                policy = await self._attempt(wanted)
                if wanted != self._wanted:
                    continue
                if policy is not None:
                    self._loaded = policy
                    self._telemetry.event("policy-in-force", detail=wanted)
                    return
                self._tried.set()
                self._told.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._told.wait(), POLICY_RETRY_S)
        finally:
            self._loading = None
            self._tried.set()

    async def _attempt(self, digest: str) -> PolicySet | None:
        try:
            return await asyncio.to_thread(self._load, digest)
        except PolicyFileError as error:
            self._telemetry.event("policy-not-loaded", detail=quoted(str(error)))
        except Exception as error:  # a fault of ours: there will be no policy, and it must not go unsaid
            self._telemetry.failure("policy-not-loaded", error)
        return None


def open_policy_in_force(deployment: Deployment, *, telemetry: Telemetry) -> PolicyInForce:
    """For one gateway process of a deployment. Raises PolicyFileError: then it does not start."""
    history = PolicyHistory(deployment.policy_history)

    def load(digest: str) -> PolicySet:
        return load_policy(history.require_whole(digest), digest=digest)

    stated = history.current()
    first = load_policy(deployment.policy) if stated is None else load(stated.digest)
    return PolicyInForce(first, load=load, telemetry=telemetry)
