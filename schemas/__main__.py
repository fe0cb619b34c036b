"""Writes the JSON Schemas beside the models: `python -m schemas`."""

from pathlib import Path

from schemas.generate import write_json_schemas

if __name__ == "__main__":
    for path in write_json_schemas(Path(__file__).parent):
        print(path.name)
