"""A record written by an older earthbench, which was committed until the boards replaced it.

UNet on ERSST, 21 November 2026, schema 2; its history is that of
`results/runs/enso_ersst/unet/20261121T094339Z-2c29557223-82c0.json`.
"""

from __future__ import annotations

from pathlib import Path

RECORD_OF_SCHEMA_2 = Path(__file__).parent / "bench/records/record_of_schema_2.json"
