"""Names of fields in the service's errors, for edges whose inputs have no kinds."""

from dataclasses import replace

from harken_server.errors import InvalidRequest, Problem


def without_kinds(invalid: InvalidRequest) -> InvalidRequest:
    """The same, where an input is itself a text or a list of ids: `input[3]`, not `input[3].text`."""
    return InvalidRequest(tuple(_without_kind(problem) for problem in invalid.problems))


def _without_kind(problem: Problem) -> Problem:
    name = problem.field.replace(".token_ids.ids[", "[").removesuffix(".text").removesuffix(".token_ids")
    return replace(problem, field=name)
