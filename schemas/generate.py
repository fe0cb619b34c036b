"""JSON Schemas generated from the models."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from schemas.job import BatchJob, SingleJob
from schemas.progress import Progress
from schemas.result import BatchResult, Failure, Plan, Success

PUBLISHED_MODELS: dict[str, type[BaseModel]] = {
    "single_job": SingleJob,
    "batch_job": BatchJob,
    "progress": Progress,
    "success": Success,
    "plan": Plan,
    "failure": Failure,
    "batch_result": BatchResult,
}


def json_schema_text(model: type[BaseModel]) -> str:
    """The JSON Schema of a model as it lies in its file."""
    return json.dumps(model.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


def write_json_schemas(folder: Path) -> list[Path]:
    """Writes <name>.schema.json into `folder` for each published model; returns the files' paths."""
    paths = []
    for name, model in PUBLISHED_MODELS.items():
        path = folder / f"{name}.schema.json"
        path.write_text(json_schema_text(model), encoding="utf-8")
        paths.append(path)
    return paths
