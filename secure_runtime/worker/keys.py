"""The request keys of one worker: made in memory after the sandbox is sealed, rotated by age, never written anywhere.

Life of a key: active (published, sealed to), stale (still opened, no longer published), gone. Each rotation makes one
key per KEM suite, newest first in the published list. Each key owns its replay set; a set that is half full brings the
next rotation forward, so a busy service does not run into the refusals of a full one.

Trusts: `cryptography` to make keys, the injected clock. Never: exports a private key; keeps one after it is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sealgate.ambient import Clock, Entropy, now_us, random_bytes
from sealgate.errors import UnknownKeyError
from sealgate.protocol.hpke import Aead, Kdf, Kem, KemPrivateKey
from sealgate.protocol.ohttp import KeyConfig, SealedRequest, encode_key_configs
from secure_runtime.limits import MAX_HELD_KEYS
from secure_runtime.worker.replay import ReplaySet

SUITES = {"MLKEM768-X25519": Kem.MLKEM768_X25519, "X25519": Kem.X25519}

_SYMMETRIC = tuple(
    (int(Kdf.HKDF_SHA256), int(aead)) for aead in (Aead.AES_256_GCM, Aead.AES_128_GCM, Aead.CHACHA20_POLY1305)
)


@dataclass(frozen=True)
class HeldKey:
    """A key that this worker can open with. Holding one says nothing about requests sealed to it."""

    config: KeyConfig
    private: KemPrivateKey = field(repr=False)
    replay: ReplaySet = field(repr=False)
    stale_from_us: int
    gone_from_us: int


class KeyRing:
    """All held keys. Owned by the worker's only thread."""

    def __init__(
        self,
        suites: Sequence[str],
        *,
        active_s: int,
        stale_s: int,
        replay_max: int,
        avoid_ids: Sequence[int] = (),
        clock: Clock = now_us,
        entropy: Entropy = random_bytes,
    ) -> None:
        self._kems = tuple(SUITES[name] for name in suites)
        self._active_us = active_s * 1_000_000
        self._stale_us = stale_s * 1_000_000
        self._replay_max = replay_max
        self._avoid = set(avoid_ids)
        self._clock = clock
        self._next_id = entropy(1)[0]
        self._keys: list[HeldKey] = []  # newest first
        self.rotate()

    def _take_id(self) -> int:
        held = {key.config.key_id for key in self._keys} | self._avoid
        for _ in range(256):
            candidate, self._next_id = self._next_id, (self._next_id + 1) % 256
            if candidate not in held:
                return candidate
        self._avoid.clear()  # every identifier is taken: only those of keys really held stay excluded
        return self._take_id()

    def rotate(self, avoid_ids: Sequence[int] = ()) -> None:
        """Make a new active key per suite; the keys that were active become stale now. None takes a number of
        `avoid_ids`, now or later, while there are others."""
        self._avoid.update(avoid_ids)
        now = self._clock()
        made: list[HeldKey] = []
        for kem in self._kems:
            private = KemPrivateKey.generate(kem)
            config = KeyConfig(key_id=self._take_id(), kem=kem, public_key=private.public_bytes(), symmetric=_SYMMETRIC)
            self._avoid.add(config.key_id)
            made.append(
                HeldKey(
                    config=config,
                    private=private,
                    replay=ReplaySet(self._replay_max),
                    stale_from_us=now + self._active_us,
                    gone_from_us=now + self._active_us + self._stale_us,
                )
            )
        self._keys = made + [
            HeldKey(
                config=key.config,
                private=key.private,
                replay=key.replay,
                stale_from_us=min(key.stale_from_us, now),
                gone_from_us=min(key.gone_from_us, now + self._stale_us),
            )
            for key in self._keys
        ]
        self._drop_gone(now)

    def _drop_gone(self, now: int) -> None:
        self._keys = [key for key in self._keys if key.gone_from_us > now]

    def tick(self) -> bool:
        """Rotate when the active keys are old or much used, drop those that are gone. True if the list changed."""
        now = self._clock()
        active = [key for key in self._keys if key.stale_from_us > now]
        if not active or (self._much_used(active) and len(self._keys) < MAX_HELD_KEYS):
            self.rotate()
            return True
        self._drop_gone(now)
        return False

    def _much_used(self, active: Sequence[HeldKey]) -> bool:
        """A replay set is half full: new keys now, long before it would have to refuse."""
        return any(2 * len(key.replay) >= self._replay_max for key in active)

    def seconds_to_next_change(self) -> float:
        """How long `tick` has nothing to do."""
        now = self._clock()
        moments = [moment for key in self._keys for moment in (key.stale_from_us, key.gone_from_us) if moment > now]
        return max(0.0, (min(moments) - now) / 1e6) if moments else 0.0

    def published(self) -> bytes:
        """The active keys' configurations as application/ohttp-keys."""
        now = self._clock()
        return encode_key_configs([key.config for key in self._keys if key.stale_from_us > now])

    def find(self, sealed: SealedRequest) -> HeldKey:
        """The key that this request names; raises UnknownKeyError when it is not held or its time is over."""
        now = self._clock()
        for key in self._keys:
            config = key.config
            if config.key_id == sealed.key_id and config.kem == sealed.kem and key.gone_from_us > now:
                if (sealed.kdf, sealed.aead) not in config.symmetric:
                    break
                return key
        raise UnknownKeyError("the request is sealed to a key that is not held")
