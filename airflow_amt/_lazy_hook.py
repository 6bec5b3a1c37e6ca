"""What holds the arguments of an AWS connection, and builds the hook from them when it is first needed."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_amt.hooks.tuning import AmtHook


class LazyHook:
    """Mixin of operators, sensors and triggers: one AWS connection.

    The hook is built on first use: after templates are rendered, not while a DAG is parsed (its import alone
    takes half a second), and in the thread that needs it, because building it blocks.
    """

    aws_conn_id: str | None
    region_name: str | None
    verify: bool | str | None
    botocore_config: dict[str, Any] | None

    def connection_arguments(self) -> dict[str, Any]:
        """Return the arguments of this connection, for another object that shall use the same."""
        return {
            "aws_conn_id": self.aws_conn_id,
            "region_name": self.region_name,
            "verify": self.verify,
            "botocore_config": self.botocore_config,
        }

    @cached_property
    def hook(self) -> AmtHook:
        """The hook of this connection."""
        return self.new_hook()

    def close_hook(self) -> None:
        """Close the hook's connections to AWS, if there are any."""
        hook = vars(self).get("hook")
        if hook is not None:
            hook.close()

    def new_hook(self) -> AmtHook:
        """Return a hook of this connection that is as the connection is now."""
        from airflow_amt.hooks.tuning import AmtHook

        return AmtHook(
            aws_conn_id=self.aws_conn_id,
            region_name=self.region_name,
            verify=self.verify,
            config=self.botocore_config,
        )
