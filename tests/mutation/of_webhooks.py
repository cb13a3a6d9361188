"""Guards of webhooks: that each event arrives, and that deliveries go nowhere else."""

from typing import Final

from tests.mutation.mutation import Mutation

TESTS: Final = "tests/integration/test_webhooks.py::"
EVENTS: Final = "tests/integration/test_webhook_events.py::"
API: Final = "tests/integration/test_api_webhooks.py::"
UNIT: Final = "tests/unit/test_webhooks.py::"
TARGET: Final = "domain/jobs/webhooks/target.py"
SENDER: Final = "domain/jobs/webhooks/sender.py"
OUTBOX: Final = "domain/jobs/webhooks/outbox.py"
HANDLER: Final = "domain/jobs/webhooks/handler.py"

WEBHOOKS: Final = (
    Mutation(
        "failures-make-no-events",
        "no webhook would get the failure of a job",
        "domain/jobs/engine.py",
        "if ids := [job.id for job, out, _ in settled if isinstance(out, Failed)]:",
        "if ids := []:",
        (
            f"{TESTS}test_receiver_that_fails_three_times_gets_the_event_under_one_id",
            f"{TESTS}test_settlement_and_delivery_are_recorded_both_or_neither",
        ),
    ),
    Mutation(
        "success-asks-for-webhooks",
        "each batch of successful jobs would cost a statement",
        "domain/jobs/engine.py",
        "if ids := [job.id for job, out, _ in settled if isinstance(out, Failed)]:",
        "if ids := [job.id for job, _, _ in settled]:",
        (f"{EVENTS}test_success_and_retries_cost_no_statement_and_a_failure_one",),
    ),
    Mutation(
        "orphans-make-no-events",
        "no webhook would get the failure of a job that no worker survives",
        "domain/jobs/maintenance.py",
        "            await record_ended_jobs(session, [job.id])\n",
        "",
        (f"{EVENTS}test_job_that_no_worker_survives_makes_an_event",),
    ),
    Mutation(
        "lanes-make-events",
        "a bulk job would make an event for each of its lanes, and a failed delivery another one without end",
        OUTBOX,
        "Job.parent_id.is_(None), Job.kind != JobKind.WEBHOOK_DELIVER, ",
        "",
        (f"{EVENTS}test_lanes_deliveries_and_cancelled_jobs_make_no_events",),
    ),
    Mutation(
        "event-id-of-attempt",
        "a receiver could not tell a repetition from another event",
        OUTBOX,
        '{"job": job}, id=row.id, at',
        '{"job": job}, at',
        (f"{TESTS}test_receiver_that_fails_three_times_gets_the_event_under_one_id",),
    ),
    Mutation(
        "event-for-each-refusal",
        "a client that tries again and again would make a delivery each time",
        OUTBOX,
        "*_wanting(event.types), last_at < now - _LIMIT_SECONDS)",
        "*_wanting(event.types))",
        (f"{EVENTS}test_limit_makes_one_event_an_hour_over_all_processes",),
    ),
    Mutation(
        "hosts-unchecked",
        "an owner could have workers connect to any host",
        TARGET,
        'if host.removesuffix(".") not in {one.removesuffix(".") for one in hosts}:',
        "if not host:",
        (f"{UNIT}test_other_host_is_refused", f"{UNIT}test_no_host_is_listed_by_default"),
    ),
    Mutation(
        "near-addresses-allowed",
        "who controls a name could reach the worker's own machine",
        TARGET,
        "return not is_near or",
        "return True or",
        (
            f"{UNIT}test_name_that_leads_near_is_refused",
            f"{UNIT}test_localhost_may_be_this_machine_if_it_is_listed_and_nothing_else_near",
        ),
    ),
    Mutation(
        "address-looked-up-again",
        "a name could lead somewhere else once it was checked",
        SENDER,
        "target.url.copy_with(host=address)",
        "target.url",
        (f"{UNIT}test_connection_goes_to_the_address_that_was_checked",),
    ),
    Mutation(
        "certificate-of-address",
        "the certificate would be compared with the address instead of the name",
        SENDER,
        'extensions={"sni_hostname": target.host.strip("[].")},',
        "",
        ("tests/integration/test_tls.py::test_webhook_goes_to_a_receiver_with_a_certificate_for_its_name_only",),
    ),
    Mutation(
        "redirects-followed",
        "a receiver could send a worker anywhere",
        SENDER,
        "trust_env=False, timeout=2 * _TIMEOUT_SECONDS)",
        "trust_env=False, timeout=2 * _TIMEOUT_SECONDS, follow_redirects=True)",
        (f"{UNIT}test_redirect_is_not_followed_and_no_proxy_is_used",),
    ),
    Mutation(
        "proxy-used",
        "the proxy would look the name up, unchecked",
        SENDER,
        "trust_env=False, ",
        "",
        (f"{UNIT}test_redirect_is_not_followed_and_no_proxy_is_used",),
    ),
    Mutation(
        "deliveries-fill-the-slots",
        "receivers that do not answer would hold up all other jobs",
        HANDLER,
        "if self._running >= _MAX_RUNNING:",
        "if self._running < 0:",
        (f"{TESTS}test_receivers_that_do_not_answer_leave_slots_to_other_jobs",),
    ),
    Mutation(
        "silent-receivers-fill-the-places",
        "a receiver that does not answer would hold up the deliveries of all projects for hours",
        HANDLER,
        "if time.monotonic() < self._silent.get(webhook_id, 0.0) and",
        "if False and",
        (f"{TESTS}test_receiver_that_does_not_answer_gets_nothing_else_for_a_while_and_holds_up_no_other",),
    ),
    Mutation(
        "disabled-webhooks-get-events",
        "a webhook that was disabled would still get what was recorded before",
        HANDLER,
        "if webhook is None or not webhook.enabled:",
        "if webhook is None:",
        (f"{API}test_delivery_to_a_webhook_that_is_gone_or_disabled_fails",),
    ),
    Mutation(
        "secrets-readable-by-the-api",
        "who has taken over the API could forge deliveries",
        "domain/db/migrations/grants.py",
        '        "webhooks": {"SELECT"},\n',
        "",
        ("tests/integration/test_grants.py::test_role_may_do_no_more_than_its_part_needs",),
    ),
    Mutation(
        "deliveries-use-up-the-limit",
        "failed jobs would keep a project from requesting others",
        "domain/projects/quota.py",
        "            AND kind <> 'webhook.deliver'\n",
        "",
        (f"{API}test_refused_request_makes_an_event_and_deliveries_do_not_count",),
    ),
)
