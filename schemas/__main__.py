"""Writes the JSON Schemas beside the models and the tables of README: `python -m schemas`."""

from pathlib import Path

from schemas.generate import write_json_schemas
from schemas.tables import write_tables

if __name__ == "__main__":
    folder = Path(__file__).parent
    for path in write_json_schemas(folder):
        print(path.name)
    write_tables(folder.parent / "README.md")
