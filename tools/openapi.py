"""The interface as one OpenAPI document: Runpod's requests and answers, with the worker's models in them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from pydantic_core import core_schema

from infinitetalk import __version__
from schemas.envelope import Health, JobState, Refusal, Request, Taken

Mode = Literal["validation", "serialization"]

DESCRIPTION = """\
A job is sent to /run and asked after at /status, or announced to a webhook.

The schemas refuse what the worker refuses, except for what JSON Schema cannot say: speakers of bbox, mask and script
that are not those of the speech; lists that are not in the order of time, and a script's other rules; several
cond_video with scene_seg; in mode "streaming", a motion_frame that is not below frame_num; equal ids in a batch; values
that the job's recipe fixes; forms of addresses and prefixes; whole numbers written as 81.0; and the limits of one
worker's settings. They also refuse a policy in seconds, which the worker takes with a warning."""

MODELS: list[tuple[type[BaseModel], Mode]] = [
    (Request, "validation"),
    (Taken, "serialization"),
    (JobState, "serialization"),
    (Refusal, "serialization"),
    (Health, "serialization"),
]
REFERENCE = "#/components/schemas/{model}"


class PublishedSchema(GenerateJsonSchema):
    """JSON Schemas in which a field of a result is required if it is always there: if it is never null.

    The worker leaves out what is null; whatever else has a default is always sent.
    """

    def field_is_required(
        self,
        field: core_schema.ModelField | core_schema.DataclassField | core_schema.TypedDictField,
        total: bool,
    ) -> bool:
        """Whether a field is required in the schema that is being made."""
        schema = field["schema"]
        if self.mode == "serialization" and schema["type"] == "default":
            return schema.get("default", ...) is not None
        return super().field_is_required(field, total)


def openapi() -> dict[str, Any]:
    """The document."""
    _, definitions = models_json_schema(MODELS, ref_template=REFERENCE, schema_generator=PublishedSchema)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "InfiniteTalk on Runpod Serverless",
            "version": __version__,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [
            {
                "url": "https://api.runpod.ai/v2/{endpoint}",
                "description": "Runpod",
                "variables": {"endpoint": {"default": "ENDPOINT_ID", "description": "The endpoint's id"}},
            },
            {"url": "http://127.0.0.1:8000/v2/local", "description": "make serve"},
        ],
        "security": [{"key": []}],
        "paths": {
            "/run": {
                "post": _operation(
                    "run",
                    "Queues a job. The request has at most 10 MB, and so has the result, which is kept for 30 minutes.",
                    "Taken",
                    body="Request",
                )
            },
            "/runsync": {
                "post": _operation(
                    "runsync",
                    "Queues a job and waits for its end, 90 seconds at most; ask /status then. The request has at most "
                    "20 MB, and so has the result, which is kept for a minute.",
                    "JobState",
                    body="Request",
                )
            },
            "/status/{id}": {"get": _operation("status", "What has become of a job.", "JobState", of_job=True)},
            "/cancel/{id}": {"post": _operation("cancel", "Stops a job.", "JobState", of_job=True)},
            "/retry/{id}": {
                "post": _operation(
                    "retry",
                    "Queues a job that is FAILED or TIMED_OUT again, under its id; finished chunks are kept.",
                    "JobState",
                    of_job=True,
                )
            },
            "/health": {"get": _operation("health", "Jobs and workers of the endpoint.", "Health")},
        },
        "webhooks": {
            "ended": {
                "post": {
                    "operationId": "ended",
                    "summary": "A job has ended: posted to the job's webhook, unsigned, at most three times until the "
                    "answer is 200.",
                    "security": [],
                    "requestBody": {"required": True, "content": _json("JobState")},
                    "responses": {"200": {"description": "Taken."}},
                }
            }
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "Runpod's API key"}},
            "schemas": dict(sorted(definitions["$defs"].items())),
        },
    }


def _operation(name: str, summary: str, answer: str, body: str | None = None, of_job: bool = False) -> dict[str, Any]:
    refusals = {"401": "The key is not accepted.", "429": "There are too many requests."}
    refusals |= {"400": "The request is no job.", "413": "The request is too large."} if body else {}
    refusals |= {"404": "There is no such job, or its result is no longer kept."} if of_job else {}
    operation: dict[str, Any] = {"operationId": name, "summary": summary}
    if of_job:
        parameter = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
        operation["parameters"] = [parameter | {"description": "The job's id, as /run gave it"}]
    if body:
        operation["requestBody"] = {"required": True, "content": _json(body)}
    operation["responses"] = {"200": {"description": "Done.", "content": _json(answer)}} | {
        status: {"description": why, "content": _json("Refusal")} for status, why in sorted(refusals.items())
    }
    return operation


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": REFERENCE.format(model=name)}}}
