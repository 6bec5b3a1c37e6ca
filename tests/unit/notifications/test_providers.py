"""The notifiers over the real providers, which send to servers on loopback."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ConnectionResult, GetConnection
from moto.server import ThreadedMotoServer

from airflow_amt.notifications.email import AmtSmtpNotifier
from airflow_amt.notifications.slack import AmtSlackNotifier, AmtSlackWebhookNotifier
from airflow_amt.notifications.sns import AmtSnsNotifier
from tests.receivers import Mailbox, SlackServer, slack_server, smtp_server

REPORT = {
    "tuning_job_name": "churn-model",
    "status": "Stopped",
    "action": "stop",
    "rule": "überlang",
    "code": "stalled",
    "reason": "Nothing <ended> & nothing will.",
    "best_objective": 0.9,
    "airflow_url": "https://airflow.example.com/?a=1&b=2",
}
SUBJECT = "Tuning job churn-model stopped by policy überlang"
TEXT = (
    f"{SUBJECT}: Nothing <ended> & nothing will.\nBest objective 0.9.\n"
    "Airflow: https://airflow.example.com/?a=1&b=2"
)
MRKDWN = TEXT.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

#: Sends by calling the notifier, as callbacks of tasks do, or by awaiting it, as a triggerer does.
WAYS = ("sync", "async")


def send(notifier: Any, way: str) -> None:
    if way == "sync":
        notifier({"policy": REPORT})
        return
    notifier.context = {"policy": REPORT}

    async def wait() -> None:
        await notifier

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_runner, "SUPERVISOR_COMMS", Supervisor(), raising=False)
        asyncio.run(wait())


class Supervisor:
    """Answers for connections, from the environment, as the process above a triggerer does.

    Airflow 3.1 looks connections up, from within an event loop, only where there is one.
    """

    def send(self, msg: Any) -> Any:
        if not isinstance(msg, GetConnection):
            return None
        fields = json.loads(os.environ[f"AIRFLOW_CONN_{msg.conn_id.upper()}"])
        fields["extra"] = json.dumps(fields.get("extra"))
        return ConnectionResult(conn_id=msg.conn_id, **fields)

    async def asend(self, msg: Any) -> Any:
        return self.send(msg)


# --- Slack -------------------------------------------------------------------------------------


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlackServer]:
    with slack_server() as server:
        api = {"conn_type": "slack", "password": "xoxb-token", "extra": {"base_url": f"{server.url}/api/"}}
        hook = {"conn_type": "slackwebhook", "password": f"{server.url}/services/T0/B0/secret"}
        monkeypatch.setenv("AIRFLOW_CONN_SLACK_API_DEFAULT", json.dumps(api))
        monkeypatch.setenv("AIRFLOW_CONN_SLACK_DEFAULT", json.dumps(hook))
        yield server


@pytest.mark.parametrize("way", WAYS)
def test_slack_gets_the_message(slack: SlackServer, way: str) -> None:
    send(AmtSlackNotifier(channel="#models", username="tuner"), way)
    (post,) = slack.posts
    assert (post["path"], post["authorization"]) == ("/api/chat.postMessage", "Bearer xoxb-token")
    assert (post["channel"], post["username"], post["text"]) == ("#models", "tuner", MRKDWN)


@pytest.mark.parametrize("way", WAYS)
def test_a_slack_webhook_gets_the_message(slack: SlackServer, way: str) -> None:
    send(AmtSlackWebhookNotifier(unfurl_links=False), way)
    (post,) = slack.posts
    assert post["path"] == "/services/T0/B0/secret"
    assert (post["text"], post["unfurl_links"]) == (MRKDWN, False)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [AmtSlackNotifier, AmtSlackWebhookNotifier])
def test_a_text_of_ones_own_goes_to_slack(slack: SlackServer, way: str, kind: Any) -> None:
    send(kind(text="{{ amt.facts.tuning_job_name }}: {{ amt.subject }}"), way)
    assert slack.posts[0]["text"] == f"churn-model: {SUBJECT}"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [AmtSlackNotifier, AmtSlackWebhookNotifier])
def test_what_slack_refuses_is_an_error(slack: SlackServer, way: str, kind: Any) -> None:
    slack.refuse = "channel_not_found"
    with pytest.raises(Exception, match="channel_not_found"):
        send(kind(), way)


def test_it_can_be_the_asynchronous_callback_of_a_deadline(
    slack: SlackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Airflow's triggerer runs it: by its path, with the context as JSON left it."""
    triggers = pytest.importorskip("airflow.triggers.callback", reason="Airflow 3.1 alerts in another way")
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", Supervisor(), raising=False)
    context = {
        "dag_run": {"dag_id": "nightly", "dag_run_id": "run"},
        "deadline": {"id": "1", "deadline_time": "2026-11-24T06:00:00Z"},
    }
    trigger = triggers.CallbackTrigger(
        callback_path="airflow_amt.notifications.slack.AmtSlackNotifier",
        callback_kwargs={"channel": "#models", "context": context},
    )

    async def events() -> list[Any]:
        return [event.payload["state"] async for event in trigger.run()]

    assert asyncio.run(events())[-1] == "success"
    (post,) = slack.posts
    assert post["text"].startswith("DAG nightly missed its deadline of 2026-11-24T06:00:00Z, run run.")


# --- e-mail ------------------------------------------------------------------------------------


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailbox]:
    with smtp_server() as mailbox:
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", mailbox.connection)
        yield mailbox


def html_of(mailbox: Mailbox) -> str:
    (mail,) = mailbox.mails
    body = mail.get_body(("html",))
    assert body is not None
    return str(body.get_content()).strip()


@pytest.mark.parametrize("way", WAYS)
def test_mail_carries_the_message(mailbox: Mailbox, way: str) -> None:
    send(AmtSmtpNotifier(to=["a@example.com", "b@example.com"], cc="c@example.com"), way)
    (mail,) = mailbox.mails
    assert (mail["Subject"], mail["From"]) == (SUBJECT, "airflow@example.com")
    assert mailbox.recipients == [["a@example.com", "b@example.com", "c@example.com"]]
    assert html_of(mailbox) == (
        f"{SUBJECT}: Nothing &lt;ended&gt; &amp; nothing will.<br>\nBest objective 0.9.<br>\n"
        'Airflow: <a href="https://airflow.example.com/?a=1&amp;b=2">'
        "https://airflow.example.com/?a=1&amp;b=2</a>"
    )


@pytest.mark.parametrize("way", WAYS)
def test_subject_and_content_may_be_ones_own(mailbox: Mailbox, way: str) -> None:
    send(
        AmtSmtpNotifier(
            "a@example.com",
            from_email="me@example.com",
            subject="[ml] {{ amt.subject }}",
            html_content="<p>{{ amt.facts.best_objective }}</p>{{ amt.html }}",
        ),
        way,
    )
    assert (mailbox.mails[0]["Subject"], mailbox.mails[0]["From"]) == (f"[ml] {SUBJECT}", "me@example.com")
    assert html_of(mailbox).startswith(f"<p>0.9</p>{SUBJECT}: Nothing &lt;ended")


def test_arguments_may_stand_in_the_order_of_the_provider(mailbox: Mailbox) -> None:
    send(
        AmtSmtpNotifier("a@example.com", "me@example.com", "Hello", "<p>World</p>", None, "c@example.com"),
        "sync",
    )
    assert (mailbox.mails[0]["Subject"], mailbox.mails[0]["From"]) == ("Hello", "me@example.com")
    assert mailbox.recipients == [["a@example.com", "c@example.com"]]
    assert html_of(mailbox) == "<p>World</p>"


def test_content_may_come_from_a_file(mailbox: Mailbox, tmp_path: Any) -> None:
    (tmp_path / "mail.html").write_text("<b>{{ amt.facts.rule }}</b>")
    send(AmtSmtpNotifier("a@example.com", template=str(tmp_path / "mail.html")), "sync")
    assert html_of(mailbox) == "<b>überlang</b>"


# --- SNS ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture
def topic(aws: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Any]]:
    """A topic, and what it hands to the queue that subscribes to it."""
    extra = {"region_name": "eu-west-1", "endpoint_url": aws}
    connection = {"conn_type": "aws", "login": "moto", "password": "moto-secret", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
    session = boto3.Session(aws_access_key_id="moto", aws_secret_access_key="moto", region_name="eu-west-1")
    sns, sqs = (session.client(name, endpoint_url=aws) for name in ("sns", "sqs"))
    arn = sns.create_topic(Name="people")["TopicArn"]
    queue = sqs.create_queue(QueueName="people")["QueueUrl"]
    queue_arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"][
        "QueueArn"
    ]
    sns.subscribe(TopicArn=arn, Protocol="sqs", Endpoint=queue_arn)

    def received() -> list[dict[str, Any]]:
        answer = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10)
        return [json.loads(one["Body"]) for one in answer.get("Messages", [])]

    yield arn, received
    sqs.delete_queue(QueueUrl=queue)
    sns.delete_topic(TopicArn=arn)
    for client in (sns, sqs):
        client.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_topic_gets_the_message(topic: tuple[str, Any], way: str) -> None:
    arn, received = topic
    send(AmtSnsNotifier(target_arn=arn, message_attributes={"team": "ml"}), way)
    (one,) = received()
    assert (one["Subject"], one["Message"]) == (SUBJECT, TEXT)
    assert one["MessageAttributes"]["team"]["Value"] == "ml"


@pytest.mark.parametrize("way", WAYS)
def test_a_topic_gets_a_message_of_ones_own(topic: tuple[str, Any], way: str) -> None:
    arn, received = topic
    send(AmtSnsNotifier(target_arn=arn, message="{{ amt.facts.code }}", subject=None), way)
    (one,) = received()
    assert one["Message"] == "stalled"
    assert SUBJECT not in json.dumps(one)


@pytest.mark.parametrize("way", WAYS)
def test_a_topic_that_is_gone_is_an_error(topic: tuple[str, Any], way: str) -> None:
    arn, _ = topic
    with pytest.raises(Exception, match="NotFound"):
        send(AmtSnsNotifier(target_arn=f"{arn}-gone"), way)
