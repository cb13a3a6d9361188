"""Guards of traces: each span is in its own trace, none says too much, and they cost nothing while they are off."""

from typing import Final

from tests.mutation.mutation import Mutation

TESTS: Final = "tests/integration/test_traces.py::"
UNIT: Final = "tests/unit/test_tracing.py::"
TRACER: Final = "domain/otel_tracer.py"
VOLUMES: Final = "domain/volumes/batches.py"

TRACES: Final = (
    Mutation(
        "batch-in-trace-of-first-caller",
        "jobs that a batch sends would be in the trace of whoever came first",
        "domain/batching.py",
        "        tracing.leave()\n",
        "",
        (f"{UNIT}test_batch_is_not_part_of_the_trace_of_its_first_caller",),
    ),
    Mutation(
        "expansion-in-trace-of-batch",
        "requests that are accepted together would lose their traces",
        VOLUMES,
        "with tracing.attached(request.trace):",
        "if True:",
        (f"{TESTS}test_requests_that_are_accepted_together_stay_in_their_traces",),
    ),
    Mutation(
        "send-ends-before-commit",
        "a job that was not accepted would look as if it had been sent",
        "domain/jobs/acceptance.py",
        "with tracing.sending():",
        "if True:",
        (f"{TESTS}test_spans_of_a_failed_request_have_failed",),
    ),
    Mutation(
        "traceparent-given-twice",
        "one of two contradicting headers would count",
        "api/request_spans.py",
        "given = read_headers(scope)",
        'given = dict(scope["headers"])',
        (f"{TESTS}test_two_traceparents_are_ignored",),
    ),
    Mutation(
        "messages-of-errors-in-spans",
        "the collector would get the messages of exceptions, which may quote data",
        TRACER,
        "record_exception=False",
        "record_exception=True",
        (f"{TESTS}test_each_attempt_has_its_own_span_with_the_code_of_its_error",),
    ),
    Mutation(
        "lanes-without-link",
        "nothing would lead from a lane to its bulk job",
        "domain/bulk/service.py",
        "with tracing.caused_by(job.traceparent):",
        "with tracing.caused_by(None):",
        (f"{TESTS}test_lanes_have_traces_of_their_own_with_a_link_to_the_bulk_job",),
    ),
    Mutation(
        "storage-spans-without-attempt",
        "each look at a backend would be a trace",
        TRACER,
        "if not trace.get_current_span().get_span_context().is_valid:",
        "if False:",
        (f"{TESTS}test_calls_outside_of_attempts_have_no_spans",),
    ),
    Mutation(
        "drivers-always-wrapped",
        "each call of the storage would cost more while traces are off",
        "domain/storage/traced.py",
        "return driver if tracer is None else cast(",
        "return cast(",
        (f"{UNIT}test_driver_is_not_wrapped_while_traces_are_off",),
    ),
    Mutation(
        "context-always-written",
        "each new job would carry an empty context while traces are off",
        "domain/jobs/model.py",
        "    if (tracer := tracing.tracer()) is not None:",
        '    columns["traceparent"] = None\n    if (tracer := tracing.tracer()) is not None:',
        (f"{UNIT}test_job_has_no_trace_context_while_traces_are_off",),
    ),
    Mutation(
        "end-waits-for-collector",
        "a process could not end while the collector hangs",
        "domain/telemetry.py",
        "await asyncio.to_thread(closing.join, _CLOSE_SECONDS)",
        "await asyncio.to_thread(closing.join)",
        (f"{UNIT}test_process_does_not_wait_long_for_a_collector_that_hangs",),
    ),
)
