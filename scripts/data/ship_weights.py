"""Add trained weights to weights/ and its manifest, under a name never used before.

usage: python scripts/data/ship_weights.py NAME FILE --for TEXT --command TEXT --data TEXT
           --scores JSON [--default]
"""

import argparse
import hashlib
import json
from pathlib import Path

from denoise_batch.models import load_weights

FOLDER = Path(__file__).parents[2] / "weights"


def main() -> None:
    """Check the file, copy it and add its manifest entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("file", type=Path)
    for option in ("for", "command", "data"):
        parser.add_argument(f"--{option}", required=True)
    parser.add_argument("--scores", required=True, type=json.loads)
    parser.add_argument("--default", action="store_true")
    options = vars(parser.parse_args())

    weights = load_weights(options["file"])
    manifest_file = FOLDER / "manifest.json"
    manifest = {"default": options["name"], "weights": {}}
    if manifest_file.exists():
        manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
    target = FOLDER / f"{options['name']}.safetensors"
    if target.exists() or options["name"] in manifest["weights"]:
        parser.error(f"{options['name']}: weights never change under one name; choose another")
    content = options["file"].read_bytes()
    target.write_bytes(content)
    manifest["weights"][options["name"]] = {
        "file": target.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "architecture": weights.network.architecture,
        "noise": weights.training["noise"],
        "for": options["for"],
        "command": options["command"],
        "data": options["data"],
        "scores": options["scores"],
    }
    if options["default"]:
        manifest["default"] = options["name"]
    manifest_file.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
