"""Exactly one tuning job for a task instance: create it, or find the one that an earlier try created.

A try may be killed at any point: before its create call, between the call and its answer, after the answer
and before anything was stored, while it waits, or with the result in its hands. What lets the next try find
the job is its name, which is derived from the task instance, and its tags, which say whose it is and whether
its result was delivered. Airflow's task state store, where there is one (3.3), only saves calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from airflow_amt.exceptions import (
    AmtAccessDeniedError,
    AmtFieldError,
    AmtJobExistsError,
    AmtRequestError,
    AmtResourceInUseError,
    AmtResourceNotFoundError,
    AmtUnknownOwnerError,
)
from airflow_amt.task_exceptions import AmtOwnJobEndedError
from airflow_amt.tuning import Owner, TuningProgress, derive_job_name
from airflow_amt.tuning.custody import Existing, ExistingDecision, IfExists, decide_existing
from airflow_amt.tuning.judgement import OutcomePolicy
from airflow_amt.tuning.naming import (
    GENERATION_TAG,
    MAX_GENERATION,
    REQUEST_TAG,
    TRY_ID_TAG,
    TRY_TAG,
    WAITS_TAG,
    Waits,
    generation_of,
    owner_digest,
    ownership_tags,
    request_digest,
    task_label,
    with_tags,
)
from airflow_amt.tuning.status import TERMINAL_STATUSES

if TYPE_CHECKING:
    from airflow_amt.hooks.tuning import AmtHook


NAME = "HyperParameterTuningJobName"

#: Key in the task state store; its value is ``{"version", "name", "generation", "delivered"}``.
STORE_KEY = "airflow_amt_tuning_job"
STORE_VERSION = 1

#: How often a name may be taken, and nothing be found under it, before that is an error.
MOST_VANISHED = 10


class Store(Protocol):
    """What is used of Airflow's task state store."""

    def get(self, key: str) -> Any:
        """Return a value, ``None`` if there is none."""

    def set(self, key: str, value: Any) -> None:
        """Store a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """The tuning job of a task instance.

    :param name: its name.
    :param arn: its ARN.
    :param created_at: when it was created; never later than now by this machine's clock.
    :param adopted: whether an earlier try created it.
    """

    name: str
    arn: str
    created_at: datetime
    adopted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A generation to look at.

    :param known: whether it is likely to exist, so that it is described before a create call is tried.
    :param delivered: whether the task state store says that its result was delivered.
    """

    name: str
    generation: int
    known: bool
    delivered: bool = False


class Claim:
    """Finds or creates the one tuning job of a task instance.

    :param hook: gives the hook; asked for when it is first needed.
    :param owner: the task instance.
    :param try_number: its try.
    :param try_id: id of this try, which no other has; empty if there is none.
    :param request: the checked request; its name and tags are filled in here.
    :param derived: whether the name is derived; ``False``: the request gives one.
    :param prefix: start of a derived name.
    :param if_exists: what to do about an earlier try's job.
    :param policy: tells whether an ended job's result would be a success.
    :param waits: what the task does about the job; kept in its tags.
    :param store: the task state store, if there is one.
    :param patiently: makes a call until it succeeds, bearing transient errors.
    :param pause: waits for one interval.
    :param on_name: is told each name before its create call.
    :param before_create: is called before the first create call.
    :param log: where decisions are told.
    """

    def __init__(
        self,
        *,
        hook: Callable[[], AmtHook],
        owner: Owner,
        try_number: int,
        try_id: str,
        request: dict[str, Any],
        derived: bool,
        prefix: str | None,
        if_exists: IfExists,
        policy: OutcomePolicy,
        waits: Waits,
        store: Store | None,
        patiently: Callable[[Callable[[], Any]], Any],
        pause: Callable[[], None],
        on_name: Callable[[str], None],
        before_create: Callable[[], None],
        log: Any,
    ) -> None:
        self._hook = hook
        self._owner = owner
        self._try_number = try_number
        self._try_id = try_id
        self._request = request
        self._derived = derived
        self._prefix = prefix
        self._if_exists = if_exists
        self._policy = policy
        self._waits = waits
        self._store = store
        self._call = patiently
        self._pause = pause
        self._on_name = on_name
        self._before_create = before_create
        self._log = log

    def settle(self, now: datetime) -> Claimed:
        """Return the job, created or adopted.

        :param now: the time now.
        :raises AmtJobExistsError: the name is somebody else's.
        :raises AmtOwnJobEndedError: the request's own name was used by an earlier try and cannot be again, or
            ``if_exists`` forbids to go on.
        :raises AmtResourceLimitExceededError: a quota is used up.
        :raises AmtResourceInUseError: the name is taken, and AWS shows no tuning job of this name.
        """
        candidate = self._first()
        taken: AmtResourceInUseError | None = None
        vanished = 0
        while True:
            self._on_name(candidate.name)
            if not candidate.known:
                try:
                    arn = self._create(candidate)
                except AmtResourceInUseError as error:
                    taken = error
                else:
                    return Claimed(name=candidate.name, arn=arn, created_at=now, adopted=False)
            found = self._existing(candidate)
            if found is None:  # it is not there after all
                if taken is not None:
                    # A name that is taken by nothing: of a job that is being deleted, or not to be read yet.
                    vanished += 1
                    if vanished > MOST_VANISHED:
                        raise taken
                    self._pause()
                candidate = self._candidate(candidate.generation, name=candidate.name)
                continue
            progress, decision = found
            if decision.action is Existing.ADOPT:
                self._log.info(
                    "Tuning job %s (%s) is this task's own, of an earlier try or call: it is adopted, "
                    "because %s.",
                    candidate.name,
                    progress.status,
                    decision.reason,
                )
                # The job's clock and this one may differ: its deadline shall not move to the future.
                created_at = min(progress.created_at or now, now)
                return Claimed(name=candidate.name, arn=progress.arn, created_at=created_at, adopted=True)
            candidate = self._after(candidate, progress, decision)

    # -- which generation ---------------------------------------------------------------------------------

    def _first(self) -> _Candidate:
        """Return the generation to begin with: the latest that is known of."""
        if not self._derived:
            return _Candidate(name=str(self._request[NAME]), generation=1, known=False)
        stored = self._stored()
        if stored is not None:
            return stored
        if self._try_number > 1:
            listed = self._listed()
            if listed is not None:
                return listed
        return self._candidate(1)

    def _stored(self) -> _Candidate | None:
        value = None if self._store is None else self._store.get(STORE_KEY)
        if not isinstance(value, Mapping) or value.get("version") != STORE_VERSION:
            return None
        name = str(value.get("name"))
        generation = generation_of(name, self._owner)
        if generation is None:
            return None
        return _Candidate(
            name=name, generation=generation, known=True, delivered=bool(value.get("delivered"))
        )

    def _listed(self) -> _Candidate | None:
        """Ask AWS for this task instance's jobs: one call, whatever prefix they were created with."""
        digest = owner_digest(self._owner)
        try:
            names = self._call(
                lambda: [str(one.get(NAME)) for one in self._hook().list_tuning_jobs(NameContains=digest)]
            )
        except AmtAccessDeniedError as error:
            self._log.info("Earlier tuning jobs of this task are looked for one by one: %s", error)
            return None
        found = [
            (generation, name)
            for name in names
            if (generation := generation_of(name, self._owner)) is not None
        ]
        if not found:
            return None
        generation, name = max(found)
        return _Candidate(name=name, generation=generation, known=True)

    def _candidate(self, generation: int, *, name: str | None = None) -> _Candidate:
        if generation > MAX_GENERATION:
            raise AmtRequestError(
                [
                    AmtFieldError(
                        "job_name_prefix",
                        self._prefix,
                        f"this task instance has started {MAX_GENERATION} tuning jobs",
                        "find out why it is retried that often",
                    )
                ]
            )
        return _Candidate(
            name=name or derive_job_name(self._owner, prefix=self._prefix, generation=generation),
            generation=generation,
            known=False,
        )

    # -- the steps ----------------------------------------------------------------------------------------

    def _create(self, candidate: _Candidate) -> str:
        """Create the job and return its ARN.

        :raises AmtResourceInUseError: its name is taken.
        """
        request = self._request
        request[NAME] = candidate.name
        request["Tags"] = with_tags(
            request.get("Tags") or [],
            {
                **self._owner.tags(),
                GENERATION_TAG: str(candidate.generation),
                TRY_TAG: str(self._try_number),
                **({TRY_ID_TAG: self._try_id} if self._try_id else {}),
                WAITS_TAG: self._waits.value,
                REQUEST_TAG: request_digest(request),
            },
        )
        self._before_create()
        self._remember(candidate)
        return str(self._call(lambda: self._hook().create_tuning_job(request)))

    def _remember(self, candidate: _Candidate) -> None:
        # Before the call: a name that does not exist costs the next try one call, one that is not known more.
        if self._store is not None and self._derived:
            self._store.set(STORE_KEY, stored_value(candidate.name, candidate.generation))

    def _existing(self, candidate: _Candidate) -> tuple[TuningProgress, ExistingDecision] | None:
        """Look at a job whose name is taken, and decide about it; ``None`` if there is none."""
        try:
            progress = TuningProgress.from_describe(
                self._call(lambda: self._hook().describe_tuning_job(candidate.name))
            )
        except AmtResourceNotFoundError:
            return None
        tags: dict[str, str] | None = self._call(lambda: self._hook().tags(progress.arn))
        # A derived name holds a digest of the owner: it is ours even if its tags cannot be read.
        ours = self._owner.owns(tags) if tags is not None else self._derived
        if not ours:
            if tags is None:
                raise AmtUnknownOwnerError(candidate.name, self._owner.tags(), {}, progress.status)
            raise AmtJobExistsError(candidate.name, self._owner.tags(), ownership_tags(tags), progress.status)
        ending = None
        if progress.status in TERMINAL_STATUSES:
            outcome = self._call(lambda: self._hook().outcome(candidate.name))
            ending = self._policy.judge(outcome).ending
        decision = decide_existing(
            progress.status,
            tags or {},
            if_exists=self._if_exists,
            ending=ending,
            delivered=candidate.delivered,
            same_try=self._try_id != "" and (tags or {}).get(TRY_ID_TAG) == self._try_id,
        )
        if decision.action is Existing.ADOPT:
            self._mark_adopted(candidate.name, progress.arn, tags or {})
        return progress, decision

    def _mark_adopted(self, name: str, arn: str, tags: Mapping[str, str]) -> None:
        asked, now_asked = tags.get(REQUEST_TAG), request_digest(self._request)
        if asked is not None and asked != now_asked:
            self._log.warning(
                "Tuning job %s was created from another request than this try would send. It is adopted as "
                "it is; if_exists='new' would replace it.",
                name,
            )
        mine = {TRY_TAG: str(self._try_number)}
        if not mine.items() <= tags.items():
            # An earlier try that still runs somewhere must see that the job is not its own any more.
            self._call(lambda: self._hook().add_tags(arn, mine))

    def _after(
        self, candidate: _Candidate, progress: TuningProgress, decision: ExistingDecision
    ) -> _Candidate:
        """Return what to look at after a job that is not adopted."""
        name = candidate.name
        if decision.action is Existing.WAIT:
            self._log.info("Tuning job %s of an earlier try is being stopped: its end is awaited.", name)
            self._pause()
            return _Candidate(
                name=name, generation=candidate.generation, known=True, delivered=candidate.delivered
            )
        if decision.action is Existing.REPLACE and self._derived:
            self._log.info("Tuning job %s of an earlier try is stopped: %s.", name, decision.reason)
            detail = "replaced by a new one, as if_exists='new' asks"
            label = task_label(self._owner)
            self._call(
                lambda: self._hook().stop_tuning_job(
                    name, stopped_by="operator", detail=detail, requested_by=label
                )
            )
            return _Candidate(name=name, generation=candidate.generation, known=True)
        if decision.action is Existing.REFUSE or not self._derived:
            raise AmtOwnJobEndedError(name, self._owner.tags(), self._owner.tags(), progress.status)
        self._log.info(
            "Tuning job %s of an earlier try is %s: another one is started, because %s.",
            name,
            progress.status,
            decision.reason,
        )
        return self._candidate(candidate.generation + 1)


def stored_value(name: str, generation: int, *, delivered: bool = False) -> dict[str, Any]:
    """Return what the task state store holds about a task instance's job."""
    return {"version": STORE_VERSION, "name": name, "generation": generation, "delivered": delivered}
