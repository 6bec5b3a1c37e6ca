"""The record of a stop: who stopped a tuning job, why, and what was known then; kept in the job's tags.

Two sets of tags. The *intent* is written before the stop call, so that the reason is there whatever becomes
of the process. Each stopper has intent tags of its own, so that none overwrites or removes another's. The
*record*, in plain words, is written by the one who stopped the job: of several that decide at once, also
where AWS accepted the calls of all, only one does (:meth:`Stop.precedes` tells which), and the others never
touch its record.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_amt.tuning.naming import (
    INTENT_TAGS,
    MAX_TAG_VALUE_LENGTH,
    POLICY_EVIDENCE_TAG,
    POLICY_TAG,
    STOPPED_BY_TAG,
    STOPPED_DETAIL_TAG,
    STOPPED_FOR_TAG,
    tag_text,
    tag_value,
)

#: What ``stopped_by`` may be.
STOPPERS = ("operator", "policy", "on_kill", "deadline", "reaper")

#: Code of a stop that a callback of Airflow's ``DeadlineAlert`` makes; others are those of policies.
DEADLINE_ALERT = "deadline_alert"


_SLOT_LENGTH = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyStop:
    """Which stop policy demanded a stop, and what was known when it did.

    :param code: stable code of the policy (``budget``, ...), or :data:`DEADLINE_ALERT`.
    :param rule: name of the rule.
    :param action: ``stop`` (the best training job is kept) or ``stop_and_fail``.
    :param share: how much of the limit was used.
    :param evidence: numbers, words and times; JSON-safe and flat.
    """

    code: str
    rule: str = ""
    action: str = "stop"
    share: float | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-safe."""
        return {
            "policy": self.code,
            "rule": self.rule,
            "action": self.action,
            "share": self.share,
            "evidence": dict(self.evidence),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """A stop that this provider makes, or made.

    :param stopped_by: one of :data:`STOPPERS`.
    :param detail: why, for people.
    :param requested_by: who asked for it: a task instance, a person, a command.
    :param policy: the stop policy, if it was one.
    :param confirmed: whether AWS is known to have accepted it.
    """

    stopped_by: str
    detail: str | None = None
    requested_by: str | None = None
    policy: PolicyStop | None = None
    confirmed: bool = True

    def tags(self) -> dict[str, str]:
        """Return the record: tags in plain words."""
        tags = {STOPPED_BY_TAG: tag_value(self.stopped_by)}
        if self.detail:
            tags[STOPPED_DETAIL_TAG] = tag_text(self.detail)
        if self.requested_by:
            tags[STOPPED_FOR_TAG] = tag_value(self.requested_by)
        if self.policy is not None:
            share = None if self.policy.share is None else round(self.policy.share, 4)
            tags[POLICY_TAG] = _pairs(
                {
                    "code": self.policy.code,
                    "action": self.policy.action,
                    "share": share,
                    "rule": self.policy.rule,
                }
            )
            if self.policy.evidence:
                tags[POLICY_EVIDENCE_TAG] = _pairs(self.policy.evidence)
        return tags

    def intent(self) -> dict[str, str]:
        """Return the intent: all of it in tags for machines, as many as it takes; the rest is cut."""
        body = {
            "by": self.stopped_by,
            "detail": self.detail,
            "for": self.requested_by,
            "policy": None if self.policy is None else self.policy.to_dict(),
        }
        text = _pack(body)
        if len(text) > MAX_TAG_VALUE_LENGTH * len(INTENT_TAGS):
            # The evidence is what can be long.
            policy = None if self.policy is None else replace(self.policy, evidence={}).to_dict()
            text = _pack({**body, "detail": (self.detail or "")[:MAX_TAG_VALUE_LENGTH], "policy": policy})
        size = MAX_TAG_VALUE_LENGTH
        # All of them each time: what is left of an earlier intent would garble this one.
        return {key: text[index * size : (index + 1) * size] for index, key in enumerate(self.intent_keys())}

    @property
    def slot(self) -> str:
        """What tells the stopper's intent tags from those of others."""
        who = f"{self.stopped_by}\n{self.requested_by or ''}"
        return hashlib.sha256(who.encode()).hexdigest()[:_SLOT_LENGTH]

    def intent_keys(self) -> tuple[str, ...]:
        """Return the keys of the stopper's intent tags."""
        return tuple(f"{prefix}-{self.slot}" for prefix in INTENT_TAGS)

    def recorded_in(self, tags: Mapping[str, str]) -> bool:
        """Whether the record is that of the same stopper."""
        mine = self.tags()
        return all(tags.get(key) == mine.get(key) for key in (STOPPED_BY_TAG, STOPPED_FOR_TAG))

    def precedes(self, other: Stop) -> bool:
        """Whether the record is this one's where both have stopped a job; the same for whoever asks."""
        return self.slot < other.slot

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Stop | None:
        """Read the record, or else the intent; ``None`` if there is neither."""
        stopped_by = tags.get(STOPPED_BY_TAG)
        if stopped_by is None:
            return cls.intended(tags)
        policy = None
        if POLICY_TAG in tags:
            facts = _words(tags[POLICY_TAG])
            share = _value(facts.get("share", ""))
            policy = PolicyStop(
                code=facts.get("code", ""),
                rule=facts.get("rule", ""),
                action=facts.get("action", "stop"),
                share=float(share) if isinstance(share, (int, float)) else None,
                evidence=_from_pairs(tags.get(POLICY_EVIDENCE_TAG, "")),
            )
        return cls(
            stopped_by=stopped_by,
            detail=tags.get(STOPPED_DETAIL_TAG),
            requested_by=tags.get(STOPPED_FOR_TAG),
            policy=policy,
        )

    @classmethod
    def intended(cls, tags: Mapping[str, str]) -> Stop | None:
        """Read the intent alone, of several the one that precedes; ``None`` if none is there to be read."""
        return next(cls.intents(tags), None)

    @classmethod
    def intents(cls, tags: Mapping[str, str]) -> Iterator[Stop]:
        """Read all intents, those first that precede; what cannot be read is left out."""
        first = f"{INTENT_TAGS[0]}-"
        for slot in sorted(key.removeprefix(first) for key in tags if key.startswith(first)):
            body = _unpack("".join(tags.get(f"{prefix}-{slot}", "") for prefix in INTENT_TAGS))
            if body is None or not isinstance(body.get("by"), str):
                continue
            policy = body.get("policy")
            yield cls(
                stopped_by=body["by"],
                detail=body.get("detail"),
                requested_by=body.get("for"),
                policy=None
                if not isinstance(policy, Mapping)
                else PolicyStop(
                    code=str(policy.get("policy", "")),
                    rule=str(policy.get("rule", "")),
                    action=str(policy.get("action", "stop")),
                    share=policy.get("share"),
                    evidence=dict(policy.get("evidence") or {}),
                ),
                confirmed=False,
            )

    def own_intent(self, tags: Mapping[str, str]) -> Stop | None:
        """Return what the same stopper intended, now or at an earlier try; ``None`` if nothing is there."""
        return next((one for one in self.intents(tags) if one.slot == self.slot), None)


def _pack(body: Mapping[str, Any]) -> str:
    data = json.dumps(body, separators=(",", ":"), default=str, sort_keys=True).encode()
    return base64.urlsafe_b64encode(zlib.compress(data, 9)).decode()


def _unpack(text: str) -> dict[str, Any] | None:
    if not text:
        return None
    try:
        body = json.loads(zlib.decompress(base64.urlsafe_b64decode(text)))
    except (binascii.Error, ValueError, zlib.error):
        return None  # somebody else's tag, or cut: no intent of ours
    return body if isinstance(body, dict) else None


def _pairs(facts: Mapping[str, Any]) -> str:
    """Return facts as ``key=value key=value``, whole pairs only, as many as a tag's value holds."""
    text = ""
    for key, value in facts.items():
        if value is None or value == "" or isinstance(value, (Mapping, list, tuple)):
            continue
        if isinstance(value, float):
            if not math.isfinite(value):
                continue
            word = f"{value:.6g}"
        else:
            word = re.sub(r"[ =]", "_", tag_value(str(value)))
        pair = f"{key}={word}"
        longer = f"{text} {pair}" if text else pair
        if len(longer) <= MAX_TAG_VALUE_LENGTH:
            text = longer
    return text


def _from_pairs(text: str) -> dict[str, Any]:
    return {key: _value(value) for key, value in _words(text).items()}


def _words(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in text.split():
        key, equals, value = pair.partition("=")
        if equals:
            found[key] = value
    return found


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if math.isfinite(number) else text
    return text
