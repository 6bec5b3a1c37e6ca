"""IAM roles: any role that a client asks for exists, may be assumed by SageMaker, and may do everything.

The embedded AMT checks no permissions and takes any ``RoleArn``. The SageMaker SDK 3 does check: it reads
the role's trust policy and simulates what the role may do before it creates a job.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from xml.sax.saxutils import escape

from moto.backends import get_backend
from moto.iam.exceptions import NotFoundException

_TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
    ],
}
_NAMESPACE = "https://iam.amazonaws.com/doc/2010-05-08/"
#: Calls that read a role or what belongs to it; those that would change one find only those that were made.
_READING = frozenset(
    {"GetRole", "ListAttachedRolePolicies", "ListRolePolicies", "ListRoleTags", "SimulatePrincipalPolicy"}
)


class Roles:
    """Makes the roles that clients ask for, and answers what moto does not.

    :param account: 12-digit AWS account id.
    """

    def __init__(self, account: str) -> None:
        self._backend = get_backend("iam")[account]["aws"]
        self._lock = threading.Lock()

    def answer(self, form: Mapping[str, str]) -> bytes | None:
        """Answer a call of IAM, or prepare moto's answer to it and return ``None``.

        :param form: its parameters.
        """
        action = form.get("Action")
        if action not in _READING:
            return None
        name = form.get("RoleName")
        source = form.get("PolicySourceArn", "")
        if ":role/" in source:
            name = source.rpartition("/")[2]
        if name:
            self._make(name)
        return _simulation(form) if action == "SimulatePrincipalPolicy" else None

    def _make(self, name: str) -> None:
        with self._lock:
            try:
                self._backend.get_role(name)
            except NotFoundException:
                self._backend.create_role(
                    role_name=name,
                    assume_role_policy_document=json.dumps(_TRUST),
                    path="/",
                    permissions_boundary=None,
                    description="made by the embedded AMT when it was asked for",
                    tags=[],
                    max_session_duration="3600",
                )


def _simulation(form: Mapping[str, str]) -> bytes:
    """Answer ``SimulatePrincipalPolicy``: everything is allowed, as nothing is checked."""
    actions = [value for key, value in form.items() if key.startswith("ActionNames.member.")]
    resource = form.get("ResourceArns.member.1", "*")
    results = "".join(
        f"<member><EvalActionName>{escape(action)}</EvalActionName>"
        f"<EvalResourceName>{escape(resource)}</EvalResourceName>"
        "<EvalDecision>allowed</EvalDecision><MatchedStatements/><MissingContextValues/></member>"
        for action in actions
    )
    return (
        f'<SimulatePrincipalPolicyResponse xmlns="{_NAMESPACE}"><SimulatePrincipalPolicyResult>'
        f"<IsTruncated>false</IsTruncated><EvaluationResults>{results}</EvaluationResults>"
        "</SimulatePrincipalPolicyResult><ResponseMetadata><RequestId>embedded-amt</RequestId>"
        "</ResponseMetadata></SimulatePrincipalPolicyResponse>"
    ).encode()
