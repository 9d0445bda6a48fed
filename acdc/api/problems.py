"""Every error leaves as one shape: a problem document (RFC 9457), `application/problem+json`.

STATUS_OF is the only place where an error's code meets an HTTP status.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request

from acdc.errors import AcdcError, Fault, SpecError
from acdc.suggestions import did_you_mean

_LOG = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
STATUS_OF: dict[str, HTTPStatus] = {
    "invalid_spec": HTTPStatus.UNPROCESSABLE_ENTITY,
    "invalid_task": HTTPStatus.UNPROCESSABLE_ENTITY,
    "model": HTTPStatus.UNPROCESSABLE_ENTITY,
    "unknown_model": HTTPStatus.UNPROCESSABLE_ENTITY,
    "unsupported_model": HTTPStatus.UNPROCESSABLE_ENTITY,
    "parity_failed": HTTPStatus.UNPROCESSABLE_ENTITY,
    "bad_weights": HTTPStatus.UNPROCESSABLE_ENTITY,
    "graph_mismatch": HTTPStatus.UNPROCESSABLE_ENTITY,
    "bad_circuit_file": HTTPStatus.UNPROCESSABLE_ENTITY,
    "bad_map_file": HTTPStatus.UNPROCESSABLE_ENTITY,
    "idempotency_conflict": HTTPStatus.UNPROCESSABLE_ENTITY,
    "unauthorized": HTTPStatus.UNAUTHORIZED,
    "forbidden": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "invalid_state": HTTPStatus.CONFLICT,
    "cancelled": HTTPStatus.CONFLICT,
    "internal": HTTPStatus.INTERNAL_SERVER_ERROR,
    "service": HTTPStatus.BAD_GATEWAY,
    "database": HTTPStatus.SERVICE_UNAVAILABLE,
    "schema_mismatch": HTTPStatus.SERVICE_UNAVAILABLE,
    "bad_database": HTTPStatus.SERVICE_UNAVAILABLE,
    "storage": HTTPStatus.SERVICE_UNAVAILABLE,
    "out_of_memory": HTTPStatus.SERVICE_UNAVAILABLE,
}
_CODE_OF_FRAMEWORK = {  # what the framework and the body reader refuse before any code of ours runs
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    421: "unknown_host",
}
RETRY_AFTER_S = 2


class ProblemError(BaseModel):
    """One fault. where: a dotted path into the request."""

    where: str
    message: str


class Problem(BaseModel):
    """RFC 9457. `code` is stable and is what programs decide by; `instance` names this one occurrence in the log."""

    type: str = Field(examples=["urn:acdc:error:invalid_spec"])
    title: str
    status: int
    detail: str
    instance: str
    code: str
    errors: list[ProblemError] = []


def problem(
    status: int, code: str, detail: str, faults: tuple[Fault, ...] = (), headers: dict[str, str] | None = None
) -> JSONResponse:
    """The response for one error."""
    body = Problem(
        type=f"urn:acdc:error:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=uuid.uuid4().urn,
        code=code,
        errors=[ProblemError(where=fault.where, message=fault.message) for fault in faults],
    )
    text = body.model_dump(mode="json")
    return JSONResponse(text, status, headers, media_type=MEDIA_TYPE)


def problem_of(error: AcdcError) -> JSONResponse:
    status = STATUS_OF[error.code]
    headers = {}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="acdc"'
    response = problem(status, error.code, error.message, error.faults, headers)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        _LOG.error("%s: %s", error.code, error, exc_info=error)
    return response


def install(app: FastAPI) -> None:
    """Make every error of the app a problem document."""
    app.add_exception_handler(AcdcError, _ours)
    app.add_exception_handler(RequestValidationError, _parameters)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(Exception, _unforeseen)


def _ours(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AcdcError)
    return problem_of(error)


def _parameters(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = [Fault(".".join(map(str, finding["loc"])), _message_of(finding, request)) for finding in error.errors()]
    return problem_of(SpecError(f"{len(faults)} fault{'s' * (len(faults) != 1)} in the request", faults))


def _message_of(finding: Mapping[str, Any], request: Request) -> str:
    if finding["type"] != "extra_forbidden":
        return str(finding["msg"])
    name = str(finding["loc"][-1])
    route = request.app.openapi()["paths"][request.scope["route"].path][request.method.lower()]
    known = [one["name"] for one in route.get("parameters", []) if one["in"] == "query"]
    return f"there is no parameter {name!r:.80} here; {did_you_mean(name, known)}known: {', '.join(known)}"


def _framework(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODE_OF_FRAMEWORK.get(error.status_code, "bad_request")
    detail = str(error.detail)
    if detail == HTTPStatus(error.status_code).phrase:  # the framework's own words say nothing
        detail = f"{request.method} {request.url.path}: {detail.lower()}; /openapi.json lists every route"
    return problem(error.status_code, code, detail, headers=dict(error.headers or {}))


def _unforeseen(_: Request, error: Exception) -> JSONResponse:
    """The traceback goes to the log under the id that the client is given."""
    response = problem(500, "internal", "something went wrong in the server; its log says what")
    _LOG.error("unforeseen error, response %s", bytes(response.body).decode(), exc_info=error)
    return response
